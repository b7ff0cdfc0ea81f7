"""Patching layer by position against plain transformers with hooks of the test's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import zoo as architectures
from torch import Tensor

import workbench as wb
from workbench.circuits import TaskError, align_prompts, attribute_positions, patch_positions, position_runs
from workbench.circuits.position_grid import EmbeddingNoise

pytestmark = pytest.mark.usefixtures("tiny_cache")

CLEAN, CORRUPTED = "The dog ran to", "The cat and to"
PATHS = {
    "llama": ("model.layers", "self_attn", "mlp", "self_attn.o_proj"),
    "mistral": ("model.layers", "self_attn", "mlp", "self_attn.o_proj"),
    "gemma2": ("model.layers", "post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj"),
    "qwen3-moe": ("model.layers", "self_attn", "mlp", "self_attn.o_proj"),
    "gpt2": ("transformer.h", "attn", "mlp", "attn.c_proj"),
    "gpt-neox": ("gpt_neox.layers", "attention", "mlp", "attention.dense"),
    "gpt-j": ("transformer.h", "attn", "mlp", "attn.out_proj"),
    "opt": ("model.decoder.layers", "self_attn", "", "self_attn.out_proj"),
    "bloom": ("transformer.h", "", "", "self_attention.dense"),
}
"""By architecture: the layers, and in a layer what attention adds, what the MLP adds, and the output projection."""


@functools.lru_cache(1)
def opened(name: str) -> tuple[Any, Any]:
    module = architectures.build(name)
    return module, wb.load_model(architectures.build(name), tokenizer=tiny.tokenizer())


def logits_of(module: Any, ids: Tensor, part: Any, side: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits behind a prompt where the input or the output of a module is changed."""

    def before(m: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    def behind(m: Any, args: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    hooked = part.register_forward_pre_hook(before, with_kwargs=True) if side == "in" else None
    hooked = hooked or part.register_forward_hook(behind)
    with torch.no_grad():
        logits = module(input_ids=ids[None], use_cache=False).logits[0, -1].double()
    hooked.remove()
    return logits


def seen(module: Any, ids: Tensor, part: Any, side: str) -> Tensor:
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x.clone())
        return x

    logits_of(module, ids, part, side, keep)
    return found[0]


def put(value: Tensor, to: int, here: slice = slice(None)) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        new = x.clone()
        new[0, to, here] = value[here]
        return new

    return change


def part_of(module: Any, name: str, component: str, layer: int) -> tuple[Any, str]:
    layers, attention, mlp, projection = PATHS[name]
    block = module.get_submodule(layers)[layer]
    path = {"stream": "", "attention": attention, "mlp": mlp, "heads": projection}[component]
    return block.get_submodule(path), "in" if component in ("stream", "heads") else "out"


@pytest.mark.parametrize("name", PATHS)
def test_every_cell_is_a_pass_of_plain_transformers(name: str) -> None:
    module, model = opened(name)
    pair = align_prompts(model, [CLEAN], [CORRUPTED], answers=["a"], wrong=["b"])
    clean, corrupted = pair.pairs[0].clean, pair.pairs[0].corrupted
    right, wrong = (model.to_tokens(one, start=False)[0, 0] for one in "ab")
    components = [one for one, path in zip(("attention", "mlp"), PATHS[name][1:], strict=False) if path]
    for component in ["stream", "heads", *components]:
        into, ids, source = ("clean", clean, corrupted) if component == "mlp" else ("corrupted", corrupted, clean)
        layers = [0, model.network.n_layers - 1] if component == "heads" else None
        grid = patch_positions(model, pair, component, into=into, layers=layers)  # type: ignore[arg-type]
        found = torch.zeros_like(grid.values)
        for row, title in enumerate(grid.rows):
            layer, _, head = title.partition(".")
            part, side = part_of(module, name, component, int(layer))
            value = seen(module, source, part, side)[0]
            width = value.shape[-1] // 4
            here = slice(int(head) * width, (int(head) + 1) * width) if head else slice(None)
            for place in range(len(clean)):
                logits = logits_of(module, ids, part, side, put(value[place], place, here))
                found[row, place] = float(logits[right] - logits[wrong])
        scale = max(1.0, float(found.abs().max()))
        assert float((grid.values - found).abs().max()) < 1e-5 * scale, component
        assert float(grid.effects.abs().max()) > 1e-2, component


def test_most_architectures_share_runs() -> None:
    shares = []
    for name in ("llama", "gpt2"):
        _, model = opened(name)
        base = position_runs.run_base(model, model.to_tokens(CLEAN)[0], ["blocks.1.hook_resid_pre"])
        value = base.activations["blocks.1.hook_resid_pre"][1:2] * 2
        cells = [position_runs.Cell(1, (position_runs.Put("blocks.1.hook_resid_pre", (1,), value),))]
        shares.append(position_runs.can_share(model, base, cells))
    assert shares == [True, True]


def test_unequal_lengths_are_aligned_by_shared_tokens_and_by_spans() -> None:
    module, model = opened("llama")
    pair = align_prompts(model, ["The dog ran to the river"], ["The small green boat ran to the river"])
    one, other = pair.pairs[0].clean.tolist(), pair.pairs[0].corrupted.tolist()
    assert len(one) != len(other)
    for place in pair.pairs[0].places:
        if len(place.clean) == 1 and "→" not in place.name:
            assert one[place.clean[0]] == other[place.corrupted[0]]
    assert str(pair).count("\n") == len(pair.places) - 1
    texts = ["The dog ran to", "Once the boat ran to"], ["The small green cat ran to", "Once the mouse ran to"]
    spans = {"subject": [(" dog", " small green cat"), (" boat", " mouse")]}
    pairs = align_prompts(model, *texts, spans=spans, answers=["a", "b"], wrong=["c", "d"])
    assert pairs.places == ["subject", "last"]
    grid = patch_positions(model, pairs, "stream")
    expected = torch.zeros_like(grid.values)
    for pair in pairs.pairs:
        for place, where in enumerate(pair.places):
            assert len(where.clean) == len(where.corrupted)
            for layer in range(3):
                part = module.model.layers[layer]
                value = seen(module, pair.clean, part, "in")[0]

                def change(x: Tensor, value: Tensor = value, where: Any = where) -> Tensor:
                    new = x.clone()
                    new[0, list(where.corrupted)] = value[list(where.clean)]
                    return new

                logits = logits_of(module, pair.corrupted, part, "in", change)
                expected[layer, place] += float(logits[pair.answers[0]] - logits[pair.wrong[0]]) / 2
    assert torch.allclose(grid.values, expected, atol=1e-5)
    assert bool((grid.low <= grid.effects + 1e-6).all())
    assert bool((grid.effects <= grid.high + 1e-6).all())


def test_methods_and_metrics() -> None:
    module, model = opened("llama")
    pairs = align_prompts(model, [CLEAN, "The mouse ran to"], [CORRUPTED, "The boat and to"], answers=["a", "b"],
                          spans={"verb": [(" ran", " and"), (" ran", " and")]}, wrong=["c", "d"])  # fmt: skip
    part = module.model.layers[1].mlp
    values = [seen(module, pair.clean, part, "out")[0] for pair in pairs.pairs]
    corrupted = [seen(module, pair.corrupted, part, "out")[0] for pair in pairs.pairs]
    at = [pair.places[0] for pair in pairs.pairs]
    means = torch.stack([value[list(one.clean)].mean(0) for value, one in zip(values, at, strict=True)]).mean(0)
    for method in ("mean", "zero", "resample"):
        grid = patch_positions(model, pairs, "mlp", method=method, metric="probability")
        total = 0.0
        for number, pair in enumerate(pairs.pairs):
            places = list(at[number].corrupted)
            new = torch.zeros(32) if method == "zero" else means
            if method == "resample":
                new = corrupted[1 - number][list(at[1 - number].corrupted)]

            def change(x: Tensor, new: Tensor = new, places: list[int] = places) -> Tensor:
                x = x.clone()
                x[0, places] = new
                return x

            logits = logits_of(module, pair.corrupted, part, "out", change)
            total += float(logits.softmax(-1)[pair.answers[0]]) / 2
        assert float(grid.values[1, 0]) == pytest.approx(total, abs=1e-6)
    own = patch_positions(model, pairs, "mlp", metric=lambda logits: logits[:, 5])
    kl = patch_positions(model, pairs, "mlp", metric="kl", into="clean")
    assert own.metric == "<lambda>"
    assert kl.clean == pytest.approx(0, abs=1e-6)
    assert bool((kl.values > -1e-6).all())


def test_noise_on_embeddings_is_causal_tracing() -> None:
    module, model = opened("llama")
    pair = align_prompts(model, [CLEAN], [CLEAN], answers=["a"], spans={"subject": " dog"})
    noise = EmbeddingNoise("subject", samples=2, seed=3)
    grid = patch_positions(model, pair, "stream", noise=noise, metric="probability")
    ids, at = pair.pairs[0].clean, list(pair.pairs[0].places[0].clean)
    table = module.get_input_embeddings()
    spread = 3 * float(table(ids).detach().std())
    chance = torch.Generator().manual_seed(3)
    right, found = pair.pairs[0].answers[0], torch.zeros_like(grid.values)
    for _ in range(2):
        drawn = spread * torch.randn(len(at), 32, generator=chance)
        noisy = table.register_forward_hook(
            lambda m, a, out, drawn=drawn: out.index_add(1, torch.tensor(at), drawn[None])
        )
        for layer in range(3):
            part = module.model.layers[layer]
            noisy.remove()
            value = seen(module, ids, part, "in")[0]
            noisy = table.register_forward_hook(
                lambda m, a, out, drawn=drawn: out.index_add(1, torch.tensor(at), drawn[None])
            )
            for place, where in enumerate(pair.pairs[0].places):

                def change(x: Tensor, value: Tensor = value, where: Any = where) -> Tensor:
                    x = x.clone()
                    x[0, list(where.clean)] = value[list(where.clean)]
                    return x

                found[layer, place] += float(logits_of(module, ids, part, "in", change).softmax(-1)[right]) / 2
        noisy.remove()
    assert torch.allclose(grid.values, found, atol=1e-6)
    assert grid.corrupted != pytest.approx(grid.clean, abs=1e-6)


def test_features_of_a_dictionary() -> None:
    module, model = opened("llama")
    sae = wb.TopKSAE(d_in=32, width=64, k=8)
    sae.reads = sae.writes = "blocks.1.hook_resid_pre"
    pair = align_prompts(model, [CLEAN], [CORRUPTED], answers=["a"], wrong=["b"])
    grid = patch_positions(model, pair, sae)
    ids, source, part = pair.pairs[0].corrupted, pair.pairs[0].clean, module.model.layers[1]
    x, y = (sae.encode(seen(module, one, part, "in")[0]).dense() for one in (ids, source))
    for row, name in enumerate(grid.rows[:5]):
        index = int(name.split(":")[1])
        for place in range(len(ids)):
            step = (y - x)[place, index] * sae.direction(index)

            def change(h: Tensor, step: Tensor = step, place: int = place) -> Tensor:
                h = h.clone()
                h[0, place] += step.detach()
                return h

            logits = logits_of(module, ids, part, "in", change)
            found = float(logits[pair.pairs[0].answers[0]] - logits[pair.pairs[0].wrong[0]])
            assert float(grid.values[row, place]) == pytest.approx(found, abs=2e-5)


def test_a_circuit_set_by_hand_is_at_its_layer_and_position() -> None:
    truth = wb.circuits.induction_model(seed=1)
    (copies, copier), (induces, inducer) = truth.heads.nonzero().tolist()
    ways = (patch_positions, "clean"), (patch_positions, "corrupted"), (attribute_positions, "clean")
    for row, (act, into) in enumerate(ways):
        pairs = wb.circuits.align_task(truth.model, truth.task(4, 1)[[row]])
        ids, where = pairs.pairs[0].clean.tolist(), pairs.places
        behind = ids.index(ids[-1]) + 1  # where the first layer's head copies the earlier occurrence
        wanted = {(f"{copies}.{copier}", where[behind]), (f"{induces}.{inducer}", where[-1])}
        heads = act(truth.model, pairs, "heads", into=into)
        assert {(row, place) for row, place, _ in heads.largest(2)} == wanted
    stream = patch_positions(truth.model, pairs, "stream").recovered
    assert float(stream[0, behind - 1]) == pytest.approx(1, abs=1e-3)
    assert float(stream[1, behind]) == pytest.approx(1, abs=0.05)
    assert float(stream[1, -1].abs()) < 1e-3


def test_small_steps_are_estimated() -> None:
    _, model = opened("granite")
    pair = align_prompts(model, [CLEAN], [CORRUPTED], answers=["a"], wrong=["b"])
    noise = EmbeddingNoise(pair.places[1], scale=3e-3, samples=2)
    for component in ("stream", "attention", "mlp", "heads"):
        for into in ("clean", "corrupted"):
            exact, slopes = (
                act(model, pair, component, into=into, noise=noise) for act in (patch_positions, attribute_positions)
            )
            assert exact.correlation(slopes) > 0.99
            assert float((exact.effects - slopes.effects).abs().max()) < 0.2 * float(exact.effects.abs().max())
    for into in ("clean", "corrupted"):
        kl = attribute_positions(model, pair, "mlp", metric="kl", into=into)
        assert bool(kl.effects.isfinite().all())
    assert slopes.method == "attribution"
    assert slopes.clean == pytest.approx(exact.clean, abs=1e-5)


def test_half_precision_and_company() -> None:
    half = wb.load_model(architectures.build("llama"), tokenizer=tiny.tokenizer(), dtype="bfloat16")
    _, exact = opened("llama")
    pairs = [align_prompts(one, [CLEAN], [CORRUPTED], answers=["a"], wrong=["b"]) for one in (half, exact)]
    one, other = patch_positions(half, pairs[0]), patch_positions(exact, pairs[1])
    assert float((one.values - other.values).abs().max()) < 0.05 * float(other.values.abs().max()) + 0.05
    both = align_prompts(exact, [CLEAN, "Once the mouse"], [CORRUPTED, "Once the boat"], answers=["a", "b"],
                         wrong=["b", "a"], spans={"first": [("The",) * 2, ("Once",) * 2]})  # fmt: skip
    alone = align_prompts(exact, [CLEAN], [CORRUPTED], answers=["a"], wrong=["b"], spans={"first": "The"})
    second = align_prompts(exact, ["Once the mouse"], ["Once the boat"], answers=["b"], wrong=["a"],
                           spans={"first": "Once"})  # fmt: skip
    mean = (patch_positions(exact, alone).values + patch_positions(exact, second).values) / 2
    assert torch.allclose(patch_positions(exact, both).values, mean, atol=1e-5)


def test_an_opened_cell_has_the_exchanged_answer() -> None:
    module, model = opened("llama")
    pair = align_prompts(model, [CLEAN], [CORRUPTED])
    cell = wb.circuits.open_cell(model, pair, "1", pair.places[2], top=3)
    part, one = module.model.layers[1], pair.pairs[0]
    value = seen(module, one.clean, part, "in")[0]
    shares = logits_of(module, one.corrupted, part, "in", put(value[2], 2)).softmax(-1).topk(3)
    assert [token for token, _ in cell.changed] == model.token_labels(shares.indices)
    assert [share for _, share in cell.changed] == pytest.approx(shares.values.tolist(), abs=1e-5)
    grid = patch_positions(model, pair, metric="kl")
    assert grid.answers[1][2] == cell.changed[0][0]
    with pytest.raises(TaskError, match="no row"):
        wb.circuits.open_cell(model, pair, "9", pair.places[2])


def test_what_can_not_be_is_refused() -> None:
    _, model = opened("llama")
    for spans, words in (({"x": "horse"}, "occurs 0 times"), ({"last": "dog"}, "last position"), ({"x": ""}, "empty")):
        with pytest.raises(TaskError, match=words):
            align_prompts(model, [CLEAN], [CORRUPTED], spans=spans)
    pair = align_prompts(model, [CLEAN], [CORRUPTED])
    with pytest.raises(TaskError, match="numbers from 0 to 2"):
        patch_positions(model, pair, layers=[7])
    with pytest.raises(TaskError, match="at least two pairs"):
        patch_positions(model, pair, method="resample")
    with pytest.raises(TaskError, match="no place"):
        patch_positions(model, pair, noise=EmbeddingNoise("subject"))
    same = align_prompts(model, [CLEAN], [CLEAN])
    with pytest.raises(TaskError, match="same likeliest"):
        patch_positions(model, same)
    with pytest.raises(TaskError, match="unlike numbers of places"):
        align_prompts(model, [CLEAN, "The dog ran to the river"], [CORRUPTED, "The cat ran to the river"])
    ids = model.to_tokens(CLEAN)[0]
    assert align_prompts(model, [ids[1:]], [ids[1:]]).places == [f"{n}:{one}" for n, one in
                                                                  enumerate(model.text_pieces(ids[1:]))]  # fmt: skip


def test_noise_reads_the_clean_prompt_alone() -> None:
    """The other prompt of a pair is not read, whatever its length and its places are."""
    _, model = opened("llama")
    noise = EmbeddingNoise("subject", samples=2, seed=3)
    longer = "Once upon a time the mouse and the cat ran"
    pairs = [align_prompts(model, [CLEAN], [other], answers=["a"], spans={"subject": span})
             for other, span in ((CLEAN, " dog"), (longer, (" dog", " and the cat")))]  # fmt: skip
    for into in ("clean", "corrupted"):
        for component in ("stream", "heads"):
            one, other = (patch_positions(model, pair, component, into=into, noise=noise, metric="probability")
                          for pair in pairs)  # fmt: skip
            assert torch.equal(one.values, other.values)


def test_places_of_one_pair_have_names_of_their_own() -> None:
    _, model = opened("llama")
    pair = align_prompts(model, ["The dog ran and The dog ran"], ["The green cat ran and The green cat ran to"])
    assert len({*pair.places}) == len(pair.places)
    with pytest.raises(TaskError, match="occurs 2 times"):
        align_prompts(model, ["aaa"], ["aaa"], spans={"one": "aa"})


def test_a_cell_of_a_named_feature_or_of_another_draw_opens() -> None:
    _, model = opened("llama")
    pairs = align_prompts(model, ["The dog ran to", "The cat ran to", "The mouse ran to"], ["The cat ran to"] * 3)
    sae = wb.TopKSAE(d_in=32, width=48, k=4, hook_point="blocks.1.hook_resid_post", name="s")
    place = pairs.places[1]
    named = wb.circuits.open_cell(model, pairs, "s:47", place, sae, features=[47])
    assert named.row == "s:47"
    for seed in (0, 1):
        grid = patch_positions(model, pairs, "mlp", method="resample", metric=lambda logits: logits.amax(-1), seed=seed)
        column = grid.places.index(place)
        cell = wb.circuits.open_cell(model, pairs, "1", place, "mlp", method="resample", seed=seed)
        assert cell.changed[0][0] == grid.answers[grid.rows.index("1")][column]
