"""The source of a training's activations: endless, with reports of progress, and stopped by the caller."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sized
from typing import Any

from workbench.core.progress import Progress, time_left
from workbench.harvest import Activations, Source, Store
from workbench.training.checkpoints import TrainingError


class Monitor:
    """Reports the progress of a training, and asks the caller whether to stop.

    Args:
        tokens: of the whole training.
        progress: called with the share done, and in words the speed and an estimate of the time left.
        cancel: returns True to stop the training.
    """

    def __init__(self, tokens: int, progress: Progress | None, cancel: Callable[[], bool] | None):
        self.progress: Progress | None = progress
        self.tokens, self.cancel = tokens, cancel
        self._stopped = False
        self._done = self._done_before = 0
        self._begun = time.monotonic()

    def begin(self, done: int) -> None:
        """Set the number of tokens that earlier calls learned from."""
        self._done = self._done_before = done

    def stops(self) -> bool:
        """Whether to stop; once yes, always yes."""
        self._stopped = self._stopped or (self.cancel is not None and self.cancel())
        return self._stopped

    def tell(self, done: int | None, what: str) -> None:
        """Report the number of tokens learned from; None leaves it as it was."""
        self._done = self._done if done is None else done
        if not self.progress:
            return
        rate = (self._done - self._done_before) / max(time.monotonic() - self._begun, 1e-9)
        words = [f"{min(self._done, self.tokens):,} of {self.tokens:,} tokens"]
        if rate:
            left = max(self.tokens - self._done, 0) / rate
            words += [f"{rate:,.0f} tokens/s", f"{time_left(left)} left"]
        self.progress(min(self._done / self.tokens, 1.0), ", ".join([*words, what]))


class Reader:
    """A source that can be stopped; one that has a length, as a `Store` has, begins again at its end.

    Args:
        source: where the activations come from.
        shard: `(rank, count)`: processes begin such a source in different places, so that together they read all of it
            before any of it twice.
        watch: gets reports of the reading, and is asked whether to stop.

    Raises:
        TrainingError: the source is an unfinished or empty store.
    """

    def __init__(self, source: Source, shard: tuple[int, int], watch: Monitor):
        self.source, self.shard, self.watch = source, shard, watch
        self.length = len(source) if isinstance(source, Sized) else None
        if self.length == 0:
            raise TrainingError("The source holds no activations.")
        if isinstance(source, Store) and not source.complete:
            raise TrainingError(f"{source.folder} holds an unfinished harvest; call Store.write again to finish it.")

    def run(self, skip: int = 0) -> Iterator[Activations]:
        """See `Source`; ends when the training stops."""
        read = 0
        for part in self._parts(skip):
            if self.watch.stops():
                return
            read += len(part)
            self.watch.tell(None, f"{read:,} activations read")
            yield part

    def _parts(self, skip: int) -> Iterator[Activations]:
        if self.length is None:
            yield from self.source.run(skip)
            return
        rank, count = self.shard
        begin = (skip + rank * self.length // count) % self.length
        while True:
            yield from self.source.run(begin)
            begin = 0

    def settings(self) -> dict[str, Any]:
        """Of the source."""
        return self.source.settings()
