"""Shuffled batches of activations, for training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from workbench.core.checks import Natural, Positive, checked
from workbench.core.settings import difference
from workbench.harvest.activations import Activations, HarvestError, Source
from workbench.model.in_force import as_of, in_force


class Buffer:
    """Activations in shuffled batches, for training; an iterator.

    A block of consecutive tokens is read, its rows are mixed and handed out, then the next block is read. The texts are
    mixed already, so a block holds tokens of a few hundred texts from all over the corpus. The state is only the number
    of batches handed out: a resumed buffer reads its block once more and continues with equal batches. It reads under
    the interventions that are in force where it is made.

    Args:
        source: a `Harvest`, or a `Store`.
        batch_size: tokens per batch; the last one of a source that ends can be smaller.
        block: tokens mixed together, rounded up to whole batches; they are kept in memory.
        seed: of the mixing.
        batches: end after so many; no more tokens are read than these take. None for as many as the source has.
    """

    @checked(HarvestError)
    def __init__(
        self,
        source: Source,
        batch_size: Positive = 4096,
        block: Positive = 65_536,
        seed: Natural = 0,
        batches: Positive | None = None,
    ):
        self.source, self.batches = source, batches
        self.batch_size = batch_size
        self.per_block = max(-(-block // batch_size), 1)
        self.seed = seed
        self.handed = 0
        self._held = in_force()
        self._parts: Iterator[Activations] | None = None
        self._rest: Activations | None = None
        self._block: Activations | None = None
        self._mixed = torch.zeros(0, dtype=torch.long)

    def __iter__(self) -> Buffer:
        return self

    def __next__(self) -> Activations:
        if self.handed == self.batches:
            raise StopIteration
        number, place = divmod(self.handed, self.per_block)
        if self._block is None or place == 0:
            self._block = self._read(number)
            self._mixed = torch.randperm(len(self._block), generator=self._chance(number))
        begin = place * self.batch_size
        if begin >= len(self._block):
            raise StopIteration
        self.handed += 1
        return self._block[self._mixed[begin : begin + self.batch_size]]

    def state(self) -> dict[str, Any]:
        """What `restore` needs to continue with the next batch; JSON."""
        own = {"batch_size": self.batch_size, "per_block": self.per_block, "seed": self.seed}
        return {"handed": self.handed, **own, "source": self.source.settings()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where the buffer that gave this state was.

        Raises:
            HarvestError: the state is of a buffer with other settings, or another source.
        """
        wrong = difference(dict(state) | {"handed": self.handed}, self.state())
        if wrong:
            raise HarvestError(f"This training state can't be continued: {wrong}.")
        self.handed = int(state["handed"])
        self._parts = self._rest = self._block = None

    def _chance(self, number: int) -> torch.Generator:
        key = hashlib.sha256(f"{self.seed}/{number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))

    def _read(self, number: int) -> Activations:
        """The tokens of a block, in order; fewer, or none, at the end of the source."""
        begin = number * self.per_block
        left = self.per_block if self.batches is None else min(self.per_block, self.batches - begin)
        size = left * self.batch_size
        if self._parts is None:
            with as_of(self._held):
                self._parts = self.source.run(skip=begin * self.batch_size)
        parts = [] if self._rest is None else [self._rest]
        self._block = self._rest = None  # free it before the next is read
        while sum(map(len, parts)) < size and (part := next(self._parts, None)) is not None:
            parts.append(part)
        if not parts:
            raise StopIteration
        whole = Activations.cat(parts)
        self._rest = Activations.cat([whole[size:]]) if len(whole) > size else None  # a copy frees the rest
        return whole[:size]
