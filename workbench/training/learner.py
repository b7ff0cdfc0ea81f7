"""The interface between the steps of a training and what is trained: a dictionary, or a model with dictionaries.

The steps (`steps.py`) hold schedules, the optimiser, dead features, checkpoints and processes; a learner does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Learner(Protocol):
    """The trained object, as a training sees it."""

    device: torch.device
    """Device of the trained weights."""
    n_features: int
    """Features whose activity is counted; 0 if there are none."""
    resamples: bool
    """Whether dead features are revived by `resample` now and then."""

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        ...

    def tokens_after(self, step: int) -> int:
        """The tokens that the first `step` steps learn from, over all processes."""
        ...

    def batches(self, done: int, begins: bool) -> Iterator[Any] | None:
        """The batches after the first `done`; None if the training was cancelled before the sample was read.

        With `begins`, where there is no checkpoint, a sample of the first batches sets what has to be set; its batches
        follow as usual.
        """
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trained parameters."""
        ...

    def shared(self) -> Iterator[Tensor]:
        """The tensors that processes average besides gradients."""
        ...

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The parameters as an optimiser takes them; each group has a `name`.

        Groups with a `momentum` learn by gradient descent with Nesterov's momentum, others by Adam.
        """
        ...

    def unit(self, lr: float) -> float:
        """The divisor of a group's learning rate that gives the factor for its gradient's length."""
        ...

    def step(self, batch: Any, dead: Tensor | None, done: float, sparsity: float) -> tuple[dict[str, float], Tensor]:
        """Put the gradients of the loss into `.grad`.

        Args:
            batch: one of `batches`.
            dead: which features count as dead, bool `[n_features]`; None if none do.
            done: share of the steps that is done.
            sparsity: share of the penalty on density that applies.

        Returns:
            The measures by name, `loss` among them; and the tokens at which each feature was active, `[n_features]`.
        """
        ...

    def constrain(self) -> None:
        """Bring the parameters back to where they must be, after a step of the optimiser."""
        ...

    def resample(self, batch: Any, dead: Tensor, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Give dead features a new start."""
        ...

    def settle(self, batch: Any) -> None:
        """Set what only applies outside training from the last batch, after the last step."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """Source and settings of the training, which the steps add to; kept on disk with the weights."""
        ...

    @property
    def hash(self) -> str:
        """SHA-256 over all weights."""
        ...

    def save(self, folder: Path, *, final: bool) -> None:
        """Write all weights to a folder; `final` if that is the result and not a checkpoint."""
        ...

    def restore(self, folder: Path, note: Mapping[str, Any], *, final: bool) -> None:
        """Load the weights from a folder that `save` wrote.

        Raises:
            TrainingError: they are damaged, or the training began with other weights than these.
        """
        ...
