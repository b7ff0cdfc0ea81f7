"""The affine maps of a tuned lens, as a training sees them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.hashing import fingerprint
from workbench.corpus import TokenBatch
from workbench.lens.errors import LensError
from workbench.lens.formats.workbench import read, write_files
from workbench.lens.readout import Readout, Reducer
from workbench.lens.streams import in_parts, read_streams
from workbench.lens.transports import LensRecord
from workbench.lens.tuned import TunedLens
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel
from workbench.training.checkpoints import TrainingError
from workbench.training.processes import Processes
from workbench.training.settings import TEXT_TOKENS, TrainingSettings
from workbench.training.text_batches import TextBatches

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-3
"""Of the paper's program, which multiplies the learning rate by 1 - momentum."""
NAMED = ("model_name", "model_hash")
"""Of the provenance, what a `LensRecord` has fields for."""


@dataclass(frozen=True, kw_only=True)
class LensSettings(TrainingSettings):
    """What decides about the result of fitting a tuned lens."""

    batch: int
    """Windows in a step, over all processes."""
    context: int
    """Positions of a window."""
    processes: int
    """Processes that learn together."""
    momentum: float = MOMENTUM
    weight_decay: float = WEIGHT_DECAY
    counts: str = TEXT_TOKENS
    """What `tokens` counts."""


class LensLearner:
    """See `Learner`.

    Args:
        model: left as it is.
        batches: the endless token batches.
        processes: those that learn together.
    """

    n_features = 0
    resamples = False

    def __init__(self, model: LanguageModel, batches: TextBatches, processes: Processes):
        self.model, self._batches = model, batches
        self.readout = Readout(model)
        self.device = self.readout.head.device
        self.layers = tuple(range(-1, model.network.n_layers - 1))
        shape = len(self.layers), model.network.d_model
        self.weight = nn.Parameter(torch.zeros(*shape, shape[1], device=self.device))
        self.bias = nn.Parameter(torch.zeros(shape, device=self.device))
        self.provenance: dict[str, Any] = {}
        self._reducer = Reducer(self.readout, 1)

    def lens(self) -> TunedLens:
        """The maps as they are now."""
        rest = {name: value for name, value in self.provenance.items() if name not in NAMED}
        record = LensRecord(self.model.name, self.model.hash, self.layers, {"tokens": 0} | rest)
        return TunedLens(self.weight.detach(), self.bias.detach(), record)

    @property
    def steps(self) -> int:
        """See `Learner`."""
        return self._batches.steps

    def tokens_after(self, step: int) -> int:
        """See `Learner`."""
        return self._batches.tokens_after(step)

    def batches(self, done: int, begins: bool) -> Iterator[TokenBatch] | None:
        """See `Learner`; nothing is set from a sample."""
        return itertools.islice(self._batches, done, None)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The maps."""
        return iter((self.weight, self.bias))

    def shared(self) -> Iterator[Tensor]:
        """No other tensors."""
        return iter(())

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """One group, which learns by gradient descent with momentum."""
        how = {"lr": self.unit(lr), "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "name": "maps"}
        return [{"params": list(self.parameters()), **how}]

    def unit(self, lr: float) -> float:
        """The gradient counts as it is."""
        return lr * (1 - MOMENTUM)

    def step(
        self, batch: TokenBatch, dead: Tensor | None, done: float, sparsity: float
    ) -> tuple[dict[str, float], Tensor]:
        """The gradients of the KL divergence, as the mean over the tokens that count and the sum over the layers."""
        for one in self.parameters():
            one.grad = torch.zeros_like(one)
        tokens = int(batch.content.sum())
        sums = torch.zeros(len(self.layers), device=self.device)
        for part in in_parts(self.model, batch, len(self.layers)):
            if not bool(part.content.any()):
                continue
            streams = read_streams(self.model, self.readout, part, self.layers)
            for at in self.readout.blocks(len(streams.final)):
                self._reducer.begin(streams.final[at])
                for place, stream in enumerate(streams.layers):
                    sums[place] += self._add_gradients(place, stream[at].float(), tokens)
        return {"loss": float(sums.mean()) / tokens}, torch.zeros(0, dtype=torch.long, device=self.device)

    def _add_gradients(self, place: int, h: Tensor, tokens: int) -> Tensor:
        """Add the gradients of one map at a block of tokens.

        Args:
            place: of the map.
            h: the stream, `[rows, d_model]`.
            tokens: of the whole batch.

        Returns:
            The sum of the rows' KL divergences.
        """
        assert self.weight.grad is not None
        assert self.bias.grad is not None
        with torch.no_grad():
            estimate = h + h @ self.weight[place].T + self.bias[place]
        with taking_gradients():
            normed = self.readout.normed(estimate.requires_grad_())
            kl, slopes = self._reducer.slope(normed.detach())
            (pulled,) = torch.autograd.grad(normed, estimate, slopes / tokens)
        self.weight.grad[place].addmm_(pulled.T, h)
        self.bias.grad[place] += pulled.sum(0)
        return kl.sum()

    def constrain(self) -> None:
        """Maps are free."""

    def resample(
        self, batch: TokenBatch, dead: Tensor, optimiser: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        """A lens has no features."""

    def settle(self, batch: TokenBatch) -> None:
        """Maps apply outside training as they do inside."""

    @property
    def hash(self) -> str:
        """Of the maps."""
        return fingerprint({"weight": self.weight, "bias": self.bias})

    def save(self, folder: Path, *, final: bool) -> None:
        """Write the lens as `load_lens` reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        write_files(self.lens(), folder)

    def restore(self, folder: Path, note: Mapping[str, Any], *, final: bool) -> None:
        """See `Learner`."""
        if self.hash != note["start"]:
            raise TrainingError(
                f"{folder if final else folder.parent} holds a training that began with other weights; choose another."
            )
        try:
            saved = read(folder).tensors()
            with torch.no_grad():
                self.weight.copy_(saved["weight"])
                self.bias.copy_(saved["bias"])
        except (LensError, KeyError, RuntimeError) as error:
            raise TrainingError(
                f"The training can't be continued ({str(error).rstrip('.')}); delete {folder}."
            ) from error
        self.provenance.update(note.get("provenance", {}))
