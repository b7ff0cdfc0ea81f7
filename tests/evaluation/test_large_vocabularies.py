"""Memory for logits is bounded whatever the vocabulary; statistics are in float32 in every type."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

import workbench as wb
from workbench.evaluation import kl_divergence, runs, token_losses, windows_at_once
from workbench.model.decoding import DecodingStep
from workbench.model.generation import tokens_of
from workbench.surgery.certificate.certificate import certify

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus([f"{'The dog ran to the river. ' * (1 + number % 4)}And {number} cats." for number in range(12)])
MEASURES = ("tokens", "predictions", "fvu", "ce", "ce_spliced", "ce_zero", "kl")


def test_windows_at_once_are_few_where_the_vocabulary_is_large(
    llama: wb.model.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert windows_at_once(llama, 256, 4) == 4
    for vocab, windows in ((49_152, 5), (151_936, 1), (262_144, 1)):
        monkeypatch.setattr(llama.network, "vocab_size", vocab)
        assert windows_at_once(llama, 256, 16) == windows


def test_measures_are_the_same_in_small_runs(llama: wb.model.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    run = type(llama.network).run

    def watching(self: Any, *args: Any, **how: Any) -> torch.Tensor:
        nonlocal largest
        logits = run(self, *args, **how)
        largest = max(largest, logits.numel())
        return logits

    monkeypatch.setattr(type(llama.network), "run", watching)
    sae = wb.TopKSAE(d_in=32, width=48, k=4, hook_point="blocks.1.hook_resid_post")
    found = []
    for limit in (runs.LOGITS, 32 * tiny.VOCAB):
        monkeypatch.setattr(runs, "LOGITS", limit)
        largest = 0
        fidelity = wb.measure_fidelity(llama, sae, CORPUS, context=32).to_dict()
        sparsity, _ = wb.sparsity.measure_at_thresholds(llama, 0.2, CORPUS, 200, context=32, resamples=5)
        child = wb.bake(llama, [wb.Scale("neurons.0.post:3", 2.0)])
        certificate = certify(child, CORPUS, 200, context=32).to_dict()
        found.append([*(fidelity[name] for name in MEASURES), sparsity.sparsity, sparsity.ce])
        found[-1] += [certificate[name] for name in ("perplexity_before", "perplexity_after", "kl", "predictions")]
        if limit == 32 * tiny.VOCAB:
            assert largest <= limit
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6)


def test_a_fine_tune_learns_the_same_in_small_runs(
    llama: wb.model.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for limit in (runs.LOGITS, 64 * tiny.VOCAB):
        monkeypatch.setattr(runs, "LOGITS", limit)
        codes = {"blocks.1.hook_resid_post": wb.Codebook(32, 24)}
        lines: list[Any] = []
        how: dict[str, Any] = {"tokens": 300, "batch": 5, "context": 32, "log": lines.append}
        tuned = wb.training.fine_tune(llama, CORPUS, codes, **how)
        found.append((tuned(torch.arange(20)[None]), [line["loss"] for line in lines], lines[-1]["tokens"]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-3, atol=1e-3)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)
    assert found[1][2] == found[0][2]


def test_chunks_are_short_where_the_vocabulary_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = torch.Generator().manual_seed(0)
    p, q = (3 * torch.randn(2, 20, 50, generator=chance) for _ in range(2))
    tokens = torch.randint(50, (2, 20), generator=chance)
    wanted = kl_divergence(p, q), token_losses(p, tokens)
    monkeypatch.setattr("workbench.evaluation.losses.VALUES", 150)
    assert torch.equal(kl_divergence(p, q), wanted[0])
    assert torch.equal(token_losses(p, tokens), wanted[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_probabilities_are_in_float32(dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))).to(dtype)
    chosen = torch.tensor([4, 70, 900])
    found = tokens_of(DecodingStep(logits, chosen, *[(False,) * 3] * 2, [""] * 3, (False,) * 3))
    wanted = logits.double().log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
    assert [token.logprob for token in found if token] == pytest.approx(wanted.tolist(), abs=1e-5)


def test_an_edit_that_changes_nothing_is_no_change_in_16_bits() -> None:
    model = wb.load_model(tiny.build("llama").bfloat16(), tokenizer=tiny.tokenizer())
    for edits in ([wb.Scale("neurons.1.post:7", 1.0)], [wb.Scale("neurons.1.post:7", 30.0)]):
        both = wb.compare(model, "The dog ran to", edits, 40, stop=False)
        same = both.baseline.tokens == both.edited.tokens
        if edits[0].factor == 1.0:
            assert same
            assert both.kl == [0.0] * 40
            assert both.edited_perplexity == both.baseline_perplexity
            assert not both.top_changes
        else:
            assert max(both.kl) > 0
    plain = model.generate("The dog ran to", 40, stop=False)
    assert both.baseline.tokens == plain.tokens
