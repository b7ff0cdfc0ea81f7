"""Next-token predictions from vectors of the residual stream: the final norm, the LM head, and what follows it.

A prediction takes a row of logits as wide as the vocabulary; rows are reduced to a few numbers each, a block of
positions of a few layers at a time, in memory that every block uses again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from workbench.core.hashing import HALVES
from workbench.core.products import memory, product
from workbench.lens.errors import LensError
from workbench.model.language_model import LanguageModel
from workbench.model.logit_map import LogitMap
from workbench.model.modules import sharing_copy, through
from workbench.model.score_search import ScoreSearch, strips
from workbench.model.weights import ModelError

POSITIONS = 64
"""Rows of logits that are computed at a time."""
VALUES = 1 << 23
"""Logits of a block of positions, at most."""
ROOM = 1 << 25
"""Logits of several layers that are computed at a time, at most, where one layer's are no more: 128 MiB."""
CACHED = 1 << 19
"""Numbers of a strip that several passes read."""
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
        for _ in self.strips(normed, room):
            pass
        return room

    def strips(self, normed: Tensor, out: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The columns and the logits of one strip of the vocabulary after another, while they are in the cache.

        Arguments as for `logits`; every strip is a view of `out`.
        """
        for start, rows in self.head.pieces():
            for at in strips(len(rows), rows.device):
                columns = slice(start + at.start, start + at.stop)
                part = product(normed, rows[at], out[:, columns])
                if self.bias is not None:
                    part += self.bias[columns]
                if self.map != LogitMap(1.0):
                    part.copy_(self.map.logits(part))
                yield columns, part

    @functools.cached_property
    def columns(self) -> list[slice]:
        """The columns of each of `strips`."""
        size, whole, device = self.head.piece, len(self.head), self.head.device
        return [at for start in range(0, whole, size) for at in strips(min(size, whole - start), device, start)]

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
    """Reduces rows of logits beside the final layer's; it holds memory for a few blocks.

    Args:
        readout: of the model.
        k: tokens that are kept of each row.
    """

    def __init__(self, readout: Readout, k: int):
        self.readout, self.k = readout, min(k, len(readout.head))
        self._like = readout.head.rows([0])
        self._layers = max(1, ROOM // (readout.block * len(readout.head)))
        self._room = memory(self._like, self._layers * readout.block, len(readout.head))
        self._strips = _in_cache(len(self._room), self._room.shape[1], self._like.device)
        largest = max(at.stop - at.start for at in self._strips)
        self._some = [memory(self._like, len(self._room) * largest) for _ in range(2)]
        self.final = memory(self._like, readout.block, len(readout.head))
        """Probabilities of the final layer, `[block, vocab]`; `begin` sets them."""
        self._final_negentropy = self._like.new_empty(readout.block)

    @functools.cached_property
    def _second(self) -> Tensor:
        """Memory for another block, `[block, vocab]`."""
        return memory(self._like, *self.final.shape)

    def begin(self, final: Tensor) -> None:
        """Take a block's final vectors behind the norm, `[rows, d_model]`, as what the KL compares with."""
        rows = len(final)
        logits = self.readout.logits(final, self._room[:rows])
        logits -= logits.logsumexp(-1, keepdim=True)
        torch.exp(logits, out=self.final[:rows])
        self._final_negentropy[:rows] = _dot(self.final[:rows], logits.clamp_(min=torch.finfo(logits.dtype).min))

    def reduce(self, normed: Tensor) -> Reduced:
        """Vectors behind the norm `[layers, rows, d_model]`, at the rows of the block that `begin` took."""
        parts = [self._reduced(some) for some in normed.split(self._layers)]
        joined = {one.name: torch.cat([getattr(part, one.name) for part in parts]) for one in fields(Reduced)}
        return Reduced(**{name: one.unflatten(0, normed.shape[:2]) for name, one in joined.items()})

    def _reduced(self, normed: Tensor) -> Reduced:
        """As `reduce`, of a few layers whose rows stand one behind another."""
        flat = normed.flatten(0, 1)
        logits = self._room[: len(flat)]
        search = ScoreSearch(len(flat), self.readout.columns, logits.device)
        for at, part in self.readout.strips(flat, logits):
            search.see(part, at)
        values, ids = search.best(logits, self.k)
        top = values[:, :1]
        log_total, own, cross = self._sums(logits, top, normed.shape[1])
        return Reduced(
            ids, values - top - log_total[:, None], log_total - own, self._kl(log_total, cross, normed.shape[1])
        )

    def _kl(self, log_total: Tensor, cross: Tensor, rows: int) -> Tensor:
        """KL(final ‖ these), `[n]`, from what `_sums` returns."""
        return (log_total - cross).view(-1, rows).add_(self._final_negentropy[:rows]).flatten()

    def _sums(self, logits: Tensor, top: Tensor, rows: int, least: float | None = None) -> tuple[Tensor, ...]:
        """The logarithm of the sum of exponentials of `logits - top`, and the means of `logits - top` under the
        probabilities of the logits and of the final layer, `[n]` each.

        Args:
            logits: `[n, vocab]`, in blocks of so many rows as `begin` took.
            top: the highest of each row, `[n, 1]`.
            rows: of a block.
            least: what a lower value counts as; None for each as it is.
        """
        total, own, cross = (logits.new_zeros(len(logits)) for _ in range(3))
        for at in self._strips:
            part = logits[:, at]
            below, other = (room[: part.numel()].view(part.shape) for room in self._some)
            torch.sub(part, top, out=below)  # at most 0
            total += torch.exp(below, out=other).sum(-1)
            if least is not None:
                below.clamp_(min=least)
            own += other.mul_(below).sum(-1)
            final = self.final[:rows, at].expand(len(logits) // rows, -1, -1)
            cross += torch.mul(below.view(final.shape), final, out=other.view(final.shape)).sum(-1).flatten()
        if least is None and not bool((own + cross).isfinite().all()):  # a logit of -inf has probability 0
            return self._sums(logits, top, rows, torch.finfo(logits.dtype).min)
        return total.log(), own / total, cross

    def slope(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """KL(final ‖ these) at each row, `[rows]`, and its slope by the vectors behind the norm, `[rows, d_model]`.

        Arguments as in `reduce`; what the block's final vectors give is a constant.
        """
        rows = len(normed)
        second = self._second[:rows]
        logits = self.readout.logits(normed, self._room[:rows])
        torch.sub(logits, logits.logsumexp(-1, keepdim=True), out=second)  # log-probabilities
        bend = self.readout.map.slopes(logits)
        second.clamp_(min=torch.finfo(second.dtype).min)
        kl = self._final_negentropy[:rows] - _dot(self.final[:rows], second)
        second.exp_().sub_(self.final[:rows])
        return kl, self.readout.pulled(second if bend is None else second.mul_(bend))

    def divergence(self, normed: Tensor) -> Tensor:
        """KL(final ‖ these) at each row, `[rows]`; arguments as in `reduce`."""
        rows = len(normed)
        logits = self.readout.logits(normed, self._room[:rows])
        log_total, _, cross = self._sums(logits, logits.amax(-1, keepdim=True), rows)
        return self._kl(log_total, cross, rows)


def _in_cache(rows: int, width: int, device: torch.device) -> list[slice]:
    """Slices of so many columns of which a processor's cache holds a few; one slice on cards."""
    size = max(1, CACHED // rows) if device.type == "cpu" else width
    return [slice(start, min(start + size, width)) for start in range(0, width, size)]


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """The sums over the last axis of products, `[rows]`; torch.bmm of the same is off by 1e-3 at such widths."""
    return torch.linalg.vecdot(one, other)
