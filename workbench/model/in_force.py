"""Interventions and splices in force: they act on a model's calls in one thread or task, and are no part of the model.

They are entered as blocks, which context variables hold, so that many threads can steer one shared model at once. A
context variable alone would leak a block that a generator enters to the generator's caller, and would not follow it
to another thread. Such a block belongs to the generator's frame too: it acts where that frame runs, and where a thread
or task got a copy of its context. A generator that `contextlib` or pytest's fixtures drive as a context manager stands
for the code around it, and so does a generator expression, which can't hold a block open itself.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

from workbench.model.edits import Intervention

Held = tuple[tuple[Any, Intervention], ...]
"""Each intervention with the model whose calls it acts on."""

MANAGERS = ("contextlib", "_pytest.fixtures")
"""Modules that run a generator to its `yield` on behalf of the code that is to run inside."""
EXPRESSION = "<genexpr>"
"""The name that Python gives the code of a generator expression."""
GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
COROUTINE = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE
"""Flags of code; a task of coroutines has context variables of its own."""


@dataclass(frozen=True)
class InForce:
    """What acts on the calls of models."""

    splices: Held = ()
    interventions: Held = ()


@dataclass(eq=False)
class _Block:
    """One block that is open."""

    holds: InForce
    alone: bool = False
    """Whether it sets aside all blocks around it."""
    frame: FrameType | None = None
    """Of the generator that entered it; None outside of generators."""
    place: tuple[int, Any] = (0, None)
    """The thread and the task in which it was entered."""
    ended: bool = False

    def was_handed_here(self) -> bool:
        """Whether this thread or task has the block of a generator by a copy of its context, and may use it now."""
        if self.frame is None:
            return False
        if self.frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
            return self.place != _place()
        return any(self.frame in _stack(top) for top in sys._current_frames().values())


_entered: ContextVar[tuple[_Block, ...]] = ContextVar("workbench_blocks", default=())
_of_frames: dict[FrameType, list[_Block]] = {}
"""The open blocks that generators entered, by the generator's frame."""
_lock = threading.Lock()


@contextmanager
def holding(model: Any, *, splices: Sequence[Any] = (), interventions: Sequence[Any] = ()) -> Iterator[None]:
    """Add splices of a model and interventions on it to those in force, inside the block."""
    both = (tuple((model, one) for one in several) for several in (splices, interventions))
    with _open(_Block(InForce(*both))):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Set aside all interventions and splices in force here, to measure the plain model."""
    with _open(_Block(InForce(), alone=True)):
        yield


@contextmanager
def as_of(held: InForce) -> Iterator[None]:
    """Put in force, inside the block, what `in_force` returned earlier, and nothing else."""
    with _open(_Block(held, alone=True)):
        yield


def in_force() -> InForce:
    """All that is in force here, in the order in which it acts."""
    splices: Held = ()
    interventions: Held = ()
    for block in _blocks():
        if block.alone:
            splices = interventions = ()
        splices += block.holds.splices
        interventions += block.holds.interventions
    return InForce(splices, interventions)


def acting_on(model: Any) -> list[Intervention]:
    """Splices and interventions in force for a model, in the order in which they act."""
    now = in_force()
    return [one for held, one in (*now.splices, *now.interventions) if held is model]


@contextmanager
def _open(block: _Block) -> Iterator[None]:
    """Hold a block until its end, which may come in any order and in any thread."""
    frame = _generator(sys._getframe())
    if frame is not None:
        block.frame, block.place = frame, _place()
        with _lock:
            _of_frames.setdefault(frame, []).append(block)
    _entered.set((*(one for one in _entered.get() if not one.ended), block))
    try:
        yield
    finally:
        if frame is not None:
            with _lock:
                _of_frames[frame].remove(block)
                if not _of_frames[frame]:
                    del _of_frames[frame]
        here = block in _entered.get()
        if here:
            _entered.set(tuple(one for one in _entered.get() if one is not block))
        if frame is not None or not here:  # other threads may hold it, which can't be reached from here
            block.ended, block.frame, block.place = True, None, (0, None)


def _generator(frame: FrameType | None) -> FrameType | None:
    """The frame of the innermost generator function that runs here and is no context manager; None outside of them."""
    while frame is not None:
        flags = frame.f_code.co_flags
        if flags & COROUTINE:
            return None
        caller = frame.f_back
        managed = caller is not None and caller.f_globals.get("__name__") in MANAGERS
        if flags & GENERATOR and not managed and frame.f_code.co_name != EXPRESSION:
            return frame
        frame = caller
    return None


def _place() -> tuple[int, Any]:
    try:
        return threading.get_ident(), asyncio.current_task()
    except RuntimeError:  # no event loop runs here
        return threading.get_ident(), None


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those that called it, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _blocks() -> list[_Block]:
    """The blocks that act here, the outermost first."""
    entered = [one for one in _entered.get() if not one.ended]
    if not _of_frames:
        return entered
    around: list[_Block] = []
    inside: list[_Block] = []
    found = inside
    for frame in list(_stack(sys._getframe())):
        if frame.f_code.co_flags & COROUTINE:
            found = around
        found[:0] = _of_frames.get(frame, ())
    running = {*around, *inside}
    held = [one for one in entered if one.frame is None or (one not in running and one.was_handed_here())]
    return [*around, *held, *inside]
