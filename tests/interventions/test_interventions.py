"""Interventions against plain PyTorch hooks on the plain model: every kind, place and position rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import reference
import tiny
import torch
from reference import PlainEdit, at_index, greedy, logits_under, seen_at
from torch import Tensor

import workbench as wb
from workbench.dictionaries.neurons import Neurons
from workbench.dictionaries.relu import SkipTranscoder
from workbench.dictionaries.topk import TopKSAE
from workbench.interventions.features import REFERENCE_TEXTS, mean_value
from workbench.model.edits import Edit
from workbench.model.language_model import uninterrupted

pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited")  # TransformerLens on its norms

INDEX = 7
LAYER = 1
PROMPT = 6
TOKENS = torch.tensor([[61, 258, 12, 300, 77, 5, 190, 33, 261, 88], [9, 270, 15, 42, 42, 101, 6, 330, 27, 3]])
PLACES = [("llama", s) for s in ("gate", "up", "post")] + [(a, s) for a in ("gpt2", "neox") for s in ("up", "post")]
RULES: list[Any] = ["all", "prompt", "generated", (0, 3, 7)]
Change = Callable[[Tensor], Tensor]
Kind = tuple[Callable[[str, Any], Any], Change]

KINDS: dict[str, Kind] = {
    "clamp": (lambda f, p: wb.Clamp(f, 3.5, positions=p), lambda old: torch.full_like(old, 3.5)),
    "clamp to 0": (lambda f, p: wb.Clamp(f, 0.0, positions=p), torch.zeros_like),
    "scale": (lambda f, p: wb.Scale(f, -2.5, positions=p), lambda old: old * -2.5),
    "ablate": (lambda f, p: wb.Ablate(f, positions=p), torch.zeros_like),
    "set to mean": (lambda f, p: wb.Ablate(f, "mean", 0.3, positions=p), lambda old: torch.full_like(old, 0.3)),
    "steer": (lambda f, p: wb.Steer(f, 2.25, positions=p), lambda old: old + 2.25),
}


@dataclass
class Pair:
    """One tiny model twice: under Workbench, and plain with hooks."""

    model: wb.model.LanguageModel
    plain: Any

    def edit(self, site: str, change: Change, rule: Any, index: int = INDEX, layer: int = LAYER) -> PlainEdit:
        """A plain hook on one neuron."""
        module, side = tiny.mlp(self.plain, layer)[site]
        return PlainEdit(module, side, at_index(index, change), rule)

    def logits(self, edits: list[Any], tokens: Tensor = TOKENS, prompt: int = PROMPT) -> Tensor:
        """Workbench's logits under interventions."""
        with self.model.intervening(edits):
            return self.model(tokens, prompt_length=prompt)


@pytest.fixture(scope="module")
def pairs(zoo) -> dict[str, Pair]:
    return {name: Pair(zoo[name], tiny.build(name)) for name in ("llama", "gpt2", "neox")}


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "site"), PLACES)
def test_neuron_interventions_equal_a_plain_hook(pairs, name: str, site: str, kind: str, rule: Any) -> None:
    pair = pairs[name]
    make, change = KINDS[kind]
    expected = logits_under(pair.plain, TOKENS, [pair.edit(site, change, rule)], PROMPT)
    found = pair.logits([make(f"neurons.{LAYER}.{site}:{INDEX}", rule)])
    assert close(found, expected)
    assert not close(found, logits_under(pair.plain, TOKENS)), "the edit should have changed something"


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_steering_along_a_direction_equals_a_plain_hook(pairs, name: str, rule: Any) -> None:
    pair = pairs[name]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    blocks = pair.plain.get_decoder()
    block = (blocks.h if name == "gpt2" else blocks.layers)[LAYER]
    expected = logits_under(
        pair.plain, TOKENS, [PlainEdit(block, "out", lambda vector: vector + 0.8 * direction, rule)], PROMPT
    )
    steer = wb.Steer.along(f"blocks.{LAYER}.hook_resid_post", direction, 0.8, positions=rule)
    assert close(pair.logits([steer]), expected)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("alias", ["attn.hook_z", "attn.o.hook_in"])
def test_steering_one_head_equals_a_plain_hook(pairs, alias: str, rule: Any) -> None:
    pair = pairs["llama"]
    direction = torch.zeros(4, 8)
    direction[2] = torch.arange(8.0)  # head 2 only
    projection = pair.plain.model.layers[LAYER].self_attn.o_proj

    def change(vector: Tensor) -> Tensor:  # [batch, 32], head 2 at 16 to 23
        vector = vector.clone()
        vector[:, 16:24] += 0.5 * torch.arange(8.0)
        return vector

    expected = logits_under(pair.plain, TOKENS, [PlainEdit(projection, "in", change, rule)], PROMPT)
    steer = wb.Steer.along(f"blocks.{LAYER}.{alias}", direction, 0.5, positions=rule)
    assert close(pair.logits([steer]), expected)


def test_several_at_once_act_in_stated_order(pairs) -> None:
    pair = pairs["llama"]
    f, g = f"neurons.{LAYER}.gate:{INDEX}", f"neurons.{LAYER}.gate:3"
    chain = [
        (wb.Clamp(f, 2.0), pair.edit("gate", lambda old: torch.full_like(old, 2.0), "all")),
        (wb.Scale(f, 3.0, positions="prompt"), pair.edit("gate", lambda old: old * 3, "prompt")),
        (wb.Steer(g, 1.5), pair.edit("gate", lambda old: old + 1.5, "all", index=3)),
        (wb.Steer(f, -0.5), pair.edit("gate", lambda old: old - 0.5, "all")),
        (wb.Ablate(f, positions=[1]), pair.edit("gate", torch.zeros_like, (1,))),
        (wb.Clamp("neurons.0.post:5", 4.0), pair.edit("post", lambda old: torch.full_like(old, 4.0), "all", 5, 0)),
        (wb.Scale("neurons.2.up:5", 4.0), pair.edit("up", lambda old: old * 4, "all", 5, 2)),
    ]
    forward = pair.logits([ours for ours, _ in chain])
    backward = pair.logits([ours for ours, _ in reversed(chain)])
    assert close(forward, logits_under(pair.plain, TOKENS, [plain for _, plain in chain], PROMPT))
    assert close(backward, logits_under(pair.plain, TOKENS, [plain for _, plain in reversed(chain)], PROMPT))
    assert not close(forward, backward)


def test_clamp_then_scale_is_not_scale_then_clamp(pairs) -> None:
    """2 tripled is 6; whatever it was, tripled and then set to 2, is 2."""
    model, f = pairs["llama"].model, f"neurons.{LAYER}.up:{INDEX}"
    name = f"blocks.{LAYER}.mlp.hook_pre_linear"
    for edits, value in (([wb.Clamp(f, 2.0), wb.Scale(f, 3.0)], 6.0), ([wb.Scale(f, 3.0), wb.Clamp(f, 2.0)], 2.0)):
        with model.intervening(edits):
            assert (model.capture(TOKENS, [name])[name][..., INDEX] == value).all()


@pytest.mark.parametrize(("name", "site"), PLACES)
def test_mean_ablation_takes_the_mean_over_the_reference_texts(pairs, name: str, site: str) -> None:
    pair = pairs[name]
    place, side = tiny.mlp(pair.plain, LAYER)[site]
    rows = [tiny.tokenizer()(text).input_ids[: tiny.CONTEXT] for text in REFERENCE_TEXTS]
    values = [seen_at(pair.plain, place, side, torch.tensor([row]))[0, :, INDEX] for row in rows]
    mean = float(torch.cat(values).double().mean())
    expected = logits_under(pair.plain, TOKENS, [pair.edit(site, lambda old: torch.full_like(old, mean), "all")])
    assert close(pair.logits([wb.Ablate(f"neurons.{LAYER}.{site}:{INDEX}", "mean")]), expected)


def test_mean_is_that_of_the_plain_model(pairs) -> None:
    """Other interventions in force do not move the mean that an ablation sets."""
    model, name = pairs["llama"].model, f"blocks.{LAYER}.mlp.hook_pre"
    ablate = wb.Ablate(f"neurons.{LAYER}.gate:{INDEX}", "mean")
    with model.intervening([ablate]):
        alone = model.capture(TOKENS, [name])[name][0, 0, INDEX]
    with model.intervening([wb.Clamp("neurons.0.post:3", 50.0), ablate]):
        beside = model.capture(TOKENS, [name])[name][0, 0, INDEX]
    assert torch.equal(alone, beside)


@pytest.mark.parametrize(("name", "site"), PLACES)
def test_identity_settings_change_no_bit(pairs, name: str, site: str) -> None:
    model = pairs[name].model
    word = {"gate": "hook_pre", "up": "hook_pre_linear" if name == "llama" else "hook_pre", "post": "hook_post"}[site]
    hook, f = f"blocks.{LAYER}.mlp.{word}", f"neurons.{LAYER}.{site}:{INDEX}"
    plain = model(TOKENS)
    there = model.capture(TOKENS[:1], [hook])[hook][0, :, INDEX].tolist()
    clamps = [wb.Clamp(f, value, positions=[position]) for position, value in enumerate(there)]
    direction = torch.ones(32)
    identities = [[], [wb.Scale(f, 1)], [wb.Scale(f, 1.0, positions="prompt")], [wb.Steer(f, 0.0)], [wb.Steer(f, -0.0)]]
    identities += [[wb.Steer.along("blocks.0.hook_resid_post", direction, 0.0)]]
    for edits in identities:
        with model.intervening(edits):
            assert torch.equal(model(TOKENS), plain), edits
    with model.intervening(clamps):
        assert torch.equal(model(TOKENS[:1]), model_alone(model))


def model_alone(model: wb.model.LanguageModel) -> Tensor:
    """The first row's logits, outside all interventions in force here."""
    with uninterrupted():
        return model(TOKENS[:1])


@pytest.mark.parametrize("rule", ["prompt", "generated", (0, 3, 7)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "site"), PLACES)
def test_outside_its_positions_nothing_changes(pairs, name: str, site: str, kind: str, rule: Any) -> None:
    model = pairs[name].model
    word = {"gate": "hook_pre", "up": "hook_pre_linear" if name == "llama" else "hook_pre", "post": "hook_post"}[site]
    hook = f"blocks.{LAYER}.mlp.{word}"
    plain = model.capture(TOKENS, [hook])[hook]
    with model.intervening([KINDS[kind][0](f"neurons.{LAYER}.{site}:{INDEX}", rule)]):
        edited = model.capture(TOKENS, [hook], prompt_length=PROMPT)[hook]
    inside = torch.tensor([reference.chosen(rule, position, PROMPT) for position in range(TOKENS.shape[1])])
    assert torch.equal(edited[:, ~inside], plain[:, ~inside])
    others = torch.arange(plain.shape[-1]) != INDEX
    assert torch.equal(edited[..., others], plain[..., others])
    expected = KINDS[kind][1](plain[:, inside, INDEX])
    assert torch.equal(edited[:, inside, INDEX], expected)


def test_nothing_remains_after_the_block_or_an_exception(pairs) -> None:
    model = pairs["llama"].model
    edits = [wb.Clamp("neurons.0.gate:3", 50.0), wb.Steer.along("blocks.1.ln1.hook_normalized", torch.ones(32), 3.0)]
    plain = model(TOKENS)
    with model.intervening(edits):
        assert not close(model(TOKENS), plain)
    assert torch.equal(model(TOKENS), plain)
    with pytest.raises(ZeroDivisionError), model.intervening(edits):
        1 / model(TOKENS).shape.index(len(TOKENS))  # the batch is the first axis, 0
    assert torch.equal(model(TOKENS), plain)


class Exploding:
    """An intervention whose edit fails in the middle of a forward pass."""

    def bind(self, model: Any, plan: object) -> list[Edit]:
        def explode(value: Tensor) -> Tensor:
            raise ZeroDivisionError

        return [Edit("blocks.1.mlp.hook_post", explode)]


def test_nothing_remains_after_an_edit_fails_inside_the_model(pairs) -> None:
    model = pairs["llama"].model
    plain, text = model(TOKENS), model.generate(TOKENS[0], 4).tokens
    edits = [wb.Clamp("neurons.0.gate:3", 50.0), Exploding()]
    for fail in (
        lambda: model.generate(TOKENS[0], 4, interventions=edits),
        lambda: list(model.stream(TOKENS[0], 4, interventions=edits)),
        lambda: wb.compare(model, "The dog", edits, 4),  # type: ignore[arg-type]
    ):
        with pytest.raises(ZeroDivisionError):
            fail()
    with pytest.raises(ZeroDivisionError), model.intervening(edits):
        model(TOKENS)
    assert torch.equal(model(TOKENS), plain)
    assert model.generate(TOKENS[0], 4).tokens == text


def test_refused_edits_leave_nothing_in_force(pairs) -> None:
    model = pairs["llama"].model
    plain = model(TOKENS)
    with (
        pytest.raises(wb.dictionaries.FeatureError),
        model.intervening([wb.Clamp("neurons.0.gate:3", 50.0), wb.Clamp("neurons.9.gate:0", 1.0)]),
    ):
        pytest.fail("the block was entered")
    assert torch.equal(model(TOKENS), plain)


def test_blocks_nest_and_inner_ones_come_after(pairs) -> None:
    pair = pairs["llama"]
    model, f = pair.model, "neurons.1.gate:7"
    with model.intervening([wb.Clamp(f, 2.0)]):
        outside = model(TOKENS)
        with model.intervening([wb.Scale(f, 3.0)]):
            both = model(TOKENS)
        again = model(TOKENS)
        generated = model.generate(TOKENS[0], 5, interventions=[wb.Scale(f, 3.0)], stop=False).tokens
    six = [pair.edit("gate", lambda old: torch.full_like(old, 6.0), "all")]
    assert close(both, logits_under(pair.plain, TOKENS, six))
    assert torch.equal(outside, again)
    assert not close(outside, both)
    assert generated == greedy(pair.plain, TOKENS[:1], 5, six)[0]


def test_a_block_belongs_to_one_model(pairs) -> None:
    """Interventions on one model leave another alone, even one with the same weights."""
    model, other = pairs["llama"].model, wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    plain = other(TOKENS)
    with model.intervening([wb.Clamp("neurons.1.gate:7", 50.0)]):
        assert torch.equal(other(TOKENS), plain)
        assert not close(model(TOKENS), plain)


# --- latents of trained dictionaries


RESID, HEADS, MLP_IN, MLP_OUT = (
    f"blocks.{LAYER}.{name}" for name in ("hook_resid_post", "attn.hook_z", "ln2.hook_out", "hook_mlp_out")
)
LATENTS: dict[str, Callable[[], Any]] = {
    "on the residual stream": lambda: TopKSAE(32, 48, 5, hook_point=RESID, name="mine"),
    "on heads": lambda: TopKSAE(32, 48, 5, hook_point=HEADS, name="mine"),
    "of a transcoder": lambda: SkipTranscoder(32, 48, reads=MLP_IN, writes=MLP_OUT, name="mine"),
}


def latents(case: str, seed: int = 0) -> Any:
    """A dictionary with random weights everywhere."""
    dictionary = LATENTS[case]()
    chance = torch.Generator().manual_seed(seed)
    for parameter in dictionary.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=chance)
    return dictionary


def plain_latents(pair: Pair, dictionary: Any, edit: Callable[[int, Tensor], Tensor]) -> list[PlainEdit]:
    """Plain hooks that add decode(edited) - decode(codes), all dense; `edit` gets position and codes `[batch, 48]`."""
    block = pair.plain.model.layers[LAYER]
    where = {
        RESID: (block, "out"),
        HEADS: (block.self_attn.o_proj, "in"),
        MLP_IN: (block.post_attention_layernorm, "out"),
        MLP_OUT: (block.mlp, "out"),
    }
    seen: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    position = iter(range(TOKENS.shape[1]))

    def write(x: Tensor) -> Tensor:
        read = seen.pop(0) if dictionary.reads != dictionary.writes else x
        sees = read if dictionary.W_skip is not None else read - dictionary.b_dec
        pre = sees @ dictionary.W_enc + dictionary.b_enc
        if dictionary.W_skip is None:  # TopK with k = 5
            pre = torch.where(pre >= pre.sort(dim=1, descending=True).values[:, 4:5], pre, 0)
        codes = pre.clamp(min=0)
        return x + (edit(next(position), codes.clone()) - codes) @ dictionary.W_dec

    write_edit = PlainEdit(*where[dictionary.writes], write)
    return (
        [write_edit]
        if dictionary.reads == dictionary.writes
        else [
            PlainEdit(*where[dictionary.reads], remember),
            write_edit,
        ]
    )


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", LATENTS)
def test_latent_interventions_equal_a_plain_hook(pairs, case: str, kind: str, rule: Any) -> None:
    pair, dictionary = pairs["llama"], latents(case)
    make, change = KINDS[kind]

    def edit(position: int, codes: Tensor) -> Tensor:
        if reference.chosen(rule, position, PROMPT):
            codes[:, INDEX] = change(codes[:, INDEX])
        return codes

    expected = logits_under(pair.plain, TOKENS, plain_latents(pair, dictionary, edit))
    assert close(pair.logits([make(dictionary.feature(INDEX), rule)]), expected)


@pytest.mark.parametrize("case", LATENTS)
def test_a_later_change_of_a_latent_sees_what_an_earlier_one_left(pairs, case: str) -> None:
    """At other positions, and with an intervention elsewhere in between."""
    pair, dictionary = pairs["llama"], latents(case)
    f = dictionary.feature(INDEX)

    def edit(position: int, codes: Tensor) -> Tensor:
        if position < PROMPT:
            codes[:, INDEX] = 2.0
        codes[:, INDEX] *= 3.0
        if position in (0, 7):
            codes[:, INDEX] += 1.0
            codes[:, 3] += 0.5
        return codes

    plain = [*plain_latents(pair, dictionary, edit), pair.edit("post", torch.zeros_like, "all", 5, 2)]
    edits = [
        wb.Clamp(f, 2.0, positions="prompt"),
        wb.Scale(f, 3.0),
        wb.Ablate("neurons.2.post:5"),
        wb.Steer(f, 1.0, positions=[0, 7]),
        wb.Steer(dictionary.feature(3), 0.5, positions=[0, 7]),
    ]
    assert close(pair.logits(edits), logits_under(pair.plain, TOKENS, plain))


@pytest.mark.parametrize("case", LATENTS)
def test_latents_that_keep_their_value_change_no_bit(pairs, case: str) -> None:
    model, dictionary = pairs["llama"].model, latents(case)
    f, plain = dictionary.feature(INDEX), model(TOKENS)
    there = model.capture(TOKENS, [dictionary.reads])[dictionary.reads].flatten(2)
    values = dictionary.encode(there).value_of(INDEX)
    silent = [position for position in range(TOKENS.shape[1]) if not values[:, position].any()]
    for edits in ([wb.Scale(f, 1.0)], [wb.Steer(f, 0.0)], [wb.Clamp(f, 0.0, positions=silent)]):
        with model.intervening(edits):
            assert torch.equal(model(TOKENS), plain)
    with model.intervening([wb.Clamp(f, 3.0, positions=[4])]):
        after = model.capture(TOKENS, [dictionary.writes])[dictionary.writes]
    before = model.capture(TOKENS, [dictionary.writes])[dictionary.writes]
    others = torch.arange(TOKENS.shape[1]) != 4
    assert torch.equal(after[:, others], before[:, others])
    assert not torch.equal(after[:, 4], before[:, 4])


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("case", LATENTS)
def test_latents_with_and_without_cache(pairs, case: str, rule: Any) -> None:
    model, f = pairs["llama"].model, latents(case).feature(INDEX)
    edits = [wb.Clamp(f, 6.0, positions=rule), wb.Scale(f, 1.5, positions="generated")]
    written = model.generate(TOKENS[0, :PROMPT], 6, interventions=edits, stop=False).tokens
    with model.intervening(edits):
        whole = torch.cat([TOKENS[:1, :PROMPT], torch.tensor([written])], 1)
        uncached = model(whole, prompt_length=PROMPT)[0, PROMPT - 1 : -1]
    assert uncached.argmax(-1).tolist() == written


@pytest.mark.parametrize("case", LATENTS)
def test_mean_ablation_of_a_latent_leaves_out_first_tokens(pairs, case: str) -> None:
    pair, dictionary = pairs["llama"], latents(case)
    block = pair.plain.model.layers[LAYER]
    place, side = {
        RESID: (block, "out"),
        HEADS: (block.self_attn.o_proj, "in"),
        MLP_IN: (block.post_attention_layernorm, "out"),
    }[dictionary.reads]
    rows = [tiny.tokenizer()(text).input_ids[: tiny.CONTEXT] for text in REFERENCE_TEXTS]
    seen = [seen_at(pair.plain, place, side, torch.tensor([row]))[0, 1:] for row in rows]  # [pos, 32] each
    values = [dictionary.encode(x).dense()[:, INDEX] for x in seen]
    mean = float(torch.cat(values).double().mean())
    assert mean_value(pair.model, dictionary, INDEX) == pytest.approx(mean, rel=1e-4)
    f = dictionary.feature(INDEX)
    assert close(pair.logits([wb.Ablate(f, "mean")]), pair.logits([wb.Clamp(f, mean)]))


def test_latents_in_a_file(pairs, tmp_path) -> None:
    model, file = pairs["llama"].model, tmp_path / "edits.json"
    one, other = latents("on heads"), latents("of a transcoder")
    other.name = "other"
    edits = [wb.Clamp(one.feature(3), 2.0), wb.Scale("neurons.1.gate:7", 2.0), wb.Steer(other.feature(4), 1.5)]
    wb.interventions.save_interventions(file, model, edits)
    said = json.loads(file.read_text())["dictionaries"]
    assert said == [{"name": "mine", "hash": one.hash}, {"name": "other", "hash": other.hash}]
    stranger = latents("on heads", seed=5)  # the same name, other weights
    loaded = wb.interventions.load_interventions(file, model, [stranger, other, one])
    assert loaded == edits
    assert loaded[0].feature.source is one
    assert torch.equal(pairs["llama"].logits(loaded), pairs["llama"].logits(edits))
    for given, words in (
        ([other], "need the dictionary mine"),
        ([stranger, other], "with mine of the hash"),
        ([], "mine"),
    ):
        with pytest.raises(wb.dictionaries.DictionaryError, match=words):
            wb.interventions.load_interventions(file, model, given)
    with pytest.raises(wb.dictionaries.DictionaryError, match="are called mine"):
        wb.interventions.save_interventions(
            file, model, [wb.Clamp(one.feature(3), 2.0), wb.Clamp(stranger.feature(3), 2.0)]
        )
    assert wb.interventions.load_interventions(file, model, [one, other]) == edits, "the file was touched"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TopKSAE(32, 48, 5, name="mine"), "mine does not say where"),
        (lambda: TopKSAE(16, 48, 5, hook_point=RESID, name="mine"), "mine reads activations of width 16"),
        (lambda: SkipTranscoder(32, 48, d_out=8, reads=MLP_IN, writes=MLP_OUT, name="mine"), "mine writes activations"),
        (lambda: SkipTranscoder(32, 48, reads=MLP_OUT, writes=MLP_IN, name="mine"), "mine can't act"),
    ],
)
def test_latents_that_cannot_act_are_refused(pairs, make: Any, words: str) -> None:
    model = pairs["llama"].model
    with (
        pytest.raises(wb.dictionaries.DictionaryError, match=words),
        model.intervening([wb.Clamp(make().feature(3), 1.0)]),
    ):
        pytest.fail("the block was entered")
    with (
        pytest.raises(wb.model.EditError, match="position 40"),
        model.intervening([wb.Clamp(latents("on heads").feature(3), 1.0, positions=[40])]),
    ):
        model(TOKENS)


# --- hook points that only the bridge has, and other names for one place


def test_normalised_residual_and_its_closed_form(pairs) -> None:
    """Adding v behind the division by the norm adds gain * v to the norm's output."""
    pair = pairs["llama"]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(5))
    norm = pair.plain.model.layers[0].input_layernorm
    plain = [PlainEdit(norm, "out", lambda vector: vector + norm.weight.detach() * direction, "prompt")]
    expected = logits_under(pair.plain, TOKENS, plain, PROMPT)
    steer = wb.Steer.along("blocks.0.ln1.hook_normalized", direction, positions="prompt")
    assert torch.allclose(pair.logits([steer]), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, logits_under(pair.plain, TOKENS), rtol=0, atol=1e-2)


def test_rotated_queries_against_queries_rotated_by_hand(pairs) -> None:
    """Adding v to the rotated query at a position adds v, rotated back, to the query before."""
    pair = pairs["llama"]
    direction = torch.randn(4, 8, generator=torch.Generator().manual_seed(6))
    position = 4
    angles = position * 10000.0 ** -(torch.arange(4) / 4)  # pairs of dimensions (i, i + 4) turn together
    cos, sin = angles.cos(), angles.sin()
    first, second = direction[:, :4], direction[:, 4:]
    back = torch.cat([first * cos + second * sin, second * cos - first * sin], -1)
    queries = pair.plain.model.layers[1].self_attn.q_proj
    plain = [PlainEdit(queries, "out", lambda vector: vector + back.flatten(), (position,))]
    expected = logits_under(pair.plain, TOKENS, plain)
    steer = wb.Steer.along("blocks.1.attn.hook_rot_q", direction, positions=[position])
    found = pair.logits([steer])
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(found, logits_under(pair.plain, TOKENS), rtol=0, atol=1e-2)


def test_queries_that_the_plain_model_computes_fused(pairs) -> None:
    """GPT-2 has one projection for queries, keys and values; only the bridge shows them apart."""
    pair = pairs["gpt2"]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(7))
    fused = pair.plain.transformer.h[1].attn.c_attn
    padded = torch.cat([direction, torch.zeros(64)])
    expected = logits_under(pair.plain, TOKENS, [PlainEdit(fused, "out", lambda vector: vector + padded, (2, 6))])
    steer = wb.Steer.along("blocks.1.attn.hook_q", direction, positions=[2, 6])
    assert torch.allclose(pair.logits([steer]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_steering_the_position_embedding_is_steering_the_token_embedding(pairs, rule: Any) -> None:
    """GPT-2 adds the two; it embeds the positions once for all rows, which must not show."""
    pair = pairs["gpt2"]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(10))
    found = [pair.logits([wb.Steer.along(n, direction, positions=rule)]) for n in ("hook_pos_embed", "hook_embed")]
    assert torch.allclose(*found, rtol=0, atol=1e-4)
    assert not torch.allclose(found[0], pair.model(TOKENS), atol=1e-2)


def test_plain_and_bridge_edits_mix(pairs) -> None:
    pair = pairs["llama"]
    direction = torch.ones(32)
    norm = pair.plain.model.layers[0].input_layernorm
    plain = [
        pair.edit("gate", lambda old: torch.full_like(old, 3.0), "all"),
        PlainEdit(norm, "out", lambda vector: vector + 0.3 * norm.weight.detach()),
    ]
    edits = [wb.Clamp("neurons.1.gate:7", 3.0), wb.Steer.along("blocks.0.ln1.hook_normalized", direction, 0.3)]
    assert torch.allclose(pair.logits(edits), logits_under(pair.plain, TOKENS, plain), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("blocks.1.hook_resid_post", "blocks.1.hook_out"),
        ("blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out"),
        ("blocks.1.mlp.hook_pre", "blocks.1.mlp.gate.hook_out"),
        ("blocks.1.attn.hook_v", "blocks.1.attn.v.hook_out"),
        ("hook_embed", "embed.hook_out"),
        ("hook_unembed", "unembed.hook_out"),
    ],
)
def test_two_names_of_one_place(pairs, one: str, other: str) -> None:
    pair = pairs["llama"]
    width = pair.model.hook_points[one].width
    direction = torch.randn(width, generator=torch.Generator().manual_seed(8))
    found = [pair.logits([wb.Steer.along(name, direction, 0.5)]) for name in (one, other)]
    twice = pair.logits([wb.Steer.along(one, direction, 0.25), wb.Steer.along(other, direction, 0.25)])
    assert torch.equal(*found)
    assert close(twice, found[0])
    assert not close(twice, pair.model(TOKENS))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_logits_can_be_edited_while_generating(pairs, rule: Any) -> None:
    """A bias on one logit at some positions makes exactly the tokens chosen there this token."""
    model, favourite = pairs["llama"].model, 123
    bias = torch.zeros(tiny.VOCAB)
    bias[favourite] = 100.0
    steer = wb.Steer.along("hook_unembed", bias, positions=rule)
    written = model.generate(TOKENS[0, :PROMPT], 4, interventions=[steer], stop=False).tokens
    chosen_at = range(PROMPT - 1, PROMPT + 3)  # the position whose logits choose each new token
    assert [token == favourite for token in written] == [reference.chosen(rule, at, PROMPT) for at in chosen_at]


def test_both_sides_of_a_name_clash_stay_apart(pairs) -> None:
    """Two loaded dictionaries with the same name are two dictionaries."""
    model = pairs["llama"].model
    one = Neurons("mine", "blocks.0.mlp.hook_post", 48)
    other = Neurons("mine", "blocks.1.mlp.hook_post", 48)
    seen = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
    with model.intervening([wb.Clamp(one.feature(3), 5.0), wb.Clamp(other.feature(4), 6.0)]):
        found = model.capture(TOKENS, seen)
    assert (found[seen[0]][..., 3] == 5).all()
    assert (found[seen[1]][..., 4] == 6).all()
    assert not (found[seen[0]][..., 4] == 6).any()


# --- with and without the key-value cache


@pytest.mark.parametrize("rule", ["all", "prompt", "generated", (0, 3, 7)], ids=str)
@pytest.mark.parametrize("kind", ["clamp", "scale", "steer"])
@pytest.mark.parametrize(("name", "site"), PLACES)
def test_cached_generation_equals_full_passes(pairs, name: str, site: str, kind: str, rule: Any) -> None:
    pair = pairs[name]
    make, change = KINDS[kind]
    expected, logprobs = greedy(pair.plain, TOKENS[:1, :PROMPT], 6, [pair.edit(site, change, rule)])
    edits = [make(f"neurons.{LAYER}.{site}:{INDEX}", rule)]
    written = pair.model.generate(TOKENS[0, :PROMPT], 6, interventions=edits, stop=False)
    assert written.tokens == expected
    assert written.logprobs == pytest.approx(logprobs, abs=1e-4)
    whole = torch.cat([TOKENS[:1, :PROMPT], torch.tensor([expected])], 1)
    with pair.model.intervening(edits):
        uncached = pair.model(whole, prompt_length=PROMPT)[0, PROMPT - 1 : -1]
    assert uncached.argmax(-1).tolist() == expected


BRIDGE_ONLY = [
    ("llama", "blocks.1.ln1.hook_normalized"),
    ("llama", "blocks.1.attn.hook_rot_q"),
    ("llama", "blocks.1.attn.hook_rot_k"),
    ("mistral", "blocks.1.attn.hook_rot_q"),
    ("qwen2", "blocks.1.ln2.hook_scale"),
    ("gpt2", "blocks.1.attn.hook_q"),
    ("neox", "blocks.1.attn.hook_v"),
]


@pytest.mark.parametrize("rule", ["all", "prompt", "generated", (2, 8)], ids=str)
@pytest.mark.parametrize(("name", "hook"), BRIDGE_ONLY)
def test_bridge_edits_agree_with_and_without_cache(zoo, name: str, hook: str, rule: Any) -> None:
    model = zoo[name]
    point = model.hook_points[hook]
    assert point.module is None
    direction = torch.randn(point.width, generator=torch.Generator().manual_seed(9))
    edits = [wb.Steer.along(hook, direction, 0.7, positions=rule)]
    written = model.generate(TOKENS[0, :PROMPT], 12, interventions=edits, stop=False).tokens
    with model.intervening(edits):
        whole = torch.cat([TOKENS[:1, :PROMPT], torch.tensor([written])], 1)
        uncached = model(whole, prompt_length=PROMPT)[0, PROMPT - 1 : -1]
    assert uncached.argmax(-1).tolist() == written
    # the same vector added to every key shifts all scores of a query alike, which the softmax does not see
    without_effect = hook.endswith("hook_rot_k") and rule == "all"
    assert torch.allclose(uncached, model(whole)[0, PROMPT - 1 : -1], atol=1e-3) == without_effect


@pytest.mark.real
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_default_model_clamped_equals_a_plain_hook(model, plain_default, rule: Any) -> None:
    tokens = model.to_tokens("My favourite animal is a very small and")
    prompt = 4
    edits = [wb.Clamp("neurons.29.gate:808", 20.0, positions=rule), wb.Scale("neurons.23.up:1413", -3.0)]
    plain = [
        PlainEdit(*tiny.mlp(plain_default, 29)["gate"], at_index(808, lambda old: torch.full_like(old, 20.0)), rule),
        PlainEdit(*tiny.mlp(plain_default, 23)["up"], at_index(1413, lambda old: old * -3.0)),
    ]
    with model.intervening(edits):
        found = model(tokens, prompt_length=prompt)
    assert torch.allclose(found, logits_under(plain_default, tokens, plain, prompt), rtol=0, atol=1e-4)


@pytest.mark.real
@pytest.mark.parametrize("rule", ["all", "prompt", "generated"])
def test_default_model_clamped_writes_the_same_with_and_without_cache(model, plain_default, rule: Any) -> None:
    tokens = model.to_tokens("My favourite animal is a")
    edits = [wb.Clamp("neurons.29.gate:808", 40.0, positions=rule), wb.Clamp("neurons.20.post:3", 9.0, positions=rule)]
    written = model.generate(tokens, 8, interventions=edits, stop=False)
    plain = [
        PlainEdit(*tiny.mlp(plain_default, 29)["gate"], at_index(808, lambda old: torch.full_like(old, 40.0)), rule),
        PlainEdit(*tiny.mlp(plain_default, 20)["post"], at_index(3, lambda old: torch.full_like(old, 9.0)), rule),
    ]
    whole = torch.cat([tokens, torch.tensor([written.tokens])], 1)
    prompt = tokens.shape[1]
    uncached = logits_under(plain_default, whole, plain, prompt)[0, prompt - 1 : -1].log_softmax(-1)
    assert uncached.argmax(-1).tolist() == written.tokens
    assert written.logprobs == pytest.approx(uncached.amax(-1).tolist(), abs=1e-4)
