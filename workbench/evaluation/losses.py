"""Cross-entropy, KL divergence and perplexity of next-token predictions, in nats and in float32.

Every other room computes these here. Positions are processed in chunks of `POSITIONS`, or fewer where the vocabulary is
large: the matrices of log-probabilities `[chunk, vocab]` are freed before the next chunk, so that memory beyond the
logits themselves does not grow with positions times vocabulary. A position's value depends on its own logits alone, so
chunks do not change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from workbench.core.checks import Flags, Floats, Wholes, checked
from workbench.core.precision import in_float64
from workbench.evaluation.errors import EvaluationError

POSITIONS = 64
"""Positions of a chunk: at the default model's vocabulary the fastest size on CPUs."""
VALUES = 1 << 22
"""Logits of a chunk, at most."""


@checked(EvaluationError)
def cross_entropy(logits: Floats, targets: Wholes, counted: Flags | None = None) -> Tensor:
    """`-log p(target)` under the softmax of the logits at each position: `[..., pos]`, float32.

    Args:
        logits: `[..., pos, vocab]`, of any floating type.
        targets: token ids, `[..., pos]`.
        counted: bool `[..., pos]`, the positions to compute; elsewhere the result is 0. None computes all.

    Raises:
        EvaluationError: the shapes do not fit, or a result is NaN.
    """
    _check_shapes(logits, targets=targets, counted=counted)
    vocab = logits.shape[-1]
    at = targets if counted is None else targets[counted.to(targets.device)]
    if at.numel() and not 0 <= int(at.min()) <= int(at.max()) < vocab:
        raise EvaluationError(f"A target is a token from 0 to {vocab - 1:,}.")

    def loss(of: Tensor, target: Tensor) -> Tensor:
        return -of.float().log_softmax(-1).gather(-1, target[:, None])[:, 0]  # [chunk, vocab] to [chunk]

    return _at_positions(loss, counted, logits, targets.to(logits.device))


@checked(EvaluationError)
def token_losses(logits: Floats, tokens: Wholes, counted: Flags | None = None) -> Tensor:
    """Cross-entropy of each token given those before it: `[..., pos - 1]`, float32; the first token has none.

    Args:
        logits: `[..., pos, vocab]`, of a run over `tokens`.
        tokens: `[..., pos]`.
        counted: bool `[..., pos - 1]`, the predictions to compute (see `predictions`); elsewhere the result is 0.

    Raises:
        EvaluationError: the shapes do not fit, or a result is NaN.
    """
    _check_shapes(logits, tokens=tokens)
    return cross_entropy(logits[..., :-1, :], tokens[..., 1:], counted)


@checked(EvaluationError)
def kl_divergence(p_logits: Floats, q_logits: Floats, counted: Flags | None = None) -> Tensor:
    """KL(p ‖ q) = Σ p (log p - log q) at each position: `[..., pos]`, float32; gradients flow to both.

    A token with p = 0 adds nothing; one with p > 0 and q = 0 makes the divergence infinite. Rounding can leave a value
    slightly below 0 where p and q are equal.

    Args:
        p_logits: `[..., pos, vocab]`, of any floating type; log-probabilities are logits too.
        q_logits: of a shape that broadcasts with it.
        counted: bool `[..., pos]`, the positions to compute; elsewhere the result is 0. None computes all.

    Raises:
        EvaluationError: the shapes do not fit, or a result is NaN.
    """
    try:
        p_logits, q_logits = torch.broadcast_tensors(p_logits, q_logits)
    except RuntimeError as wrong:
        shapes = f"{list(p_logits.shape)} and {list(q_logits.shape)}"
        raise EvaluationError(f"Logits of the shapes {shapes} can't be compared; give the same tokens.") from wrong
    _check_shapes(p_logits, counted=counted)

    def divergence(p: Tensor, q: Tensor) -> Tensor:
        log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)  # [chunk, vocab]
        return torch.where(log_p == -torch.inf, 0, log_p.exp() * (log_p - log_q)).sum(-1)

    return _at_positions(divergence, counted, p_logits, q_logits)


@checked(EvaluationError)
def perplexity(losses: Floats) -> float:
    """The exponential of the mean of cross-entropies of any shape; NaN of none, infinite beyond float64's range."""
    return float(in_float64(losses).mean().exp())


@checked(EvaluationError)
def predictions(content: Flags) -> Tensor:
    """The predictions from a counted token of a counted next token: bool `[batch, pos - 1]`.

    Args:
        content: the tokens that count, bool `[batch, pos]`.
    """
    if content.ndim != 2:
        raise EvaluationError(f"content has the shape [batch, pos], not {list(content.shape)}.")
    return content[:, :-1] & content[:, 1:]


def _check_shapes(logits: Tensor, **positions: Tensor | None) -> None:
    if logits.ndim < 2 or not logits.shape[-1]:
        raise EvaluationError(f"Logits have the shape [..., pos, vocab], not {list(logits.shape)}.")
    for name, one in positions.items():
        if one is not None and one.shape != logits.shape[:-1]:
            raise EvaluationError(
                f"{name} has the shape {list(one.shape)} and the logits' positions {list(logits.shape[:-1])}; "
                "both are of the same predictions."
            )


def _at_positions(measure: Callable[..., Tensor], counted: Tensor | None, *of: Tensor) -> Tensor:
    """A measure of each counted position, chunk by chunk: `[..., pos]`, float32; 0 at the others.

    Args:
        measure: from a chunk of each tensor, `[chunk, ...]`, to `[chunk]`.
        counted: bool `[..., pos]`, or None for all.
        of: tensors `[..., pos]` or `[..., pos, vocab]`, the first with a vocabulary.
    """
    lead = of[0].shape[:-1]  # [..., pos]
    n_rows = math.prod(lead[:-1])  # also where there is no position
    rows = [one.reshape(n_rows, *one.shape[len(lead) - 1 :]) for one in of]  # [rows, pos, ...]
    result = torch.zeros(rows[0].shape[:2], dtype=torch.float32, device=of[0].device)
    size = max(1, min(POSITIONS, VALUES // of[0].shape[-1]))
    for row, at in _chunks(result.shape, size, None if counted is None else counted.reshape(result.shape)):
        result[row, at] = measure(*(one[row, at] for one in rows))
    if bool(result.isnan().any()):
        raise EvaluationError(
            "The model computes logits here that are not finite numbers: its weights, an intervention or a dictionary "
            "that it runs through are too large; lower what was changed last."
        )
    return result.reshape(lead)


def _chunks(shape: Sequence[int], size: int, counted: Tensor | None) -> Iterator[tuple[int, Tensor | slice]]:
    """Row by row, at most `size` positions at a time: slices of all positions, or indices of the counted ones.

    Args:
        shape: rows and positions.
        size: positions of a chunk.
        counted: bool of this shape; None counts all.
    """
    rows, length = shape
    for row in range(rows):
        if counted is None:
            yield from ((row, slice(start, start + size)) for start in range(0, length, size))
        else:
            yield from ((row, at) for at in counted[row].nonzero()[:, 0].split(size) if len(at))
