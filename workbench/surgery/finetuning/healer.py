"""What a small fine-tune trains: some parameters of a model, under masks that may come slowly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workbench.core.checks import Number, Share, checked
from workbench.core.hashing import fingerprint
from workbench.corpus import TokenBatch
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel
from workbench.model.weights import parameters_of
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.finetuning.batches import predictions, rows
from workbench.surgery.finetuning.learned_weights import AdaptedWeight
from workbench.surgery.operations.masks import kept
from workbench.training.checkpoints import TrainingError
from workbench.training.processes import Processes
from workbench.training.text_batches import TextBatches

WEIGHTS = "model.safetensors"
"""File of the trained parameters in a checkpoint."""


@checked(SurgeryError)
@dataclass(frozen=True)
class Decay:
    """A mask that comes slowly.

    Every step chooses the weights of least magnitude anew and multiplies them by a factor that falls linearly from 1
    to 0.
    """

    sparsity: Annotated[Number, Ge(0), Lt(1)] = 0.5
    """Share of each matrix that goes, from 0 to below 1; an N:M pattern has its own."""
    pattern: str = "2:4"
    """See `masks.kept`."""
    until: Share = 0.5
    """Share of the steps after which the factor is 0, from 0 to 1."""


class SlowMasks:
    """The masks of matrices while a model learns.

    Args:
        weights: the matrices, with the modules that they belong to.
        decay: the schedule.
    """

    def __init__(self, weights: Sequence[tuple[AdaptedWeight, nn.Module]], decay: Decay):
        self._weights, self._decay = weights, decay

    @torch.no_grad()
    def advance(self, done: float) -> None:
        """Choose the masked weights anew and set their factor for this share of the steps."""
        share = max(0.0, 1 - done / self._decay.until) if self._decay.until else 0.0
        for adapted, module in self._weights:
            adapted.kept = None  # the scores are those of the weights without their factor
            weight: Any = module.weight
            score = adapted.adapted(weight.detach()).abs()
            keep = kept(score.T if adapted.turned else score, self._decay.sparsity, self._decay.pattern)
            adapted.kept, adapted.share = (keep.T if adapted.turned else keep), share


class Healer:
    """A `Learner` of some parameters of a model.

    Args:
        model: its trained parameters are replaced by copies in float32, which 16 bits would round the steps of; the
            others may be shared with other models.
        trained: the parameters to train.
        batches: the endless token batches.
        masks: the masks that come slowly; None for none.
        processes: those that train together.
    """

    n_features, resamples = 0, False

    def __init__(
        self,
        model: LanguageModel,
        trained: Sequence[nn.Parameter],
        batches: TextBatches,
        *,
        masks: SlowMasks | None,
        processes: Processes,
    ):
        self.model, self.trained, self.masks = model, list(trained), masks
        self.device = processes.device
        self.provenance: dict[str, Any] = {}
        self._batches = batches
        self._module: nn.Module = model.network.module
        for one in self.trained:
            one.data = one.data.to(torch.promote_types(one.dtype, torch.float32), copy=True)
            one.requires_grad_(True)

    @property
    def steps(self) -> int:
        """See `Learner`."""
        return self._batches.steps

    def tokens_after(self, step: int) -> int:
        """See `Learner`."""
        return self._batches.tokens_after(step)

    @property
    def hash(self) -> str:
        """SHA-256 over the model's weights."""
        return fingerprint({f"model.{name}": tensor for name, tensor in parameters_of(self._module).items()})

    def parameters(self) -> Iterator[nn.Parameter]:
        """See `Learner`."""
        return iter(self.trained)

    def shared(self) -> Iterator[Tensor]:
        """Nothing beside gradients."""
        return iter(())

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """All parameters at one learning rate."""
        return [{"params": self.trained, "lr": lr, "name": "model"}]

    def unit(self, lr: float) -> float:
        """The gradient is measured as it is."""
        return lr

    def batches(self, done: int, begins: bool) -> Iterator[TokenBatch]:
        """See `Learner`."""
        return itertools.islice(self._batches, done, None)

    def step(
        self, batch: TokenBatch, dead: Tensor | None, done: float, sparsity: float
    ) -> tuple[dict[str, float], Tensor]:
        """Gradients of the cross-entropy of the next token, or of labels."""
        if self.masks is not None:
            self.masks.advance(done)
        for parameter in self.trained:
            parameter.grad = None
        count = sum(len(target) for _, _, target in map(predictions, rows(batch)))
        total = right = 0.0
        for row in rows(batch):  # one at a time: activations and logits of all rows are larger than the model
            tokens, at, target = predictions(row)
            with taking_gradients():
                logits = self.model.network.run(tokens)[at]  # [predictions, vocab]
                loss = nn.functional.cross_entropy(logits, target, reduction="sum") / count
                loss.backward()
            total += loss.item()
            right += int((logits.argmax(-1) == target).sum())
        measured = {"loss": total, "ce": total, "accuracy": right / count}
        return measured, torch.zeros(0, dtype=torch.long, device=self.device)

    def settle(self, batch: TokenBatch) -> None:
        """Nothing applies outside training only."""

    def constrain(self) -> None:
        """No constraint."""

    def resample(self, batch: Any, dead: Tensor, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """No feature dies here."""

    def save(self, folder: Path, *, final: bool) -> None:
        """Write the trained parameters; all others are the parent's."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {str(number): one.detach() for number, one in enumerate(self.trained)}
        save_file(tensors, folder / WEIGHTS)

    def restore(self, folder: Path, note: Mapping[str, Any], *, final: bool) -> None:
        """See `Learner`."""
        try:
            tensors = load_file(folder / WEIGHTS)
            with torch.no_grad():
                for number, one in enumerate(self.trained):
                    one.copy_(tensors[str(number)])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise TrainingError(f"The training can't be continued ({error}); delete {folder}.") from error
        self.provenance.update(note.get("provenance", {}))

    @torch.no_grad()
    def finish(self) -> None:
        """Leave plain parameters that hold the low-rank additions and the masks."""
        if self.masks is not None:
            self.masks.advance(1.0)
        inner: list[Any] = list(self._module.modules())
        for module in inner:
            if isinstance(getattr(module, "adapted_weight", None), AdaptedWeight):
                module.adapted_weight.leave(module)
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
