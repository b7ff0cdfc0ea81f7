"""What learns: the part of a training that knows whether a dictionary is trained, or a model that runs through some.

The steps (`steps.py`) know schedules, the optimiser, dead features, checkpoints and processes, and ask a learner for
all else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Learner(Protocol):
    """What a training asks of what it trains."""

    device: torch.device
    """Where it is."""
    n_features: int
    """Features that are watched for silence; 0 where there are none."""
    resamples: bool
    """Whether dead features are revived by `resample` now and then."""

    def batches(self, done: int, fresh: bool) -> Iterator[Any] | None:
        """The batches after `done` of them; `fresh`: it first sets what is set from a sample, and then gives that too.

        None where the training was cancelled before the sample was read.
        """
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        ...

    def shared(self) -> Iterator[Tensor]:
        """What processes average beside gradients."""
        ...

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The parameters as an optimiser takes them; each group has a `name`."""
        ...

    def unit(self, lr: float) -> float:
        """What a group's learning rate is divided by, so that gradients are measured in units of their own."""
        ...

    def step(self, batch: Any, dead: Tensor | None, done: float, sparsity: float) -> tuple[dict[str, float], Tensor]:
        """Put the gradients of the loss into `.grad`.

        Args:
            batch: one of `batches`.
            dead: which features have been silent for long, bool `[n_features]`; None where none have.
            done: share of the steps that is done.
            sparsity: share of the penalty on density that applies.

        Returns:
            What was measured, `loss` among it; and at how many tokens each feature was active, `[n_features]`.
        """
        ...

    def constrain(self) -> None:
        """Bring the parameters back to where they must be, after a step of the optimiser."""
        ...

    def resample(self, batch: Any, dead: Tensor, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Give dead features a new start."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was made from, to be added to; kept on disk with it."""
        ...

    @property
    def hash(self) -> str:
        """SHA-256 over all weights."""
        ...

    def save(self, folder: Path, *, final: bool) -> None:
        """Write everything to a folder; `final` where that is its place and not a checkpoint."""
        ...

    def restore(self, folder: Path, note: Mapping[str, Any], *, final: bool) -> None:
        """Take the weights from a folder that `save` wrote, if they are of a training that began with these.

        Raises:
            TrainingError: they are damaged, or not.
        """
        ...
