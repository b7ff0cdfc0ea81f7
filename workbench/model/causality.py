"""Whether a model predicts each token from those before it alone, measured by a nudge of later tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.model.weights import ModelError

LENGTH = 8
"""Tokens of the probe; those of its second half are nudged."""


@torch.no_grad()
def is_causal(run: Callable[[Tensor], Tensor], vocab_size: int, n_ctx: int) -> bool:
    """Whether logits stay the same where later tokens change.

    Equal tokens in runs of one shape give equal bits, save where tokens are grouped by their experts; so differences of
    a few roundings count as none.

    Args:
        run: from token ids `[1, pos]`, on any device, to logits `[1, pos, vocab]`.
        vocab_size: ids are below it.
        n_ctx: the largest number of tokens that the model sees.

    Raises:
        ModelError: logits are not finite, so no comparison says anything.
    """
    length = min(LENGTH, n_ctx)
    tokens = torch.arange(1, length + 1)[None] % vocab_size
    half = max(length // 2, 1)
    nudged = tokens.clone()
    nudged[:, half:] = (nudged[:, half:] + 1) % vocab_size
    before, after = (run(one)[:, :half] for one in (tokens, nudged))
    if not bool((before.isfinite() & after.isfinite()).all()):
        raise ModelError(
            "This model computes logits that are not finite: its weights are damaged or too large for their type; "
            "load it again, in float32."
        )
    rounding = max(4 * torch.finfo(before.dtype).eps, 1e-4)
    return float((before - after).abs().max()) <= rounding * float(before.abs().max())
