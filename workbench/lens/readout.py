"""Next-token predictions from vectors of the residual stream: the final norm, the LM head, and what follows it.

A prediction takes a row of logits as wide as the vocabulary; rows are reduced to a few numbers each, a block of
positions at a time, in memory that every block uses again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.core.hashing import HALVES
from workbench.dictionaries.sparse import top_k
from workbench.lens.errors import LensError
from workbench.model.language_model import LanguageModel
from workbench.model.lm_head import highest
from workbench.model.logit_map import LogitMap
from workbench.model.modules import sharing_copy, through
from workbench.model.weights import ModelError

POSITIONS = 64
"""Rows of logits that are computed at a time."""
VALUES = 1 << 23
"""Logits that are computed at a time, at most."""
EXACT, EXACT_16_BITS = 1e-3, 0.05
"""The largest difference between the model's logits and those read from its stream, as a share of the largest."""
NORM = "ln_final.hook_out"


@dataclass(frozen=True)
class Reduced:
    """What is kept of rows of logits."""

    ids: Tensor
    """The likeliest tokens, best first, `[rows, k]`."""
    log_probabilities: Tensor
    """Theirs, `[rows, k]`, in nats."""
    entropy: Tensor
    """`[rows]`, in nats."""
    kl: Tensor
    """KL(final ‖ these) at each row, `[rows]`, in nats."""


class Readout:
    """The way from the end of the residual stream to logits, in float32.

    Args:
        model: the model.

    Raises:
        LensError: a model whose final norm or LM head can't be read alone.
    """

    def __init__(self, model: LanguageModel):
        self.model = model
        try:
            self.head = model.network.lm_head
            self.map = model.network.logit_map
        except ModelError as error:
            raise LensError(f"{model.name} has no lens: {error}") from error
        point = model.hook_points.get(NORM)
        if point is None or point.module is None or point.side != "out":
            raise LensError(f"{model.name} has no lens: its final norm is no module of its own.")
        self.norm: Any = model.network.module.get_submodule(point.module)
        bias = getattr(model.network.module.get_output_embeddings(), "bias", None)
        self.bias = None if bias is None else bias.detach().to(self.head.device).float()

    @property
    def block(self) -> int:
        """Rows of logits at a time."""
        return max(1, min(POSITIONS, VALUES // len(self.head)))

    def normed(self, stream: Tensor) -> Tensor:
        """Vectors of the stream `[..., d_model]` behind the final norm, in float32.

        The norm computes in the type of the vectors: a fitted lens estimates in float32 what a model in 16 bits holds.
        Gradients flow where they are taken; the norm's weights get none.
        """
        narrow = self.model.dtype in HALVES and stream.dtype == torch.float32
        return through(self._exact_norm if narrow else self.norm, stream).float().to(self.head.device)

    @functools.cached_property
    def _exact_norm(self) -> Any:
        """The norm of a model in 16 bits, with weights of float32."""
        return sharing_copy(self.norm).float()

    def logits(self, normed: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits `[rows, vocab]` of vectors behind the final norm, `[rows, d_model]`.

        Args:
            normed: in float32.
            out: memory for them, `[rows, vocab]`.
        """
        room = normed.new_empty(len(normed), len(self.head)) if out is None else out
        for start, rows in self.head.pieces():
            torch.mm(normed, rows.T, out=room[:, start : start + len(rows)])
        if self.bias is not None:
            room += self.bias
        return room if self.map == LogitMap(1.0) else self.map.logits(room)

    def pulled(self, slopes: Tensor) -> Tensor:
        """Slopes by vectors behind the norm, `[rows, d_model]`, from those by the head's products, `[rows, vocab]`."""
        result = slopes.new_zeros(len(slopes), self.head.width)
        for start, rows in self.head.pieces():
            result.addmm_(slopes[:, start : start + len(rows)], rows)
        return result

    def check_norm(self, stream: Tensor, final: Tensor) -> None:
        """Raise `LensError` unless the norm's output is that of the stream in front of it, `[rows, d_model]` both."""
        with torch.no_grad():
            same = torch.allclose(self.normed(stream), final, rtol=1e-3, atol=1e-3 * float(final.abs().max()))
        if not same:
            raise LensError(
                f"{self.model.name} has no lens: what its final norm returns depends on more than its input."
            )

    def check(self, normed: Tensor, logits: Tensor) -> None:
        """Raise `LensError` unless logits of the model `[rows, vocab]` are those of what its final norm returned.

        Args:
            normed: the last layer's stream behind the norm, `[rows, d_model]`.
            logits: the model's, `[rows, vocab]`.
        """
        read, logits = self.logits(normed), logits.to(self.head.device).float()
        exact = EXACT if self.model.dtype == torch.float32 else EXACT_16_BITS
        if not float((read - logits).abs().max()) <= exact * float(logits.abs().max()):
            raise LensError(
                f"{self.model.name} has no lens: its logits are not its LM head's products with the final norm of the "
                "last layer's stream."
            )

    def blocks(self, rows: int) -> Iterator[slice]:
        """Slices of so many rows, one block after another."""
        return (slice(start, min(start + self.block, rows)) for start in range(0, rows, self.block))


class Reducer:
    """Reduces rows of logits beside the final layer's; it holds memory for two blocks.

    Args:
        readout: of the model.
        k: tokens that are kept of each row.
    """

    def __init__(self, readout: Readout, k: int):
        self.readout, self.k = readout, min(k, len(readout.head))
        size = readout.block, len(readout.head)
        like = readout.head.rows([0])
        self._rooms = like.new_empty(size), like.new_empty(size)
        self.final = like.new_empty(size)
        """Probabilities of the final layer, `[block, vocab]`; `begin` sets them."""
        self._final_negentropy = like.new_empty(size[0])

    def begin(self, final: Tensor) -> None:
        """Take a block's final vectors behind the norm, `[rows, d_model]`, as what the KL compares with."""
        rows = len(final)
        logits = self.readout.logits(final, self._rooms[0][:rows])
        logits -= logits.logsumexp(-1, keepdim=True)
        torch.exp(logits, out=self.final[:rows])
        self._final_negentropy[:rows] = _dot(self.final[:rows], logits.clamp_(min=torch.finfo(logits.dtype).min))

    def reduce(self, normed: Tensor) -> Reduced:
        """Vectors behind the norm `[rows, d_model]`, at the rows of the block that `begin` took."""
        rows = len(normed)
        first, second = (room[:rows] for room in self._rooms)
        logits = self.readout.logits(normed, first)
        candidates = top_k(logits, min(self.k + 1, logits.shape[1]))
        values, ids = highest(logits, candidates, self.k)
        top = values[:, :1]
        logits = logits.sub_(top) if logits is first else logits - top  # [rows, vocab], at most 0
        torch.exp(logits, out=second)
        total = second.sum(-1)
        log_total = total.log()
        logits.clamp_(min=torch.finfo(logits.dtype).min)  # a logit of -inf has probability 0
        entropy = log_total - _dot(second, logits) / total
        kl = self._final_negentropy[:rows] - _dot(self.final[:rows], logits) + log_total
        return Reduced(ids, values - top - log_total[:, None], entropy, kl)

    def slope(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """KL(final ‖ these) at each row, `[rows]`, and its slope by the vectors behind the norm, `[rows, d_model]`.

        Arguments as in `reduce`; what the block's final vectors give is a constant.
        """
        rows = len(normed)
        first, second = (room[:rows] for room in self._rooms)
        logits = self.readout.logits(normed, first)
        torch.sub(logits, logits.logsumexp(-1, keepdim=True), out=second)  # log-probabilities
        bend = self.readout.map.slopes(logits)
        second.clamp_(min=torch.finfo(second.dtype).min)
        kl = self._final_negentropy[:rows] - _dot(self.final[:rows], second)
        second.exp_().sub_(self.final[:rows])
        return kl, self.readout.pulled(second if bend is None else second.mul_(bend))

    def divergence(self, normed: Tensor) -> Tensor:
        """KL(final ‖ these) at each row, `[rows]`; arguments as in `reduce`."""
        rows = len(normed)
        logits = self.readout.logits(normed, self._rooms[0][:rows])
        torch.sub(logits, logits.logsumexp(-1, keepdim=True), out=self._rooms[1][:rows])
        log_q = self._rooms[1][:rows].clamp_(min=torch.finfo(logits.dtype).min)
        return self._final_negentropy[:rows] - _dot(self.final[:rows], log_q)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """The sums over the last axis of products, `[rows]`; torch.bmm of the same is off by 1e-3 at such widths."""
    return torch.linalg.vecdot(one, other)
