"""Other activations and layers that see ahead, against plain modules with the change written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
import tiny
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.core.hashing import fingerprint
from workbench.model.sampling import PromptError
from workbench.model.weights import parameters_of
from workbench.surgery.child import SurgeryError
from workbench.surgery.finetuning.batches import UNLABELLED
from workbench.surgery.finetuning.healing import heal
from workbench.surgery.finetuning.labelling import Labelled, label_scores, punctuation
from workbench.surgery.operations.activation_swap import PolyNorm, PolyReLU, Series, fit, swap_activation
from workbench.surgery.operations.causal_mask import both_ways, remove_causal_mask
from workbench.surgery.operations.custom import CustomChild
from workbench.surgery.operations.pruning import prune
from workbench.surgery.registry import Cancelled, apply_operation

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus([*tiny.TEXT.strip().split("\n"), tiny.TEXT])
TOKENS = torch.arange(24).view(2, 12) * 5 % tiny.VOCAB
HOW = {"tokens": 4 * 2 * 16, "batch": 2, "context": 16, "lr": 1e-3}


def test_activations_are_their_sums() -> None:
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    w = [0.3, -0.5, 0.7, 0.1]
    poly, norm, series = PolyReLU(3), PolyNorm(3), Series(3, torch.tensor([-1.0, 0.0, 0.5]))
    with torch.no_grad():
        for one in (poly, norm, series):
            one.weights.copy_(torch.tensor(w))
        series.scales.copy_(torch.tensor([1.0, 2.0, -1.0]))
    made = [one(x).detach() for one in (poly, norm, series)]
    for row in range(3):
        rms = [float((x[row] ** power).square().mean()) ** 0.5 for power in range(4)]
        for place in range(7):
            value = float(x[row, place])
            relu = max(value, 0.0)
            wanted = [
                w[0] + sum(w[i] * relu**i for i in (1, 2, 3)),
                w[0] + sum(w[i] * value**i / rms[i] for i in (1, 2, 3)),
                w[0] + w[1] * max(value + 1, 0) + w[2] * max(2 * value, 0) + w[3] * max(-value - 0.5, 0),
            ]
            assert [float(one[row, place]) for one in made] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("kind", [PolyReLU, PolyNorm])
def test_the_fit_is_the_best_there_is(kind: type[nn.Module]) -> None:
    x = 2 * torch.randn(200, 9, generator=torch.Generator().manual_seed(1))
    new, old = fit(kind(3), nn.SiLU(), x), nn.SiLU()
    terms = torch.stack([term.flatten() for term in new.terms(x)], 1).double()
    best = torch.linalg.lstsq(terms, old(x).flatten().double()).solution
    error = (new(x) - old(x)).double().square().mean()
    assert float(error) == pytest.approx(float((terms @ best - old(x).flatten()).square().mean()), rel=1e-3)
    relu = fit(PolyReLU(3), nn.ReLU(), x)
    assert torch.allclose(relu(x), x.relu(), atol=1e-3)


def acts(module: nn.Module) -> list[str]:
    return [path for path, _ in module.named_modules() if path.endswith((".act_fn", ".act"))]


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_relu_is_an_ordinary_checkpoint(name: str, zoo, tmp_path: Path) -> None:
    child, plain = swap_activation(zoo[name], "relu"), tiny.build(name)
    for path in acts(plain):
        plain.set_submodule(path, nn.ReLU())
    assert torch.allclose(child.model(TOKENS), reference.logits_under(plain, TOKENS), atol=1e-5)
    assert child.own == ()
    child.save_pretrained(tmp_path / "relu")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "relu", dtype=torch.float32)
    assert torch.allclose(reference.logits_under(loaded, TOKENS), child.model(TOKENS), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("kind", ["polyrelu", "polynorm", "series"])
def test_other_activations_run_and_learn_but_are_not_saved(name: str, kind: str, zoo, tmp_path: Path) -> None:
    model, plain = zoo[name], tiny.build(name)
    child = swap_activation(model, kind, corpus=CORPUS, tokens=60)
    for path in acts(plain):
        plain.set_submodule(path, child.model.network.module.get_submodule(path))
    assert torch.allclose(child.model(TOKENS), reference.logits_under(plain, TOKENS), atol=1e-5)
    assert not torch.allclose(child.model(TOKENS), model(TOKENS), atol=1e-3)
    assert fingerprint(parameters_of(model.network.module)) == model.weights_hash
    assert child.undo() is model
    for save in (child.save_pretrained, child.model.network.module.save_pretrained, _save_model(child.model)):
        with pytest.raises(SurgeryError, match=f"no {kind} activation"):
            save(tmp_path / "here")
    with pytest.raises(SurgeryError, match="would lose it, so do it first"):
        prune(child.model, score="magnitude")
    healed = heal(child, CORPUS, only=r"act", **HOW)
    assert isinstance(healed, CustomChild)
    assert all(".act" in one for one in healed.own)
    assert len(healed.own) == len(acts(plain)) * (3 if kind == "series" else 1)
    assert not torch.equal(healed.model(TOKENS), child.model(TOKENS))
    assert [step["operation"] for step in healed.history] == ["swap_activation", "heal"]
    assert len({model.hash, child.model.hash, healed.model.hash}) == 3
    low = heal(child, CORPUS, rank=1, **HOW)
    assert not any(".act" in one for one in low.own)
    seen = child.model.capture(TOKENS, ["blocks.0.mlp.hook_post"])["blocks.0.mlp.hook_post"]
    wanted = reference.seen_at(plain, tiny.mlp(plain, 0)["post"][0], "in", TOKENS)
    assert torch.allclose(seen, wanted, atol=1e-5)


def _save_model(model: wb.model.LanguageModel):
    return lambda folder: wb.interventions.save_model(model, folder)


def test_activations_that_cannot_be_swapped(llama: wb.model.LanguageModel) -> None:
    with pytest.raises(SurgeryError, match="kind is 'relu', 'polyrelu'"):
        swap_activation(llama, "tanh")
    for order in (0, 9, 2.5):
        with pytest.raises(SurgeryError, match="from 1 to 8"):
            swap_activation(llama, "series", order=order)  # type: ignore[arg-type]
    with pytest.raises(Cancelled):
        swap_activation(llama, "polynorm", corpus=CORPUS, cancel=lambda: True)
    assert apply_operation(llama, "swap_activation", kind="relu").model.network.config.hidden_act == "relu"


def slow_mask(length: int, real: list[bool], window: int | None = None) -> Tensor:
    """Who sees whom, one pair at a time."""
    return torch.tensor(
        [[real[j] and (window is None or abs(i - j) < window) for j in range(length)] for i in range(length)]
    )


def test_masks_both_ways() -> None:
    for real in ([True] * 5, [False, False, True, True, True], [True, True, True, False, False]):
        for window in (None, 2):
            wide = slow_mask(5, real, window)
            causal = wide & torch.ones(5, 5).tril().bool()
            made = both_ways(causal[None, None])[0, 0]
            rows = torch.tensor(real)
            assert torch.equal(made[rows], wide[rows])
            added = torch.zeros(5, 5).masked_fill(~causal, torch.finfo(torch.float32).min)
            assert torch.equal(both_ways(added[None, None])[0, 0] == 0, made)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_layers_see_ahead(name: str, implementation: str, tmp_path: Path) -> None:
    module = tiny.build(name, attn_implementation=implementation)
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    last = model.network.n_layers - 1
    child = remove_causal_mask(model, [last])
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    point = f"blocks.{last}.attn.hook_z"
    before = child.model.capture(TOKENS, [f"blocks.{last}.hook_resid_pre"], mask=mask)
    plain = model.capture(TOKENS, [f"blocks.{last}.hook_resid_pre"], mask=mask)
    assert all(
        torch.allclose(before[key], plain[key], atol=1e-5) for key in plain
    )  # the layers before are as they were
    made = child.model.capture(TOKENS, [point], mask=mask)[point]
    if (name, implementation) != ("neox", "eager"):  # its queries can't be seen then
        wanted = by_hand(model, TOKENS, mask, last, 8 if name == "mistral" else None)
        assert torch.allclose(made[mask], wanted[mask], atol=1e-4)
    changed = TOKENS.clone()
    changed[0, 6] = 99
    assert not torch.allclose(child.model(TOKENS)[0, 0], child.model(changed)[0, 0], atol=1e-4)
    assert torch.equal(model(TOKENS)[0, 0], model(changed)[0, 0])
    padded = torch.where(mask, TOKENS, 3)
    assert torch.allclose(child.model(padded, mask=mask)[1, :7], child.model(TOKENS[1:, :7])[0], atol=1e-4)
    with pytest.raises(PromptError, match="depend on later tokens"):
        child.model.generate(TOKENS[:1], 2)
    with pytest.raises(SurgeryError, match="some layers see ahead"):
        child.save_pretrained(tmp_path / "ahead")
    assert child.own == ()
    assert child.model.hash != model.hash


def turned(x: Tensor) -> Tensor:
    """The first two coordinates of `[batch, pos, heads, width]` turned by as many radians as the position says."""
    angle = torch.arange(x.shape[1])[:, None].float()
    first = x[..., 0] * angle.cos() - x[..., 1] * angle.sin()
    second = x[..., 1] * angle.cos() + x[..., 0] * angle.sin()
    return torch.cat([first[..., None], second[..., None], x[..., 2:]], -1)


def by_hand(model: wb.model.LanguageModel, tokens: Tensor, mask: Tensor, layer: int, window: int | None) -> Tensor:
    """Outputs of the heads `[batch, pos, heads, width]` where each token sees all real ones, from rotated queries and
    keys as the masked model has them: those of a single layer don't depend on its mask."""
    names = [f"blocks.{layer}.attn.hook_{kind}" for kind in ("rot_q", "rot_k", "v")]
    if names[0] not in model.hook_points:
        names[:2] = [f"blocks.{layer}.attn.hook_{kind}" for kind in ("q", "k")]
    q, k, v = model.capture(tokens, names, mask=mask).values()
    if q.shape[1] != tokens.shape[1]:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    if "NeoX" in type(model.network.module).__name__:  # two of eight coordinates are turned, by the position
        q, k = turned(q), turned(k)
    out = torch.zeros_like(q)
    share = q.shape[2] // k.shape[2]
    for row in range(len(tokens)):
        seen = slow_mask(tokens.shape[1], mask[row].tolist(), window)
        for head in range(q.shape[2]):
            scores = q[row, :, head] @ k[row, :, head // share].T / q.shape[-1] ** 0.5
            out[row, :, head] = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v[row, :, head // share]
    return out


def test_layers_that_cannot_see_ahead(llama: wb.model.LanguageModel) -> None:
    with pytest.raises(SurgeryError, match="There is no layer 3"):
        remove_causal_mask(llama, [0, 3])
    with pytest.raises(SurgeryError, match="No layer is named"):
        remove_causal_mask(llama, [])
    assert apply_operation(llama, "remove_causal_mask").history[-1]["layers"] == [0, 1, 2]


def test_punctuation_becomes_labels() -> None:
    corpus = wb.Corpus(["Well, The dog ran. Why? It's so; yes.", "Too short."])
    found = punctuation(corpus, words=8)
    assert found.words == [["well", "the", "dog", "ran", "why", "it's", "so", "yes"]]
    assert found.labels == [[1, 0, 0, 2, 0, 0, 0, 2]]
    assert found.names == ("none", "comma", "stop")
    with pytest.raises(SurgeryError, match="has 90 words"):
        punctuation(corpus, words=90)


def test_labels_stand_at_the_last_token_of_a_word(llama: wb.model.LanguageModel) -> None:
    texts = Labelled([["the", "dog", "xylophone"], ["cat"]], [[0, 1, 0], [1]], ("a", "b"))
    (batch,) = texts.batches(llama, batch=2, shuffle=False)
    a, b = texts.ids(llama).tolist()
    for row, (words, labels) in enumerate(zip(texts.words, texts.labels, strict=True)):
        place = 0
        for word, label in zip(words, labels, strict=True):
            ids = llama.to_tokens(f" {word}", start=False)[0].tolist()
            assert batch.tokens[row, place : place + len(ids)].tolist() == ids
            assert batch.labels[row, place : place + len(ids)].tolist() == [UNLABELLED] * (len(ids) - 1) + [
                [a, b][label]
            ]
            place += len(ids)
        assert not bool(batch.mask[row, place:].any())
    assert len(list(texts.batches(llama, batch=1, context=4, shuffle=False))) == 2
    with pytest.raises(SurgeryError, match="call them otherwise"):
        Labelled([["a"]], [[0]], ("a", "a")).ids(llama)


def test_seeing_ahead_helps_where_the_label_is_what_follows(llama: wb.model.LanguageModel) -> None:
    chance = torch.Generator().manual_seed(0)
    rows = [["ab"[int(bit)] for bit in torch.randint(2, (8,), generator=chance)] for _ in range(60)]
    labels = [[int(after == "b") for after in row[1:]] + [0] for row in rows]  # whether the next word is b
    texts = Labelled(rows, labels, ("none", "soon"))
    how = {"tokens": 100 * 4 * 10, "batch": 4, "context": 10, "lr": 5e-3}
    scores = {
        name: label_scores(heal(model, texts, **how).model, texts)
        for name, model in {"masked": llama, "ahead": remove_causal_mask(llama)}.items()
    }
    assert scores["masked"].accuracy < 0.72  # by chance 1/2, and the last word is known
    assert scores["ahead"].accuracy > 0.82
    assert scores["ahead"].f1 > scores["masked"].f1
