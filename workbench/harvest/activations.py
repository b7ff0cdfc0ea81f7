"""One pass of a model over a corpus.

The model runs no further than the last hook point and never computes the LM head. Padding, special tokens and the first
position of each window, where an attention sink stands, are left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench.core.checks import Integer, Natural, checked
from workbench.core.display import Shown
from workbench.core.errors import WorkbenchError
from workbench.core.progress import Progress, Tell, time_left
from workbench.corpus import Corpus
from workbench.corpus.batching import bos_id
from workbench.model.in_force import InForce, as_of, in_force
from workbench.model.language_model import LanguageModel


class HarvestError(WorkbenchError):
    """Activations that can't be read from this model, or from this folder."""


@dataclass(frozen=True)
class Activations(Shown):
    """What the model computed at some tokens."""

    values: Mapping[str, Tensor]
    """By hook point: `[n_tokens, width]` float32; a hook point with heads is flattened."""
    tokens: Tensor
    """`[n_tokens]` int64: token ids."""
    texts: Tensor
    """`[n_tokens]` int64: which text of the corpus the token is in."""
    positions: Tensor
    """`[n_tokens]` int64: which token of that text it is."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor) -> Activations:
        values = {name: value[rows] for name, value in self.values.items()}
        return Activations(values, self.tokens[rows], self.texts[rows], self.positions[rows])

    @staticmethod
    def cat(parts: Sequence[Activations]) -> Activations:
        """Several one after another."""
        if not parts:
            raise HarvestError("There are no activations to put together.")
        values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
        rest = (torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS)
        return Activations(values, *rest)


COLUMNS = ("tokens", "texts", "positions")


@runtime_checkable
class Source(Protocol):
    """What a `Buffer` takes from: a `Harvest` or a `Store`."""

    def run(self, skip: int = 0) -> Iterator[Activations]:
        """The activations in their order, without the first `skip` tokens."""
        ...

    def settings(self) -> dict[str, Any]:
        """What decides about the activations and their order; JSON."""
        ...


@checked(HarvestError)
@dataclass(frozen=True, eq=False)
class Harvest:
    """Which activations to read: those of `model` at `hook_points` on the texts of `corpus`.

    Iterating runs the model and gives `Activations` batch by batch, under the interventions in force where the iterator
    is made.

    Args:
        model: the model.
        corpus: the texts.
        hook_points: one name or several; all are read in the same pass.
        tokens: stop after exactly so many tokens, over all processes; None for the whole corpus.
        context: positions of a window, with BOS.
        batch: windows that run at once.
        seed: of the order of the texts.
        repeat: begin again, in another order, when the corpus is used up.
        shard: `(rank, world_size)`; see `process_shard`. The shards of all ranks together are the unsharded harvest.

    Raises:
        HookPointError: the model has no such hook point.
        HarvestError: a hook point without positions (an attention pattern), or none at all.
        CorpusError: a setting that can't be used, or a model without a tokenizer.
    """

    model: LanguageModel
    corpus: Corpus
    hook_points: str | Sequence[str]
    tokens: Integer | None = None
    context: Integer = 256
    batch: Integer = 16
    seed: Integer = 0
    repeat: bool = False
    shard: tuple[Integer, Integer] = (0, 1)

    def __post_init__(self) -> None:
        names = (self.hook_points,) if isinstance(self.hook_points, str) else tuple(self.hook_points)
        object.__setattr__(self, "hook_points", names)
        if not names:
            raise HarvestError("Name at least one hook point to read activations from.")
        for name in names:
            if not self.model.hook_points[name].positional:
                raise HarvestError(f"{name} has no value per token, so its activations can't be harvested.")
        self._batches()

    def __iter__(self) -> Iterator[Activations]:
        return self.run()

    def _batches(self) -> Iterator[Any]:
        how = {"seed": self.seed, "repeat": self.repeat, "shard": self.shard}
        return self.corpus.batches(self.model, self.context, self.batch, self.tokens, **how)

    @checked(HarvestError)
    def run(
        self, skip: Natural = 0, *, progress: Progress | None = None, cancel: Callable[[], bool] | None = None
    ) -> Iterator[Activations]:
        """The activations, batch by batch, under the interventions that are in force at the call.

        Args:
            skip: leave out so many tokens; the model does not run on batches that are left out whole.
            progress: called with the share done, and in words the speed and an estimate of the time left;
                None and False: nothing, since the caller works between the batches. `collect` draws a bar.
            cancel: called before each batch; once it returns True, the iteration ends.
        """
        return self._run(skip, progress, cancel, in_force())

    def _run(
        self, skip: int, progress: Progress | None, cancel: Callable[[], bool] | None, held: InForce
    ) -> Iterator[Activations]:
        """The activations of `run`, under what was in force at its call."""
        passed = 0
        clock = _Clock(self._total(), skip, progress) if progress else None
        for batch in self._batches():
            count = int(batch.content.sum())
            passed += count
            if passed <= skip:
                continue
            if cancel is not None and cancel():
                return
            with as_of(held), torch.no_grad():
                # without a mask: the batches of a model that would see the padding have none
                captured = self.model.capture(batch.tokens, self.hook_points)
            rows = batch.content
            part = Activations(
                {name: value.flatten(2)[rows].float() for name, value in captured.items()},  # [n_tokens, width]
                batch.tokens[rows],
                batch.texts[:, None].expand_as(rows)[rows],
                batch.positions[rows],
            )
            yield part[skip - passed :] if passed - count < skip else part
            if clock:
                clock.tell(passed)

    @checked(HarvestError)
    def collect(self, *, progress: Progress | None = None, cancel: Callable[[], bool] | None = None) -> Activations:
        """All of it in memory."""
        if self.repeat and self.tokens is None:
            raise HarvestError("A harvest that repeats without a limit can't be collected; give tokens.")
        return Activations.cat(list(self.run(progress=progress, cancel=cancel)))

    def settings(self) -> dict[str, Any]:
        """What decides about the activations and their order: model, corpus, hook points, windows, seed, shard."""
        plain = {name: getattr(self, name) for name in ("tokens", "context", "batch", "seed", "repeat")}
        names = {"model": self.model.name, "corpus": self.corpus.name, "hook_points": list(self.hook_points)}
        hashes = {"model_hash": self.model.hash, "former_hash": self.model.former_hash}
        hashes["corpus_hash"] = self.corpus.hash
        # harvests of older versions, and theirs alone, hold the first token of a window that begins with no BOS
        windows = {} if bos_id(self.model) is not None else {"first_position": "left out"}
        return names | hashes | plain | windows | {"shard": list(self.shard)}

    def _total(self) -> int | None:
        """How many tokens there will be, about; None if there is no end."""
        if self.repeat:
            return None if self.tokens is None else self.tokens // self.shard[1]
        return self.corpus.count_tokens(self.model, self.tokens, self.context) // self.shard[1]


class _Clock:
    """Tells how far a harvest is and how long it will take."""

    def __init__(self, total: int | None, skipped: int, progress: Tell):
        self.total, self.skipped, self.progress = total, skipped, progress
        self.begun = time.monotonic()

    def tell(self, done: int) -> None:
        rate = (done - self.skipped) / max(time.monotonic() - self.begun, 1e-9)
        if self.total is None:
            self.progress(0.0, f"{done:,} tokens, {rate:,.0f} tokens/s")
            return
        left = max(self.total - done, 0) / rate
        self.progress(
            min(done / max(self.total, 1), 1.0),
            f"{done:,} of about {self.total:,} tokens, {rate:,.0f} tokens/s, {time_left(left)} left",
        )


def process_shard() -> tuple[int, int]:
    """`(rank, world_size)` of this process under torchrun; `(0, 1)` without it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
