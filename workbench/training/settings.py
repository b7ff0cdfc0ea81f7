"""Settings of a training: those that decide about its result, and those that don't."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from workbench.core.checks import Number
from workbench.core.progress import Progress

Seconds = Annotated[Number, Ge(0)]
"""A time, from 0."""


TEXT_TOKENS = "tokens of texts"
"""What `tokens` counts where a model learns from texts: those that teach something."""
POSITIONS = "positions"
"""What it counted in trainings of models that do not say."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What decides about the result of any training; each kind of training adds its own.

    A training goes on from a checkpoint only if all of these are what they were.
    """

    tokens: int
    """Tokens to learn from, over all processes; rounded up to whole steps."""
    batch_size: int
    """Tokens in a step at most, over all processes."""
    lr: float
    """Learning rate at its height."""
    warmup: float
    """Share of the steps during which the learning rate rises linearly."""
    decay: float
    """Share of the steps, at the end, during which it falls linearly to 0."""
    sparsity_warmup: float = 0.0
    """Share of the steps during which the penalty on density rises linearly."""
    clip: float | None
    """Greatest length of the gradient, in the learner's unit; None for any."""
    dead_after: int = 1
    """Tokens without activity after which a feature counts as dead."""
    seed: int
    """Seed of every random draw."""
    fresh: bool | None
    """Whether a sample sets what is to be trained first; None where it has not been trained before."""
    source: Mapping[str, Any]
    """What the data are read from, as plain data."""

    def plain(self) -> dict[str, Any]:
        """All fields as plain data, by name."""
        return asdict(self)


@dataclass(frozen=True)
class RunOptions:
    """Options that do not change the result: folder, checkpoints, reports and cancelling."""

    folder: str | Path | None
    """For checkpoints, history and the result; None keeps nothing."""
    checkpoint_every: float
    """Seconds between checkpoints."""
    progress: Progress | None
    """Called with the share done, and in words the speed and an estimate of the time left."""
    cancel: Callable[[], bool] | None
    """Called at each step; the training stops once it returns True."""
    log: Callable[[Mapping[str, float]], None] | None
    """Called with each line of history."""
