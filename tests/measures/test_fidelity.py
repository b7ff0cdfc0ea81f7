"""Fidelity against loops over windows and tokens, with plain PyTorch hooks on the plain model."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import workbench as wb
from workbench.core.text import counted
from workbench.corpus import Corpus, CorpusError
from workbench.dictionaries.relu import SkipTranscoder, StandardSAE
from workbench.dictionaries.topk import TopKSAE
from workbench.interventions.opening import load_model

RESID, MLP_IN, MLP_OUT = "blocks.1.hook_resid_post", "blocks.1.ln2.hook_out", "blocks.1.hook_mlp_out"
TEXTS = [
    "The dog ran to the river and the cat ran to the house.",
    "What is your favourite animal? <|end|> My favourite animal is a dog.",
    "Once upon a time there was a small green boat, which sailed over the wide water every morning.",
    "The cat and the mouse",
]


@pytest.fixture(scope="module")
def model(zoo) -> wb.model.LanguageModel:
    """The tiny Llama with a tokenizer that has a BOS token."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.bos_token = "<|user|>"
    return load_model(tiny.build("llama"), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def plain() -> Any:
    return tiny.build("llama")


def filled(dictionary: Any, seed: int) -> Any:
    chance = torch.Generator().manual_seed(seed)
    for parameter in dictionary.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=chance)
    return dictionary


def perfect() -> StandardSAE:
    """One latent for each direction of each coordinate."""
    dictionary = StandardSAE(32, 64, hook_point=MLP_OUT)
    dictionary.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)], 1))
    dictionary.W_dec.data = dictionary.W_enc.T.clone()
    return dictionary


def windows(model: wb.model.LanguageModel, context: int) -> list[tuple[int, list[int]]]:
    """The windows of each text, behind BOS, with the number of the text."""
    found = []
    for number, text in enumerate(TEXTS):
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        parts = -(-len(ids) // (context - 1))
        for part in range(parts):
            begin, end = part * len(ids) // parts, (part + 1) * len(ids) // parts
            found.append((number, [model.tokenizer.bos_token_id, *ids[begin:end]]))
    return found


def run(plain: Any, ids: list[int], write: Any = None, seen: dict | None = None) -> Tensor:
    """Log-probabilities `[pos, vocab]` of one window, layer 1's MLP output or block output changed by `write`."""
    seen = {} if seen is None else seen
    block = plain.model.layers[1]
    handles = [block.post_attention_layernorm.register_forward_hook(lambda m, a, out: seen.update({MLP_IN: out[0]}))]
    for name, module in ((MLP_OUT, block.mlp), (RESID, block)):

        def hook(m: Any, a: Any, out: Any, name: str = name) -> Any:
            value = out[0] if isinstance(out, tuple) else out
            seen[name] = value[0].clone()
            if write is None or write[0] != name:
                return None
            new = value.clone()
            for position, token in enumerate(ids):
                if token not in SPECIAL:
                    new[0, position] = write[1](seen, position)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return logits.double().log_softmax(-1)


SPECIAL = {0, 1, 2}
"""The tiny tokenizer's special tokens."""


def by_loops(
    plain: Any, model: wb.model.LanguageModel, dictionary: Any, context: int, rows: Any = None
) -> dict[str, Any]:
    """Every measure, token by token."""
    at = dictionary.writes
    seen: dict[str, Tensor] = {}
    l0, errors, cosines, targets, fired, ce, spliced, zero, kl = [], [], [], [], [], [], [], [], []
    for _, ids in windows(model, context) if rows is None else rows:
        original = run(plain, ids, seen=seen)
        reads, writes = seen[dictionary.reads], seen[at]
        through = run(plain, ids, (at, lambda s, p: dictionary.reconstruct(s[dictionary.reads][p][None])[0]))
        without = run(plain, ids, (at, lambda s, p: torch.zeros(32)))
        for position, token in enumerate(ids):
            if token in SPECIAL:
                continue
            made = dictionary.reconstruct(reads[position][None])[0].double()
            target = writes[position].double()
            dense = dictionary.encode(reads[position][None]).dense()[0]
            l0.append(int((dense != 0).sum()))
            fired.append((dense != 0).double())
            errors.append(float((made - target).square().sum()))
            cosines.append(float(made @ target / made.norm() / target.norm()) if made.any() else 0.0)
            targets.append(target)
            if position + 1 < len(ids) and ids[position + 1] not in SPECIAL:
                following = ids[position + 1]
                ce.append(-float(original[position, following]))
                spliced.append(-float(through[position, following]))
                zero.append(-float(without[position, following]))
                kl.append(float((original[position].exp() * (original[position] - through[position])).sum()))
    mean = torch.stack(targets).mean(0)
    variance = sum(float((target - mean).square().sum()) for target in targets)
    density = torch.stack(fired).mean(0)

    def average(values: list) -> float:
        return sum(values) / len(values)

    return {
        "tokens": len(l0),
        "predictions": len(ce),
        "l0": average(l0),
        "fvu": sum(errors) / variance,
        "cosine": average(cosines),
        "ce": average(ce),
        "ce_spliced": average(spliced),
        "ce_zero": average(zero),
        "loss_recovered": (average(zero) - average(spliced)) / (average(zero) - average(ce)),
        "kl": average(kl),
        "dead": float((density == 0).double().mean()),
        "density": density,
    }


DICTIONARIES = {
    "sae": lambda: filled(TopKSAE(32, 48, 5, hook_point=RESID), 0),
    "sae of the MLP": lambda: filled(StandardSAE(32, 40, hook_point=MLP_OUT), 1),
    "transcoder": lambda: filled(SkipTranscoder(32, 48, reads=MLP_IN, writes=MLP_OUT), 2),
    "zero": lambda: filled(StandardSAE(32, 40, hook_point=MLP_OUT), 3),
}


def agrees(found: wb.measures.Fidelity, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if name == "density":
            assert torch.allclose(found.density.double(), value, atol=1e-6)
        else:
            assert getattr(found, name) == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("context", [64, 9])
@pytest.mark.parametrize("case", ["sae", "sae of the MLP", "transcoder"])
def test_every_measure_equals_a_loop_over_tokens(model, plain, case: str, context: int) -> None:
    dictionary = DICTIONARIES[case]()
    found = wb.measure_fidelity(model, dictionary, Corpus(TEXTS), context=context, batch=3, resamples=10)
    expected = by_loops(plain, model, dictionary, context)
    agrees(found, expected)
    assert found.texts == len(TEXTS)


def test_several_at_once_equal_each_alone(model) -> None:
    several = [make() for make in DICTIONARIES.values()]
    together = wb.measures.measure_fidelities(model, several, Corpus(TEXTS), batch=2, resamples=20)
    for dictionary, found in zip(several, together, strict=True):
        alone = wb.measure_fidelity(model, dictionary, Corpus(TEXTS), batch=2, resamples=20)
        assert found.to_dict() == alone.to_dict()


def test_a_perfect_dictionary(model) -> None:
    found = wb.measure_fidelity(model, perfect(), Corpus(TEXTS), resamples=20)
    assert found.loss_recovered == pytest.approx(1, abs=1e-5)
    assert found.fvu == pytest.approx(0, abs=1e-9)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.cosine == pytest.approx(1)
    assert found.ce_spliced == pytest.approx(found.ce)
    assert found.l0 == 32
    assert found.intervals["loss_recovered"] == pytest.approx((1, 1), abs=1e-5)


def test_a_dictionary_that_says_zero(model) -> None:
    dictionary = perfect()
    dictionary.W_dec.data.zero_()
    found = wb.measure_fidelity(model, dictionary, Corpus(TEXTS), resamples=20)
    assert found.loss_recovered == 0
    assert found.ce_spliced == found.ce_zero
    assert found.fvu > 1, "the mean is a better guess than zero"
    assert found.cosine == 0
    dictionary.b_enc.data.fill_(-1e6)
    found = wb.measure_fidelity(model, dictionary, Corpus(TEXTS), resamples=20)
    assert (found.l0, found.dead) == (0, 1)
    assert not found.density.any()


def test_intervals_are_a_bootstrap_over_texts(model, plain) -> None:
    """The percentiles of drawing whole texts with replacement."""
    dictionary = DICTIONARIES["transcoder"]()
    rows = windows(model, 64)
    found = wb.measure_fidelity(model, dictionary, Corpus(TEXTS), resamples=6, seed=7)
    drawn = torch.randint(4, (6, 4), generator=torch.Generator().manual_seed(7)).tolist()
    loops = [by_loops(plain, model, dictionary, 64, [rows[text] for text in draw]) for draw in drawn]
    for name, (low, high) in found.intervals.items():
        ends = (
            torch.tensor([one[name] for one in loops]).double().quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        )
        assert (low, high) == pytest.approx(tuple(ends), rel=1e-3, abs=1e-4), name


def test_what_is_in_force_is_set_aside(model) -> None:
    dictionary = DICTIONARIES["sae"]()
    alone = wb.measure_fidelity(model, dictionary, Corpus(TEXTS), resamples=5)
    with model.intervening([wb.Clamp("neurons.1.gate:7", 9.0)]), model.spliced({RESID: dictionary}):
        again = wb.measure_fidelity(model, dictionary, Corpus(TEXTS), resamples=5)
    assert again.to_dict() == alone.to_dict()


def test_the_result_as_plain_data(model) -> None:
    found = wb.measure_fidelity(model, DICTIONARIES["sae"](), Corpus(TEXTS), resamples=5)
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert said["l0"] == found.l0 == 5
    assert len(said["density"]) == 48
    assert said["intervals"]["kl"] == list(found.intervals["kl"])


def test_tokens_cap_the_work_and_progress_is_told(model) -> None:
    told: list[float] = []
    how: dict[str, Any] = {"batch": 1, "resamples": 5, "progress": lambda share, _: told.append(share)}
    found = wb.measure_fidelity(model, DICTIONARIES["sae"](), Corpus(TEXTS), tokens=30, **how)
    assert found.tokens == 30
    assert told == sorted(told)
    assert told[-1] == 1.0
    stopped = wb.measure_fidelity(model, DICTIONARIES["sae"](), Corpus(TEXTS), cancel=lambda: True, **how)
    assert stopped.texts == 1


def test_refused_in_one_sentence(model) -> None:
    corpus = Corpus(TEXTS)
    for dictionary, words in (
        (TopKSAE(32, 48, 5), "does not say where"),
        (TopKSAE(16, 48, 5, hook_point=RESID), "width 16"),
    ):
        with pytest.raises(wb.dictionaries.DictionaryError, match=words):
            wb.measure_fidelity(model, dictionary, corpus)
    with pytest.raises(CorpusError, match="no two tokens"):
        wb.measure_fidelity(model, DICTIONARIES["sae"](), Corpus(["<|end|> <|end|>", "a"]))


@pytest.mark.parametrize("word", ["dog", "the"])
def test_one_activation_repeated_is_refused(model, word: str) -> None:
    """Every token's embedding is the same, so that no variance is there to explain."""
    dictionary = filled(StandardSAE(32, 40, hook_point="blocks.0.hook_resid_pre"), 4)
    same = Corpus([f" {word}" * 9, f" {word}" * 5])
    with pytest.raises(CorpusError, match=r"blocks\.0\.hook_resid_pre.*one and the same") as caught:
        wb.measure_fidelity(model, dictionary, same, resamples=5)
    assert "\n" not in str(caught.value)
    later = filled(StandardSAE(32, 40, hook_point=RESID), 4)
    assert wb.measure_fidelity(model, later, same, resamples=5).fvu > 0, "positions differ there"


def test_a_draw_without_variance_counts_for_no_interval(model) -> None:
    """Two texts of one token each: a draw of the same text twice has nothing to explain."""
    dictionary = filled(StandardSAE(32, 40, hook_point="blocks.0.hook_resid_pre"), 4)
    found = wb.measure_fidelity(model, dictionary, Corpus([" dog" * 4, " cat" * 4]), resamples=40)
    assert found.intervals["fvu"] == pytest.approx((found.fvu, found.fvu), rel=0.5)


@pytest.mark.real
def test_a_perfect_dictionary_on_the_default_model(model) -> None:
    real = wb.load_model()
    dictionary = StandardSAE(576, 1152, hook_point="blocks.15.hook_resid_post")
    dictionary.W_enc.copy_(torch.cat([torch.eye(576), -torch.eye(576)], 1))
    dictionary.W_dec.data = dictionary.W_enc.T.clone()
    found = wb.measure_fidelity(real, dictionary, Corpus(TEXTS), resamples=20)
    assert found.loss_recovered == pytest.approx(1, abs=1e-4)
    assert found.kl == pytest.approx(0, abs=1e-4)
    assert found.ce_zero > found.ce + 1


def test_printed_it_shows_its_intervals(model) -> None:
    found = wb.measure_fidelity(model, perfect(), Corpus(TEXTS), tokens=40, resamples=20)
    printed = str(found)
    for name, (low, high) in found.intervals.items():
        assert f"{getattr(found, name):.4g}   {low:.4g} to {high:.4g}" in next(
            line for line in printed.split("\n") if line.split()[0] == name
        )
    assert f"on {found.tokens} tokens of {counted(found.texts, 'text')}" in printed
