"""`bake` against plain hooks on plain Hugging Face models, on every architecture of the tiny zoo and some more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import tiny
import torch
from bake_models import HOLDS_CONSTANTS, MODELS, off, opened, parts, tokens, vector
from reference import PlainEdit, at_index, logits_under
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

import workbench as wb
from workbench.surgery.bake.bake import BakeError, unbakeable

CHANGES: dict[str, tuple[Callable, Callable[[Tensor], Tensor]]] = {
    "clamp": (lambda f: wb.Clamp(f, 2.5), lambda v: torch.full_like(v, 2.5)),
    "scale": (lambda f: wb.Scale(f, -1.75), lambda v: -1.75 * v),
    "ablate": (wb.Ablate, torch.zeros_like),
    "steer": (lambda f: wb.Steer(f, 1.5), lambda v: v + 1.5),
}
WITHOUT_BIAS = ("scale", "ablate")


@pytest.mark.usefixtures("tiny_cache")
@pytest.mark.parametrize("name", MODELS)
def test_every_edit_of_a_neuron_at_every_site(name: str) -> None:
    plain, model = opened(name)
    before = logits_under(plain, tokens())
    for site, (module, side) in tiny.mlp(plain, 1).items():
        for kind, (edit, change) in CHANGES.items():
            edits = [edit(f"neurons.1.{site}:7")]
            if name not in HOLDS_CONSTANTS and kind not in WITHOUT_BIAS:
                if kind != "clamp":
                    continue
                with pytest.raises(BakeError, match=r"takes a bias at .* has no place"):
                    wb.bake(model, edits)
                continue
            wanted = logits_under(plain, tokens(), [PlainEdit(module, side, at_index(7, change))])
            child = wb.bake(model, edits)
            assert off(child, wanted) < 2e-6, (site, kind)
            assert float((wanted - before).abs().max()) > 1e-2, "the edit has to matter"
    assert torch.equal(model(tokens()), before), "the parent is as it was"


@pytest.mark.usefixtures("tiny_cache")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_edits_of_one_neuron_act_in_order(name: str) -> None:
    plain, model = opened(name)
    for site, (module, side) in tiny.mlp(plain, 0).items():
        feature = f"neurons.0.{site}:5"
        one, other = wb.Clamp(feature, 3.0), wb.Scale(feature, -2.0)
        mean = wb.Ablate(feature, "mean", 0.5)
        for edits, value in (([other, one], 3.0), ([one, mean, wb.Steer(feature, 1.0), other], -3.0)):
            hook = PlainEdit(module, side, at_index(5, lambda v, value=value: torch.full_like(v, value)))
            assert off(wb.bake(model, edits), logits_under(plain, tokens(), [hook])) < 2e-6, (site, edits)


@pytest.mark.usefixtures("tiny_cache")
@pytest.mark.parametrize("name", MODELS)
def test_a_direction_is_taken_out_of_every_writer(name: str) -> None:
    plain, model = opened(name)
    direction = vector(32)
    unit = direction / direction.norm()
    where = parts(plain)
    hooks = [
        PlainEdit(module, "out", lambda x: x - (x @ unit)[:, None] * unit)
        for module in [*where.embeddings, *where.attention, *where.mlp]
    ]
    child = wb.bake(model, [wb.interventions.AblateDirection(direction)])
    assert off(child, logits_under(plain, tokens(), hooks)) < 1e-5
    with torch.inference_mode():
        stream = child.model.capture(tokens(), ["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"]
    assert float((stream @ unit).abs().max()) < 1e-5 * float(stream.norm(dim=-1).max())
    head = child.model.network.module.get_output_embeddings().weight
    assert torch.equal(head, plain.get_output_embeddings().weight), "what reads from the stream is left alone"


@pytest.mark.usefixtures("tiny_cache")
@pytest.mark.parametrize("name", MODELS)
def test_heads_and_sublayers(name: str) -> None:
    plain, model = opened(name)
    where = parts(plain)

    def without_head(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, 16:24] = 0  # head 2 of 4, each 8 wide
        return z

    cases = {
        wb.interventions.RemoveHead(1, 2): PlainEdit(where.out[1], "in", without_head),
        wb.interventions.RemoveSublayer(0, "attention"): PlainEdit(where.attention[0], "out", torch.zeros_like),
        wb.interventions.RemoveSublayer(1, "mlp"): PlainEdit(where.mlp[1], "out", torch.zeros_like),
    }
    for edit, hook in cases.items():
        wanted = logits_under(plain, tokens(), [hook])
        assert off(wb.bake(model, [edit]), wanted) < 2e-6, edit
        with model.intervening([edit]):
            assert torch.allclose(model(tokens()), wanted, atol=2e-6 * float(wanted.abs().max())), edit


@pytest.mark.usefixtures("tiny_cache")
@pytest.mark.parametrize("name", MODELS)
def test_a_removed_layer_is_gone(name: str) -> None:
    plain, model = opened(name)
    count = model.network.n_layers
    for layer in (0, count - 1):
        shorter = copy.deepcopy(plain)
        del parts(shorter).layers[layer]
        shorter.config.num_hidden_layers = count - 1
        wanted = logits_under(shorter, tokens())
        child = wb.bake(model, [wb.interventions.RemoveLayer(layer)])
        assert child.model.network.n_layers == count - 1
        assert child.own == ()
        assert off(child, wanted) < 2e-6
        with model.intervening([wb.interventions.RemoveLayer(layer)]):
            assert torch.allclose(model(tokens()), wanted, atol=2e-6 * float(wanted.abs().max()))


@pytest.mark.usefixtures("tiny_cache")
@pytest.mark.parametrize("name", MODELS)
def test_constants_in_the_stream(name: str) -> None:
    plain, model = opened(name)
    added = 0.5 * vector(32, 1)
    where = parts(plain)
    cases = {
        "blocks.0.hook_resid_pre": PlainEdit(where.layers[0], "in", lambda x: x + added),
        "blocks.1.hook_resid_pre": PlainEdit(where.layers[1], "in", lambda x: x + added),
        "blocks.1.hook_resid_post": PlainEdit(where.layers[1], "out", lambda x: x + added),
        "blocks.0.hook_attn_out": PlainEdit(where.attention[0], "out", lambda x: x + added),
        "blocks.0.hook_mlp_out": PlainEdit(where.mlp[0], "out", lambda x: x + added),
        "blocks.1.attn.hook_z": PlainEdit(where.out[1], "in", lambda x: x + added),
    }
    for point, hook in cases.items():
        edits = [wb.Steer.along(point, added)]
        embedded, attention = point == "blocks.0.hook_resid_pre", ".attn" in point or "_attn" in point
        if name not in HOLDS_CONSTANTS and not embedded and not (name == "gemma" and attention):
            with pytest.raises(BakeError, match="has no place"):
                wb.bake(model, edits)
            continue
        child = wb.bake(model, edits)
        assert off(child, logits_under(plain, tokens(), [hook])) < 2e-6, point


@pytest.mark.usefixtures("tiny_cache")
@pytest.mark.parametrize("name", HOLDS_CONSTANTS)
def test_many_at_once_are_folded_in_the_order_of_computation(name: str) -> None:
    plain, model = opened(name)
    where, sites = parts(plain), tiny.mlp(plain, 1)
    direction, added = vector(32, 2), vector(32, 3)
    unit = direction / direction.norm()
    post = sites["post"]
    edits = [
        wb.Steer.along("blocks.1.hook_resid_post", added),
        wb.interventions.AblateDirection(direction),
        wb.Clamp("neurons.1.post:3", 4.0),
        wb.Scale("neurons.1.up:3", 2.0),
        wb.Scale("neurons.1.post:4", 0.5),
    ]
    hooks = [
        PlainEdit(sites["up"][0], sites["up"][1], at_index(3, lambda v: 2 * v)),
        PlainEdit(post[0], post[1], at_index(3, lambda v: torch.full_like(v, 4.0))),
        PlainEdit(post[0], post[1], at_index(4, lambda v: 0.5 * v)),
        *(
            PlainEdit(module, "out", lambda x: x - (x @ unit)[:, None] * unit)
            for module in [*where.embeddings, *where.attention, *where.mlp]
        ),
        PlainEdit(where.layers[1], "out", lambda x: x + added),
    ]
    wanted = logits_under(plain, tokens(), hooks)
    for order in (edits, edits[::-1]):
        assert off(wb.bake(model, order), wanted) < 1e-5


@pytest.mark.usefixtures("tiny_cache")
def test_what_is_removed_and_then_written_to_stays_for_the_constant() -> None:
    plain, model = opened("llama-biases")
    added, where = vector(32, 4), parts(plain)
    cut = [PlainEdit(module, "out", torch.zeros_like) for module in (where.attention[1], where.mlp[1])]
    wanted = logits_under(plain, tokens(), [*cut, PlainEdit(where.mlp[1], "out", lambda x: x + added)])
    child = wb.bake(model, [wb.interventions.RemoveLayer(1), wb.Steer.along("blocks.1.hook_mlp_out", added)])
    assert child.model.network.n_layers == 3
    assert off(child, wanted) < 2e-6
    other = wb.bake(model, [wb.Steer.along("blocks.1.hook_mlp_out", added), wb.interventions.RemoveLayer(1)])
    assert other.model.network.n_layers == 2
    assert off(other, logits_under(plain, tokens(), cut)) < 2e-6


@pytest.mark.usefixtures("tiny_cache")
def test_a_latent_can_be_added_and_not_held(llama: wb.model.LanguageModel) -> None:
    torch.manual_seed(0)
    sae = wb.TopKSAE(d_in=32, width=64, k=4)
    sae.reads = sae.writes = "blocks.1.hook_resid_post"
    plain = tiny.build("llama")
    added = 3.0 * sae.direction(9)
    hook = PlainEdit(plain.model.layers[1], "out", lambda x: x + added)
    assert off(wb.bake(llama, [wb.Steer(sae.feature(9), 3.0)]), logits_under(plain, tokens(), [hook])) < 2e-6
    for edit in (wb.Clamp(sae.feature(9), 3.0), wb.Scale(sae.feature(9), 2.0), wb.Ablate(sae.feature(9))):
        with pytest.raises(BakeError, match=r"can't be baked: it depends on the input: .*save_interventions\)\.$"):
            wb.bake(llama, [edit])
    codebook = wb.Codebook(d_in=32, n_codes=8, k=1)
    codebook.reads = codebook.writes = "blocks.1.hook_resid_post"
    with pytest.raises(BakeError, match="which code makes way"):
        wb.bake(llama, [wb.Force(codebook.feature(2))])


@pytest.mark.usefixtures("tiny_cache")
def test_what_weights_cant_hold_can_stay_beside_the_model(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae = wb.TopKSAE(d_in=32, width=64, k=4)
    sae.name, sae.reads = "latents", "blocks.2.hook_resid_post"
    sae.writes = sae.reads
    baked, kept = wb.Scale("neurons.0.up:3", 4.0), wb.Clamp(sae.feature(9), 3.0)
    later = wb.Clamp("neurons.1.post:1", 5.0, positions="generated")
    edits = [kept, baked, later]
    with pytest.raises(BakeError, match="beside=True") as refused:
        wb.bake(llama, edits)
    assert list(refused.value.reasons) == list(unbakeable(llama, edits)) == [0, 2]
    child = wb.bake(llama, edits, beside=True)
    assert child.beside == (kept, later)
    with torch.inference_mode():
        with llama.intervening(edits):
            wanted = llama(tokens(), prompt_length=10)
        with child.model.intervening(child.beside):
            found = child.model(tokens(), prompt_length=10)
    assert torch.allclose(found, wanted, atol=2e-5)
    child.certify(tokens=64)
    child.save_pretrained(tmp_path / "child")
    again = wb.load_model(tmp_path / "child")
    assert (
        tuple(wb.interventions.load_interventions(tmp_path / "child" / "interventions.json", again, [sae]))
        == child.beside
    )
    assert wb.surgery.open_child(tmp_path / "child", llama, [sae]).beside == child.beside


@pytest.mark.usefixtures("tiny_cache")
def test_what_stays_beside_must_see_what_it_saw(llama: wb.model.LanguageModel) -> None:
    here = wb.Clamp("neurons.1.post:1", 5.0, positions="prompt")
    for baked in (wb.Scale("neurons.1.post:1", 2.0), wb.Clamp("neurons.1.post:8", 2.0)):
        with pytest.raises(BakeError, match="acts where"):
            wb.bake(llama, [here, baked], beside=True)
    with pytest.raises(BakeError, match="layers have other numbers"):
        wb.bake(llama, [here, wb.interventions.RemoveLayer(0)], beside=True)
    with pytest.raises(BakeError, match="nothing else to bake"):
        wb.bake(llama, [here], beside=True)


@pytest.mark.usefixtures("tiny_cache")
@pytest.mark.parametrize(
    ("edits", "match"),
    [
        ([], "nothing to bake"),
        (wb.Clamp("neurons.0.gate:1", 1.0), "edits is a list of Interventions, not Clamp"),
        ([wb.Clamp("neurons.0.gate:1", 1.0, positions="prompt")], "some positions only"),
        ([wb.Clamp("neurons.0.gate:1", 1.0, positions=[3])], "some positions only"),
        ([wb.Steer.along("blocks.1.hook_resid_mid", [1.0] * 32)], "neither in front of a matrix nor behind one"),
        ([wb.Steer.along("ln_final.hook_out", [1.0] * 32)], "neither in front of a matrix nor behind one"),
        (
            [wb.interventions.RemoveLayer(0), wb.interventions.RemoveLayer(1), wb.interventions.RemoveLayer(2)],
            "All layers would be removed",
        ),
        ([wb.interventions.RemoveLayer(3)], "There is no layer 3"),
        ([wb.interventions.RemoveHead(0, 4)], "There is no head 4"),
        ([wb.interventions.RemoveSublayer(3, "mlp")], "There is no layer 3"),
        ([wb.interventions.AblateDirection([1.0] * 31)], "31 values"),
        ([wb.Clamp("neurons.0.gate:48", 1.0)], "48"),
        ([wb.Clamp("neurons.9.gate:4", 1.0)], "no layer 9"),
        ([wb.Scale("neurons.0.post:1", 3e38)] * 2, "not a finite number"),
    ],
)
def test_impossible_requests_get_a_sentence(llama: wb.model.LanguageModel, edits: list, match: str) -> None:
    with pytest.raises(ValueError, match=match) as refused:
        wb.bake(llama, edits)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: wb.interventions.AblateDirection([0.0] * 32), "not all zero"),
        (lambda: wb.interventions.AblateDirection([float("nan")] * 32), "finite"),
        (lambda: wb.interventions.AblateDirection("up"), "tensor or a list"),
        (lambda: wb.interventions.RemoveSublayer(0, "norm"), "'attention' or 'mlp'"),
        (lambda: wb.interventions.RemoveSublayer(-1, "mlp"), "layer is a whole number from 0, not -1"),
        (lambda: wb.interventions.RemoveLayer(True), "layer is a whole number from 0, not True"),
        (lambda: wb.interventions.RemoveHead(0, "1"), "head is a whole number from 0, not '1'"),
    ],
)
def test_edits_that_mean_nothing(make: Callable[[], object], match: str) -> None:
    with pytest.raises(wb.model.EditError, match=match):
        make()


@pytest.mark.usefixtures("tiny_cache")
def test_a_model_with_dictionaries_of_its_own_is_refused() -> None:
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    model.splices = {"blocks.0.attn.hook_z": wb.Codebook(d_in=32, n_codes=8, k=1)}
    with pytest.raises(wb.surgery.SurgeryError, match="runs through dictionaries"):
        wb.bake(model, [wb.interventions.RemoveLayer(0)])


@pytest.mark.usefixtures("tiny_cache")
def test_what_is_in_force_around_the_call_is_not_baked(llama: wb.model.LanguageModel) -> None:
    edits = [wb.Scale("neurons.1.up:7", 3.0)]
    alone = wb.bake(llama, edits)
    with llama.intervening([wb.Clamp("neurons.0.gate:1", 9.0)]):
        assert wb.bake(llama, edits).model.hash == alone.model.hash


@pytest.mark.usefixtures("tiny_cache")
def test_behind_a_norm_only_silence_can_be_baked() -> None:
    torch.manual_seed(0)
    size = {"vocab_size": tiny.VOCAB, "max_position_embeddings": tiny.CONTEXT, "hidden_size": 32, "head_dim": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    plain = Gemma2ForCausalLM(Gemma2Config(**size | heads, eos_token_id=0, bos_token_id=None, pad_token_id=1)).eval()
    model = wb.load_model(plain, tokenizer=tiny.tokenizer())
    wanted = logits_under(plain, tokens(), [PlainEdit(plain.model.layers[1].mlp, "out", torch.zeros_like)])
    assert off(wb.bake(model, [wb.interventions.RemoveSublayer(1, "mlp")]), wanted) < 2e-6
    with pytest.raises(BakeError, match="lies behind a norm"):
        wb.bake(model, [wb.interventions.AblateDirection(vector(32))])
    with pytest.raises(BakeError, match="goes through a norm first"):
        wb.bake(model, [wb.Steer.along("blocks.0.hook_resid_post", vector(32))])


def test_the_reference_hooks_do_what_they_say() -> None:
    """Without edits the plain pass is the plain model's."""
    plain = tiny.build("llama")
    with torch.no_grad():
        assert torch.equal(reference.logits_under(plain, tokens()), plain(input_ids=tokens()).logits)
