"""Findings against ablations that the test makes with hooks of its own on plain transformers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
import zoo
from torch import nn

import workbench as wb
from workbench.findings import Ablation, FindingError, places
from workbench.findings.subject import Subject

TEXT = "The dog ran to the river and the cat"
RESID = "blocks.1.hook_resid_post"


def loss(module: nn.Module, ids: torch.Tensor, target: int) -> float:
    with torch.no_grad():
        return -float(module(input_ids=ids).logits[0, -1].double().log_softmax(-1)[target])


@contextlib.contextmanager
def without(module: Any, code: str, sae: Any = None) -> Iterator[None]:
    """What `code` names taken out of a plain Llama."""
    numbers = [int(one) for one in re.findall(r"\d+", code)]
    layers, hooks = module.model.layers, []

    def zero(_, __, out):
        return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)

    def cut(places: slice):
        def hook(_, args):
            x = args[0].clone()
            x[..., places] = 0
            return (x,)

        return hook

    def subtract(_, __, out):
        x = out[0] if isinstance(out, tuple) else out
        x = x - sae.encode(x).value_of(numbers[0])[..., None] * sae.direction(numbers[0])
        return (x, *out[1:]) if isinstance(out, tuple) else x

    if "RemoveHead" in code:
        layer, head = numbers
        hooks.append(layers[layer].self_attn.o_proj.register_forward_pre_hook(cut(slice(8 * head, 8 * head + 8))))
    elif "RemoveLayer" in code:
        hooks += [getattr(layers[numbers[0]], part).register_forward_hook(zero) for part in ("self_attn", "mlp")]
    elif "neurons" in code:
        hooks.append(layers[numbers[0]].mlp.down_proj.register_forward_pre_hook(cut(slice(numbers[1], numbers[1] + 1))))
    else:
        hooks.append(layers[1].register_forward_hook(subtract))
    yield
    for hook in hooks:
        hook.remove()


def test_every_effect_is_that_of_a_plain_ablation():
    module, model = zoo.build("llama"), wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())
    sae = wb.TopKSAE(32, 24, 4, hook_point=RESID, name="s")
    found = wb.scan(model, TEXT, dictionaries=[sae], corpus=wb.Corpus([tiny.TEXT]), controls=3, tokens=60)
    assert {one.kind for one in found} >= {"head", "neuron", "latent", "layer", "token"}
    assert not found.notes
    ids = model.to_tokens(TEXT)
    target = int(module(input_ids=ids).logits[0, -1].argmax())
    plain = loss(module, ids, target)
    assert found.score == pytest.approx(-plain, abs=1e-5)
    for one in found:
        assert f"{abs(one.test.effect):.2g} nats" in one.sentence
        if one.kind == "token":
            continue
        code = one.test.call.partition("[")[2].partition("]")[0]
        with without(module, code, sae):
            assert one.test.effect == pytest.approx(loss(module, ids, target) - plain, abs=2e-4), one.sentence
        if one.kind == "head":
            layer, head = (int(number) for number in re.findall(r"\d+", code))
            others = []
            for other in {*range(4)} - {head}:
                with without(module, f"RemoveHead({layer}, {other})"):
                    others.append(loss(module, ids, target) - plain)
            assert sorted(one.test.random) == pytest.approx(sorted(others), abs=2e-4)
            shares = {share.label: share.value for share in wb.lens.attribute_logit(model, TEXT, detail="heads").shares}
            assert one.number == pytest.approx(shares[f"head {layer}.{head}"], abs=1e-5)
    scope: dict[str, Any] = {"wb": wb, "model": model, "dictionary": sae}
    for one in found:
        assert eval(one.call, scope) is not None
        exec(one.test.call, scope)
    assert [one.test.stands_out for one in found] == sorted((one.test.stands_out for one in found), reverse=True)


def test_an_effect_is_weighed_against_random_ones():
    strong = Ablation(0.5, [0.0, -0.6, 0.1], "heads of layer 1", "the log-probability of “a”", "")
    weak = Ablation(0.1, [0.2, 0.0, 0.1], "heads of layer 1", "it", "")
    against = Ablation(0.3, [0.0, 0.1], "heads of layer 1", "it", "", sign=-1)
    either = Ablation(-0.3, [0.1, 0.2], "latents", "it", "", sign=0)
    nothing = Ablation(0.0, [0.1, 0.2], "latents", "it", "", sign=0)
    alone = Ablation(0.3, [], "other tokens of the text", "it", "")
    assert (strong.as_much, strong.share, strong.stands_out) == (0, 0.0, True)
    assert "none of 3 random heads of layer 1 does as much" in strong.sentence
    assert (weak.as_much, weak.stands_out) == (2, False)
    assert "2 of 3 random heads of layer 1 do as much, so this is no more than random ones show" in weak.sentence
    assert not against.stands_out
    assert "does not rise" in against.sentence
    assert (either.stands_out, nothing.stands_out) == (True, False)
    assert "it is not needed here" in nothing.sentence
    assert not alone.stands_out
    assert "no other tokens of the text to compare with" in alone.sentence


def test_the_token_that_decides_is_found():
    truth = wb.circuits.induction_model(seed=3)
    text = "so Ann Bob now Cat Dan oh Ann"
    found = wb.scan(truth.model, text, ("Bob", "Dan"), top=1)
    token = next(one for one in found if one.kind == "token")
    assert any(f"“ {word}”" in token.sentence for word in ("Ann", "Bob"))
    assert token.test.effect > 5
    assert token.test.as_much <= 1  # the first "Ann" and "Bob" are needed, each alone
    head = next(one for one in found if one.kind == "head")
    layer, number = truth.heads.nonzero().tolist()[-1]
    assert f"Head {layer}.{number} adds" in head.sentence
    assert head.test.stands_out


def test_what_is_rare_in_an_index_is_unusual(tmp_path):
    model = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())
    sae = wb.TopKSAE(32, 200, 4, hook_point=RESID, name="s")
    index = wb.build_index(model, sae, wb.Corpus(tiny.TEXT.strip().split("\n")), tmp_path / "index", context=32)
    found = wb.scan(
        model, "A red house on Mars 1969", indexes=[wb.open_index(tmp_path / "index", model, sae)], controls=1
    )
    unusual = [one for one in found if one.kind == "unusual"]
    assert unusual
    codes = sae.encode(model.capture("A red house on Mars 1969", [RESID])[RESID])
    for one in unusual:
        number = int(re.search(r"s:(\d+)", one.sentence)[1])
        assert one.number == pytest.approx(float(index.statistics["density"][number]))
        assert float(codes.value_of(number).max()) > 0
    with pytest.raises(FindingError, match="no such dictionary"):
        wb.scan(model, TEXT, indexes=[wb.open_index(tmp_path / "index")])


@pytest.mark.parametrize("name", zoo.sample(1, without=zoo.UNOPENED))
def test_every_architecture_is_scanned_or_says_why_not(name):
    model = wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())
    found = wb.scan(model, TEXT, top=1, controls=1)
    kinds = {one.kind for one in found}
    for kind in ("head", "neuron", "layer", "token"):
        assert kind in kinds or any(kind in note for note in found.notes), (name, kind, found.notes)
    assert all(note.endswith(".") for note in found.notes)


def test_wrong_requests_are_one_sentence():
    model = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())
    neurons = wb.interventions.dictionary_of(model, "neurons.1.post:7")
    for how, words in [
        ({"target": (3, 3)}, "the same"),
        ({"target": "The dog ran"}, "tokens for this model"),
        ({"corpus": wb.Corpus([TEXT])}, "give dictionaries"),
        ({"dictionaries": [neurons]}, "belongs to the model"),
        ({"top": 0}, "top"),
    ]:
        with pytest.raises(wb.WorkbenchError, match=words):
            wb.scan(model, TEXT, **how)
    one = wb.scan(model, "a", top=1, controls=1)
    assert one.prompt == ["a"]


def test_slopes_by_gradients_and_by_small_steps_are_the_same():
    model = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())
    subject = Subject.of(model, TEXT, None, 3, 0)
    torch.testing.assert_close(
        torch.tensor(places._measured(subject)), torch.tensor(places._gradients(subject)), rtol=0.1, atol=5e-3
    )
