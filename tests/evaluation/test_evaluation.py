"""Losses, divergences, repetition and the bootstrap against closed forms in float64, loops and torch itself."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.evaluation import (
    EvaluationError,
    TextSums,
    bootstrap,
    cross_entropy,
    kl_divergence,
    perplexity,
    predictions,
    repetition,
    token_losses,
)
from workbench.evaluation.losses import POSITIONS

ROWS, POS, VOCAB = 3, 2 * POSITIONS + 5, 50


def random_logits(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*(shape or (ROWS, POS, VOCAB)), generator=torch.Generator().manual_seed(seed))


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape or (ROWS, POS), generator=torch.Generator().manual_seed(9))


def some_counted(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(8)) < 0.4


# ---- Cross-entropy


def test_cross_entropy_in_closed_form() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])  # probabilities 1/4 and 3/4, and 1/2 twice
    found = cross_entropy(logits, torch.tensor([1, 0]))
    assert found.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])
    tokens = torch.tensor([0, 1])  # of these, the second is predicted by the first row
    assert token_losses(logits, tokens).tolist() == pytest.approx([math.log(4 / 3)])


def test_token_losses_by_float64_and_by_torch() -> None:
    logits, tokens = random_logits(0), random_tokens()
    found = token_losses(logits, tokens)
    assert found.shape == (ROWS, POS - 1)
    assert found.dtype == torch.float32
    for row in range(ROWS):
        for at in range(POS - 1):
            wide = logits[row, at].double()
            expected = math.log(float(wide.exp().sum())) - float(wide[tokens[row, at + 1]])
            assert float(found[row, at]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    by_torch = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    assert torch.equal(found.flatten(), by_torch)


# ---- KL


def test_kl_in_closed_form() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([[0.25, 0.75], [0.25, 0.75]])
    found = kl_divergence(p.log(), q.log() + 7)  # a constant beside log-probabilities changes nothing
    assert found.tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0], abs=1e-7)


def test_kl_by_float64_and_by_torch() -> None:
    p, q = random_logits(1), random_logits(2)
    found = kl_divergence(p, q)
    assert found.shape == (ROWS, POS)
    assert found.dtype == torch.float32
    wide_p, wide_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    assert torch.allclose(found.double(), (wide_p.exp() * (wide_p - wide_q)).sum(-1), rtol=1e-5, atol=1e-6)
    by_torch = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True)
    assert torch.allclose(found, by_torch.sum(-1), rtol=1e-5, atol=1e-6)
    assert kl_divergence(p, p).abs().max() < 1e-6


def test_impossible_tokens() -> None:
    inf = torch.inf
    p = torch.tensor([[0.0, -inf, 0.0], [0.0, -inf, 0.0], [0.0, 0.0, -inf]])
    q = torch.tensor([[0.0, 0.0, 0.0], [0.0, -inf, 0.0], [0.0, -inf, 0.0]])
    assert kl_divergence(p, q).tolist() == pytest.approx([math.log(3 / 2), 0, inf])


def test_one_of_them_may_be_broadcast() -> None:
    plain, several = random_logits(3, 1, 7, VOCAB), random_logits(4, 4, 7, VOCAB)
    found = kl_divergence(plain, several)
    for side in range(4):
        assert torch.equal(found[side], kl_divergence(plain[0], several[side]))


def test_gradients_are_those_of_torch() -> None:
    p, q = random_logits(5), random_logits(6).requires_grad_()
    (mine,) = torch.autograd.grad(kl_divergence(p, q).sum(), q)
    by_torch = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="sum", log_target=True)
    (theirs,) = torch.autograd.grad(by_torch, q)
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-7)


# ---- All of them


@pytest.mark.parametrize("kind", ["cross-entropy", "KL"])
def test_only_counted_positions_are_computed(kind: str) -> None:
    counted = some_counted(ROWS, POS)
    counted[1] = False
    p, q, tokens = random_logits(1), random_logits(2), random_tokens()
    p[~counted] = torch.nan  # is never looked at
    if kind == "KL":
        found, alone = kl_divergence(p, q, counted), kl_divergence(p[counted], q[counted])
    else:
        found, alone = cross_entropy(p, tokens, counted), cross_entropy(p[counted], tokens[counted])
    assert torch.equal(found[counted], alone)
    assert not found[~counted].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    p, q, tokens = random_logits(1).to(dtype), random_logits(2).to(dtype), random_tokens()
    assert torch.equal(token_losses(p, tokens), token_losses(p.float(), tokens))
    assert torch.equal(kl_divergence(p, q), kl_divergence(p.float(), q.float()))


def test_neither_chunks_nor_other_rows_change_a_position(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q, tokens = random_logits(1), random_logits(2), random_tokens()
    losses, divergences = token_losses(p, tokens), kl_divergence(p, q)
    monkeypatch.setattr("workbench.evaluation.losses.POSITIONS", 3)
    assert torch.equal(token_losses(p, tokens), losses)
    assert torch.equal(kl_divergence(p, q), divergences)
    assert torch.equal(kl_divergence(p[1:2, 4:5], q[1:2, 4:5]), divergences[1:2, 4:5])


def test_memory_beyond_the_logits_is_that_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = []
    log_softmax = Tensor.log_softmax

    def watched(self: Tensor, dim: int) -> Tensor:
        largest.append(self.numel())
        return log_softmax(self, dim)

    monkeypatch.setattr(Tensor, "log_softmax", watched)
    logits = random_logits(1)
    token_losses(logits, random_tokens())
    kl_divergence(logits, logits, some_counted(ROWS, POS))
    assert max(largest) <= POSITIONS * VOCAB


def test_perplexity() -> None:
    assert perplexity(torch.tensor([[math.log(2.0)], [math.log(8.0)]])) == pytest.approx(4)
    assert perplexity(torch.tensor(math.log(3.0))) == pytest.approx(3)
    assert math.isnan(perplexity(torch.zeros(0)))
    assert perplexity(torch.tensor([1e4])) == math.inf


def test_predictions_are_from_a_counted_token_of_a_counted_one() -> None:
    content = torch.tensor([[True, True, False, True, True], [False, True, True, True, False]])
    assert predictions(content).tolist() == [[True, False, False, True], [False, True, True, False]]


def test_repetition() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
    assert repetition([7] * 12) == pytest.approx(9 / 10)
    assert repetition([1, 2, 1, 2, 1], n=2) == pytest.approx(2 / 4)
    assert repetition([1, 2, 3]) == repetition([]) == 0


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: cross_entropy(torch.zeros(3), torch.zeros(3).long()), "shape"),
        (lambda: cross_entropy(torch.zeros(2, 3, 5), torch.zeros(2, 4).long()), "same predictions"),
        (lambda: token_losses(torch.zeros(2, 3, 5), torch.zeros(2, 2).long()), "same predictions"),
        (lambda: kl_divergence(torch.zeros(2, 3, 5), torch.zeros(2, 4, 5)), "can't be compared"),
        (
            lambda: kl_divergence(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5), torch.ones(2, 2).bool()),
            "same predictions",
        ),
        (lambda: kl_divergence([0.0], torch.zeros(2, 3)), "p_logits is a Tensor"),
        (lambda: repetition([1, 2], n=0), "n is a whole number from 1"),
        (lambda: bootstrap({"a": torch.zeros(2), "b": torch.zeros(3)}, dict), "same texts"),
        (lambda: bootstrap({"a": torch.zeros(0)}, dict), "at least one"),
        (lambda: bootstrap({"a": torch.zeros(2)}, dict, 0), "resamples is a whole number from 1"),
    ],
)
def test_refused_in_one_sentence(act: Any, words: str) -> None:
    with pytest.raises(EvaluationError, match=words) as caught:
        act()
    assert "\n" not in str(caught.value)


# ---- Sums of texts and the bootstrap


def test_sums_of_texts_by_a_loop() -> None:
    texts = torch.tensor([5, 2, 5, 7, 2])
    losses, wide = random_logits(1, 5), random_logits(2, 5, 3)
    sums = TextSums()
    sums.add(texts[:3], losses=losses[:3], wide=wide[:3])
    sums.add(texts[3:], losses=losses[3:])
    sums.add(texts[3:4], wide=wide[3:4])
    found = sums.tensors()
    for row, text in enumerate([2, 5, 7]):
        mine = [at for at in range(5) if texts[at] == text]
        assert float(found["losses"][row]) == pytest.approx(sum(float(losses[at]) for at in mine))
        expected = sum(wide[at].double() for at in mine if at != 4)
        assert torch.allclose(found["wide"][row], torch.as_tensor(expected))
    assert found["losses"].dtype == torch.float64


def test_the_bootstrap_by_a_loop() -> None:
    counts, totals = torch.tensor([4.0, 1.0, 9.0, 2.0]), random_logits(3, 4)
    layers = random_logits(4, 4, 2)

    def measures(sums: Any) -> dict[str, Tensor]:
        return {"mean": sums["totals"] / sums["counts"], "layers": sums["layers"] / sums["counts"][:, None]}

    sums = {"counts": counts, "totals": totals, "layers": layers}
    found = bootstrap(sums, measures, resamples=40, seed=3)
    drawn = torch.randint(4, (40, 4), generator=torch.Generator().manual_seed(3)).tolist()
    ends = torch.tensor([0.025, 0.975]).double()
    means = [sum(float(totals[t]) for t in draw) / sum(float(counts[t]) for t in draw) for draw in drawn]
    assert float(found["mean"].value) == pytest.approx(float(totals.sum() / counts.sum()))
    assert found["mean"].interval == pytest.approx(tuple(torch.tensor(means).double().quantile(ends).tolist()))
    for layer in range(2):
        shares = [sum(float(layers[t, layer]) for t in draw) / sum(float(counts[t]) for t in draw) for draw in drawn]
        expected = tuple(torch.tensor(shares).double().quantile(ends).tolist())
        assert found["layers"].intervals[layer] == pytest.approx(expected)
        assert float(found["layers"].value[layer]) == pytest.approx(float(layers[:, layer].sum() / counts.sum()))


# ---- One kernel

WORKBENCH = Path(__file__).parents[2] / "workbench"
KERNEL = "evaluation/"
BELOW = ("core/", "corpus/", "figures/", "model/")
"""Rooms on the floors below, which can't import the kernel: sampling and the probabilities of sampled tokens."""
CALLS = {"cross_entropy", "nll_loss", "kl_div", "log_softmax", "logsumexp"}
CLASSES = {"CrossEntropyLoss", "NLLLoss", "KLDivLoss", "LogSoftmax"}
ALLOWED = {
    "circuits/position_runs.py": {"log_softmax"},  # compares two ways of one run
    "circuits/position_scores.py": {"logsumexp"},  # the joint probability of several answers
    "circuits/tasks.py": {"logsumexp"},  # the joint probability of several answers
    "dictionaries/key_value.py": {"cross_entropy"},  # the gradient of training
    "findings/places.py": {"log_softmax"},  # the slope of a prediction, and Python that is shown
    "labels/output.py": {"log_softmax", "logsumexp"},  # the joint probability of several tokens
    "lens/readout.py": {"logsumexp"},  # entropy, KL and top tokens of a row in one pass over it
    "sparsity/verification.py": {"cross_entropy"},  # shares nothing with what it verifies
    "surgery/finetuning/healer.py": {"cross_entropy"},  # the gradient of training
    "surgery/search/fitness.py": {"log_softmax"},  # keeps the dense model's log-probabilities in 16 bits
    "training/model_learner.py": {"cross_entropy"},  # the gradient of training
}
"""Calls that compute no loss to report, with the reason."""


def own_losses(source: str) -> set[str]:
    """Calls of a file that compute a loss or a divergence themselves, but for the kernel's own functions."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("workbench.evaluation")
        for alias in node.names
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in CALLS | CLASSES:
            found.add(node.attr)
        if isinstance(node, ast.Name) and node.id in CALLS | CLASSES and node.id not in imported:
            found.add(node.id)
    return found


FILES = sorted(path.relative_to(WORKBENCH).as_posix() for path in WORKBENCH.rglob("*.py"))


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith((KERNEL, *BELOW))])
def test_no_other_file_computes_a_loss(name: str) -> None:
    assert own_losses((WORKBENCH / name).read_text()) == ALLOWED.get(name, set())


def test_files_with_reasons_exist() -> None:
    assert set(ALLOWED) <= set(FILES)


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ("import torch\ntorch.nn.functional.cross_entropy(a, b)", {"cross_entropy"}),
        ("from torch.nn.functional import kl_div\nkl_div(a, b)", {"kl_div"}),
        ("x.log_softmax(-1)", {"log_softmax"}),
        ("nn.CrossEntropyLoss()", {"CrossEntropyLoss"}),
        ("from workbench.evaluation.losses import cross_entropy\ncross_entropy(a, b)", set()),
    ],
)
def test_own_losses_are_seen(source: str, calls: set[str]) -> None:
    assert own_losses(source) == calls
