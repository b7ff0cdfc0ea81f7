"""What a place adds to the residual stream, against hooks on the plain model and arithmetic on its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import zoo
from torch import Tensor, nn

import workbench as wb
from workbench.circuits.patching_runs import head_matrices, head_path
from workbench.circuits.tasks import Task, encode_task
from workbench.interventions.parts import FIRST, check_writers
from workbench.model.edits import EditError

NAMES = ("gemma3", "granite", "olmo2", "glm4", "cohere")
"""Norms behind attention and MLP; a residual multiplier; no norms in front; both kinds; both parts in parallel."""
TOKENS = torch.arange(24).view(2, 12) * 29 % tiny.VOCAB
LAYER = 1
TASK = Task(
    "animals",
    ["The dog ran to the", "The cat and the dog"],
    ["The dog and to the", "The dog ran the cat"],
    [["a", "b"], ["e"]],
    [["f"], ["j"]],
)


def both(name: str) -> tuple[Any, Any]:
    """A model, and the plain one that it was made of."""
    return wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer()), zoo.build(name)


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """One of `NAMES`, see `both`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return both(request.param)


Change = Callable[[Tensor], Tensor]


def inside(plain: Any, tokens: Tensor, before: dict[nn.Module, Change], after: dict[nn.Module, Change]) -> Tensor:
    """Logits of a pass in which inputs and outputs of modules are changed."""

    def pre(change: Change) -> Any:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

        return hook

    def post(change: Change) -> Any:
        return lambda _, __, out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    handles = [module.register_forward_pre_hook(pre(change), with_kwargs=True) for module, change in before.items()]
    handles += [module.register_forward_hook(post(change)) for module, change in after.items()]
    with torch.no_grad():
        logits = plain(input_ids=tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def kept(
    plain: Any, tokens: Tensor, module: nn.Module, side: str, before: dict[nn.Module, Change] | None = None
) -> Tensor:
    """The input or output of a module."""
    seen: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    if side == "in":
        inside(plain, tokens, {**(before or {}), module: keep}, {})
    else:
        inside(plain, tokens, before or {}, {module: keep})
    return seen[0]


def attention_adds(plain: Any, tokens: Tensor, z: Change, layer: int = LAYER) -> Tensor:
    """What the attention of a layer adds to the stream where its heads' outputs are changed: with a silent MLP."""
    block = plain.model.layers[layer]
    seen: list[Tensor] = []
    ends = {block: lambda x: (seen.append(x.clone()), x)[1], block.mlp.down_proj: torch.zeros_like}
    inside(plain, tokens, {block.self_attn.o_proj: z}, ends)
    return seen[0] - kept(plain, tokens, block, "in")


def near(one: Tensor, other: Tensor, within: float = 1e-4) -> bool:
    return float((one - other).detach().abs().max()) <= within * float(other.detach().abs().max())


def test_heads_add_to_the_stream_what_hooks_see(pair: tuple[Any, Any]) -> None:
    model, plain = pair
    path = head_path(model, LAYER)
    z = kept(plain, TOKENS, plain.model.layers[LAYER].self_attn.o_proj, "in")
    whole = attention_adds(plain, TOKENS, lambda x: x)
    assert near(path.added(z), whole)
    matrices = head_matrices(model, LAYER)
    parts = torch.einsum("bphd,hdm->hbpm", z.unflatten(-1, (4, 8)), matrices)
    scales = path.scales(z)
    summed = path.directions(parts.sum(0)) * (1 if scales is None else scales)
    assert near(summed, whole)
    other = z.roll(1, 1)
    change = (other - z)[..., 16:24] @ matrices[2]

    def head(x: Tensor) -> Tensor:
        return torch.cat([x[..., :16], other[..., 16:24].to(x), x[..., 24:]], -1)

    assert near(path.changed(z, change), attention_adds(plain, TOKENS, head) - whole)


def test_a_slope_is_a_small_step(pair: tuple[Any, Any]) -> None:
    model, plain = pair
    path = head_path(model, LAYER)
    z = kept(plain, TOKENS, plain.model.layers[LAYER].self_attn.o_proj, "in")
    push = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    change = push @ path.matrix()
    step = 1e-2
    up, down = (attention_adds(plain, TOKENS, lambda x, sign=sign: x + sign * step * push) for sign in (1, -1))
    assert near(path.slope(z, change), (up - down) / (2 * step), 5e-3)


def test_a_neuron_s_unit_is_a_nudge_of_it(pair: tuple[Any, Any]) -> None:
    """Exact where no norm is between; behind a norm, with its scale, but for what the nudge changes of the scale."""
    model, plain = pair
    block, index = plain.model.layers[LAYER], 7
    path = model.network.into_stream(model.network.neuron_hook_point(LAYER, "post"))
    post = kept(plain, TOKENS, block.mlp.down_proj, "in")

    def nudge(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., index] += 1.0
        return x

    base = kept(plain, TOKENS, block, "out")
    moved = kept(plain, TOKENS, block, "out", {block.mlp.down_proj: nudge}) - base
    assert near(path.changed(post, path.matrix()[index].expand_as(base)), moved)
    direction = wb.surgery.direction_of(model, f"neurons.{LAYER}.post:{index}")
    assert torch.equal(path.units()[index], direction)
    if path.norm is None:
        assert near(direction.expand_as(moved), moved)
    gate = wb.surgery.direction_of(model, f"neurons.{LAYER}.gate:{index}")
    assert torch.equal(gate, direction)


def test_edges_equal_hooks_of_ones_own(pair: tuple[Any, Any]) -> None:
    model, plain = pair
    encoded = encode_task(model, TASK)
    edges = [(0, 0, 1, 1), (0, 3, 2, 2), (1, 2, 2, 0)]
    found = wb.circuits.patch_edges(model, TASK, edges)
    expected = torch.zeros(len(edges)).double()

    def odds(logits: Tensor, row: int) -> float:
        last = logits[0, -1].double()
        answers, wrong = encoded.answers[row], encoded.wrong[row]
        return float(last[answers[answers >= 0]].logsumexp(0) - last[wrong[wrong >= 0]].logsumexp(0))

    for number, (source, head, target, reader) in enumerate(edges):
        block = plain.model.layers[target]
        reads = getattr(block, "input_layernorm", block.self_attn)
        writes, out = plain.model.layers[source].self_attn.o_proj, block.self_attn.o_proj

        def put(value: Tensor, which: int) -> Change:
            ends = which * 8, which * 8 + 8
            return lambda x: torch.cat([x[..., : ends[0]], value[..., ends[0] : ends[1]], x[..., ends[1] :]], -1)

        for row in range(len(encoded.tokens)):
            ids, other = encoded.tokens[row : row + 1], encoded.corrupted[row : row + 1]
            z = kept(plain, other, writes, "in")
            delta = attention_adds(plain, ids, put(z, head), source) - attention_adds(plain, ids, lambda x: x, source)
            heard = kept(plain, ids, out, "in", {reads: lambda x, delta=delta: x + delta})
            lost = odds(inside(plain, ids, {}, {}), row) - odds(inside(plain, ids, {out: put(heard, reader)}, {}), row)
            expected[number] += lost / len(TASK)
    assert float(expected.abs().max()) > 1e-3
    assert torch.allclose(found.double(), expected, rtol=1e-2, atol=1e-4 * float(expected.abs().max()) + 1e-5)


def test_edges_to_first_order_are_edges_of_a_small_change(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.circuits import patching_edges, patching_gradients, patching_runs

    model, _ = pair
    encoded = encode_task(model, TASK)

    def capture(model: Any, tokens: Tensor, names: Any) -> dict[str, Tensor]:
        """Activations of corrupted prompts that are nearly those of the clean ones."""
        found = patching_runs.capture_all(model, tokens, names)
        if not torch.equal(tokens, encoded.corrupted):
            return found
        clean = patching_runs.capture_all(model, encoded.tokens, names)
        return {name: clean[name] + 3e-3 * (found[name] - clean[name]) for name in names}

    for module in (patching_edges, patching_gradients):
        monkeypatch.setattr(module, "capture_all", capture)
    pairs = [(a, h, b, g) for b in range(3) for a in range(b) for h in range(4) for g in range(4)]
    slopes = wb.circuits.edge_attribution_patching(model, TASK)
    listed, true = torch.stack([slopes[edge] for edge in pairs]), wb.circuits.patch_edges(model, TASK, pairs)
    assert float((listed - true).abs().max()) < 0.05 * float(listed.abs().max())


def test_head_outputs_sum_to_what_attention_adds(pair: tuple[Any, Any]) -> None:
    model, plain = pair
    rows, _ = wb.circuits.head_outputs(model, TOKENS[:1], TOKENS[1:])
    for layer in range(3):
        added = torch.cat([attention_adds(plain, one[None], lambda x: x, layer).mean(1) for one in TOKENS])
        assert near(rows[:, layer].sum(1), added, 1e-3)


@pytest.mark.parametrize("name", ["gemma3", "granite", "gpt2", "bloom", "llama"])
def test_what_a_token_brings_is_what_enters_the_first_layer(tiny_cache: object, name: str) -> None:
    model, plain = both(name)
    table = plain.get_input_embeddings().weight.detach()
    if name == "bloom":
        norm = plain.transformer.word_embeddings_layernorm
        expected = torch.nn.functional.layer_norm(table, (32,), norm.weight, None, norm.eps).detach()
    else:
        expected = table * {"gemma3": 32**0.5, "granite": 3.0}.get(name, 1.0)
    assert near(model.network.token_parts(torch.arange(tiny.VOCAB)), expected)
    seen = model.capture(TOKENS, ["hook_embed", "blocks.0.hook_resid_pre"])
    if name != "gpt2":
        written = model.network.written(model.hook_points["hook_embed"], seen["hook_embed"])
        assert near(written, seen["blocks.0.hook_resid_pre"])


@pytest.mark.parametrize("name", ["gemma3", "granite", "olmo2", "cohere"])
def test_deembeddings_read_through_all_steps(tiny_cache: object, name: str) -> None:
    """Against products of plain weights: the embeddings' scale, gains in front and behind, the residual multiplier."""
    model, plain = both(name)
    layer, d = 2, 32
    coder = wb.dictionaries.TopKTranscoder(
        d, 8, k=2, reads=f"blocks.{layer}.mlp.hook_in", writes=f"blocks.{layer}.hook_mlp_out", name="t"
    )
    torch.manual_seed(3)
    coder.W_enc_T.copy_(torch.randn(coder.W_enc_T.shape))
    x = plain.get_input_embeddings().weight.detach() * {"gemma3": d**0.5, "granite": 3.0}.get(name, 1.0)
    blocks = plain.model.layers

    def gain(block: Any, *words: str) -> Tensor:
        found = [getattr(block, word).weight.detach() for word in words if hasattr(block, word)]
        return (found[0] + (name == "gemma3")) if found else torch.ones(d)

    def normed(x: Tensor, gain: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True) if name == "cohere" else x) * gain

    if name == "olmo2":
        front, behind, second = (), ("post_attention_layernorm",), ()
    elif name == "gemma3":
        front, behind, second = ("input_layernorm",), ("post_attention_layernorm",), ("pre_feedforward_layernorm",)
    else:
        front, behind = ("input_layernorm",), ()
        second = ("input_layernorm",) if name == "cohere" else ("post_attention_layernorm",)
    row = coder.W_enc[:, 5]
    direct = normed(x, gain(blocks[layer], *second)) @ row
    assert near(wb.attribution.token_drives(model, coder, 5), direct)
    found = wb.attribution.head_drives(model, coder, 5)
    assert len(found) == (layer if name == "cohere" else layer + 1)
    for below in range(len(found)):
        attention = blocks[below].self_attn
        values = (normed(x, gain(blocks[below], *front)) @ attention.v_proj.weight.T).detach()
        for head in range(4):
            kv = head // 2
            out = values[:, kv * 8 : kv * 8 + 8] @ attention.o_proj.weight[:, head * 8 : head * 8 + 8].T.detach()
            out = out * gain(blocks[below], *behind) * (0.5 if name == "granite" else 1.0)
            assert near(found[below, head], normed(out, gain(blocks[layer], *second)) @ row)


def test_a_direction_is_taken_out_of_all_that_writes_or_not_at_all(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    unit = torch.nn.functional.normalize(torch.arange(1.0, 33.0).sin(), dim=0)
    check_writers(model, [FIRST, 0, 1, 2])
    with model.intervening([wb.interventions.AblateDirection(tuple(unit.tolist()))]):
        seen = model.capture(TOKENS, [f"blocks.{layer}.hook_resid_post" for layer in range(3)])
    for value in seen.values():
        assert float((value @ unit).abs().max()) < 1e-4 * float(value.abs().max())


def test_where_writers_do_not_sum_to_the_stream_it_is_refused(tiny_cache: object) -> None:
    """No hook point shows XGLM's position embeddings, which write along every direction."""
    model = wb.load_model(zoo.build("xglm"), tokenizer=tiny.tokenizer())
    edit = wb.interventions.AblateDirection(tuple(range(1, 33)))
    with pytest.raises(EditError, match="the embeddings write does not sum"), model.intervening([edit]):
        model(TOKENS)
    with pytest.raises(wb.WorkbenchError, match="the embeddings write does not sum"):
        wb.bake(model, [edit])
    check_writers(model, range(3))


@pytest.mark.parametrize(
    ("name", "factor", "cap"),
    [("granite", 0.25, None), ("cohere", 0.25, None), ("gemma2", 1.0, 30.0), ("llama", 1.0, None)],
)
def test_scales_of_logits_are_measured(tiny_cache: object, name: str, factor: float, cap: float | None) -> None:
    model, plain = both(name)
    found = model.network.logit_map
    assert (found.factor, found.cap) == (factor, cap)
    products = kept(plain, TOKENS, plain.lm_head, "out")
    assert near(found.logits(products), plain(input_ids=TOKENS).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "factor", "cap"), [("llama", 1.0, None), ("granite", 0.25, None), ("gemma2", 1.0, 30.0)]
)
def test_scales_of_logits_are_measured_in_16_bits(
    tiny_cache: object, dtype: torch.dtype, name: str, factor: float, cap: float | None
) -> None:
    module = zoo.build(name, max_position_embeddings=100).to(dtype)
    found = wb.load_model(module, tokenizer=tiny.tokenizer()).network.logit_map
    assert found.factor == pytest.approx(factor, rel=2e-3)
    assert found.cap == cap


def test_logits_that_are_not_finite_say_nothing_about_causality(tiny_cache: object) -> None:
    module = zoo.build("llama", tie_word_embeddings=False)
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    with torch.no_grad():
        module.lm_head.weight[3, 4] = float("nan")
    with pytest.raises(wb.model.ModelError, match="logits that are not finite"):
        model.generate("The dog", max_new_tokens=1)
