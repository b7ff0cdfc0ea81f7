"""The base of dictionaries that can be trained.

One step of training, on activations already harvested:

    step = dictionary.loss_and_gradients(x, target, dead=dead)    # gradients are now in .grad
    optimiser.step()
    dictionary.constrain()

Before the first step, `initialise` gets a sample, and `parameter_groups` returns the optimiser's groups. The dictionary
keeps no state of training: the caller counts the tokens since each latent fired, from `step.fired`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.core.display import Shown
from workbench.dictionaries.codes import Codes
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.settings import Field, fields_of


@dataclass(frozen=True)
class Step(Shown):
    """Measures of one training step, on its batch and before the weights change."""

    loss: float
    """The minimised loss: squared error + penalty + auxiliary loss."""
    error: float
    """Mean over the batch of the squared error, in units of the activations' size squared (see `unit_out`)."""
    penalty: float
    """The kind's penalty on density."""
    auxiliary: float
    """The kind's loss on dead latents."""
    fvu: float
    """Share of the target's variance that is not explained; nan where the batch's activations are one and the same."""
    l0: float
    """Active latents per activation."""
    fired: Tensor
    """In how many activations each latent was active, `[width]`, whole numbers."""


@dataclass(frozen=True)
class SpliceTerms:
    """Output and loss of a dictionary in one run of a model that is trained through it.

    The loss of the dictionary is the squared distance between `reconstruction` and `target`, summed over coordinates.
    """

    output: Tensor
    """Replaces the activation in the model, `[..., d_out]`; its gradient reaches the activation at `reads`."""
    reconstruction: Tensor
    """The reconstruction, `[..., d_out]`; its gradient reaches the dictionary alone."""
    target: Tensor
    """The activation that it should equal, `[..., d_out]`."""


class Trainable(Dictionary):
    """A dictionary with a loss.

    Parameters are always in the activations' own units, so that saving folds nothing in or out. `unit_in` and
    `unit_out` state the size of the activations and make losses, penalties and learning rates independent of it.
    Parameters do not ask for gradients; `loss_and_gradients` computes them without a graph.
    """

    unit_in: float = 1.0
    """Typical size of one coordinate of the activations at `reads`: their mean distance from the centre / √d_in."""
    unit_out: float = 1.0
    """The same at `writes`."""
    resamples: bool = False
    """Whether dead latents should be revived by calling `resample` now and then."""
    initialised: bool = False
    """Whether `initialise` or a file of trained weights has set the weights."""
    measured: bool = False
    """Whether `initialise`, `adopt` or a file has set the units."""
    product_form: str | None = None
    """The form of the products of training, one of `workbench.core.products.FORMS` or `WHOLE`; None until the first."""

    @classmethod
    def fields(cls) -> list[Field]:
        """The fields of a form for a new training: the constructor's arguments that are chosen."""
        return fields_of(cls.__init__)

    @abstractmethod
    def initialise(self, x: Tensor, target: Tensor | None = None) -> None:
        """Set biases, units and the weights' size from a sample; once, while the weights are fresh.

        Args:
            x: activations at `reads`, `[n, d_in]`; a few thousand do.
            target: the same positions' activations at `writes`, `[n, d_out]`; None where these are the same.
        """

    @abstractmethod
    def adopt(self, x: Tensor, target: Tensor | None = None) -> None:
        """Prepare initialised weights for more training; `reconstruct` stays the same function.

        A sample sets the units that no file states. Norms move from the decoder into the encoder in kinds whose decoder
        rows have norm 1 in training.

        Args:
            x: activations at `reads`, `[n, d_in]`; a few thousand are enough.
            target: the same positions' activations at `writes`, `[n, d_out]`; None where these are the same.

        Raises:
            DictionaryError: a sample of one repeated activation, or a decoder that can't be scaled.
        """

    def begin(self, x: Tensor, target: Tensor | None = None, *, fresh: bool | None = None) -> None:
        """`initialise` or `adopt`, before the first step.

        Args:
            x: as in `initialise`.
            target: as in `initialise`.
            fresh: whether to initialise; None where the weights are not initialised yet.
        """
        initialises = not self.initialised if fresh is None else fresh
        (self.initialise if initialises else self.adopt)(x, target)

    @abstractmethod
    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The parameters as an optimiser takes them, with learning rates such that `lr` means the same at any size of
        the activations; each group has a `name`."""

    @abstractmethod
    def loss_and_gradients(
        self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None, sparsity: float = 1.0
    ) -> Step:
        """The loss on a batch; its gradients replace what is in the parameters' `.grad`.

        Args:
            x: activations at `reads`, `[batch, d_in]`.
            target: activations at `writes`, `[batch, d_out]`; None where these are the same.
            dead: which latents have not fired for long, bool `[width]`; None where none have.
            sparsity: share of the penalty that applies, 0 to 1, for warming up.
        """

    def splice_terms(self, read: Tensor, written: Tensor, codes: Codes) -> SpliceTerms:
        """The output and the loss of this dictionary while a model is trained that runs through it.

        Args:
            read: activations at `reads`, `[..., d_in]`.
            written: activations at `writes`, `[..., d_out]`.
            codes: of `read`.
        """
        alone = self.reconstruct(read.detach())
        return SpliceTerms(self.reconstruct(read, codes), alone, written)

    def widen(self, first_k: int, share: float) -> None:
        """Raise the number of features that are active at a time, in kinds that can.

        Args:
            first_k: how many at the beginning.
            share: how much of the difference is left, from 1 at the beginning to 0 in the end.
        """

    def constrain(self) -> None:
        """Bring the parameters back to where they must be; to be called after every step of the optimiser."""

    def calibrate(self, x: Tensor) -> None:
        """Set what only applies outside training, in kinds that have such; called once, after the last step.

        Args:
            x: activations at `reads`, `[n, d_in]`.
        """

    def take_origin(self, own: Mapping[str, Any]) -> None:
        """Set units, `initialised` and `measured` from a file.

        Args:
            own: the part of `cfg.json` that Workbench writes; empty for other tools' files, which hold trained weights.
        """
        self.unit_in, self.unit_out = own.get("unit_in", 1.0), own.get("unit_out", 1.0)
        self.measured = "unit_out" in own
        trained = not own or "tokens" in own.get("provenance", {})
        self.initialised = own.get("initialised", trained)

    def origin(self) -> dict[str, Any]:
        """The inverse of `take_origin`."""
        return {"unit_in": self.unit_in, "unit_out": self.unit_out, "initialised": self.initialised}

    def resample(
        self,
        x: Tensor,
        dead: Tensor,
        target: Tensor | None = None,
        *,
        optimiser: torch.optim.Optimizer | None = None,
        generator: torch.Generator | None = None,
    ) -> int:
        """Give dead latents a new start where the loss is high; returns how many."""
        return 0
