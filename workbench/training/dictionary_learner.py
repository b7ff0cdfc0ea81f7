"""A dictionary that learns from activations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.precision import in_float64
from workbench.core.products import FORMS, WHOLE
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.loading import load_dictionary
from workbench.dictionaries.protocol import JOIN
from workbench.dictionaries.sites import gather
from workbench.dictionaries.trainable import Trainable
from workbench.harvest import Activations, Buffer
from workbench.model.massive import massive
from workbench.training.checkpoints import TrainingError
from workbench.training.processes import Processes
from workbench.training.reading import Monitor
from workbench.training.settings import TrainingSettings

SAMPLE = 4096
"""Activations from which a fresh dictionary gets its biases and sizes."""
NUMBERS = ("loss", "error", "penalty", "auxiliary", "fvu", "l0")
"""What of a `Step` is measured."""


def described(dictionary: Trainable) -> dict[str, Any]:
    """What kind of dictionary it is, as plain data."""
    sizes = {name: getattr(dictionary, name) for name in ("kind", "d_in", "d_out", "n_features")}
    return sizes | dictionary.config().get("workbench", {}).get("settings", {})


@dataclass(frozen=True, kw_only=True)
class DictionarySettings(TrainingSettings):
    """What decides about the result of training a dictionary."""

    context: int
    """Positions of a window of the corpus."""
    block: int
    """Activations that are mixed together, over all processes."""
    reads: str
    """Hook point of the dictionary's input."""
    writes: str
    """Hook point of the dictionary's target."""
    processes: int
    """Processes that learn together."""
    dictionary: Mapping[str, Any]
    """Kind, sizes and settings of the dictionary, as plain data."""

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return -(-self.tokens // self.batch_size)


class DictionaryLearner:
    """See `Learner`.

    Args:
        dictionary: what learns.
        buffer: its activations.
        settings: of the training.
        watch: asked whether to stop, once the sample is read.
        processes: those that learn together.
    """

    def __init__(
        self,
        dictionary: Trainable,
        buffer: Buffer,
        settings: DictionarySettings,
        watch: Monitor,
        processes: Processes,
    ):
        self.dictionary, self.buffer, self.settings = dictionary, buffer, settings
        self.watch, self.processes = watch, processes
        self.device, self.n_features = processes.device, dictionary.n_features
        self.resamples = dictionary.resamples

    @property
    def steps(self) -> int:
        """See `Learner`."""
        return self.settings.steps

    def tokens_after(self, step: int) -> int:
        """See `Learner`; every step learns from `batch_size` activations."""
        return step * self.settings.batch_size

    @property
    def provenance(self) -> dict[str, Any]:
        """The dictionary's."""
        return self.dictionary.provenance

    @property
    def hash(self) -> str:
        """Of the dictionary's tensors; its settings are among those of the training."""
        return self.dictionary.tensors_hash

    def parameters(self) -> Iterator[nn.Parameter]:
        """The dictionary's."""
        return self.dictionary.parameters()

    def shared(self) -> Iterator[Tensor]:
        """The dictionary's buffers."""
        return self.dictionary.buffers()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The dictionary's."""
        return self.dictionary.parameter_groups(lr)

    def constrain(self) -> None:
        """The dictionary's."""
        self.dictionary.constrain()

    def unit(self, lr: float) -> float:
        """So that the gradient's length is that of the loss per coordinate."""
        return self.dictionary.d_out * lr

    def batches(self, done: int, begins: bool) -> Iterator[Activations] | None:
        """See `Learner`; the first ones initialise a dictionary, or prepare one that is initialised already."""
        buffer = self.buffer
        if done:
            buffer.restore(buffer.state() | {"handed": done})
        sample: list[Activations] = []
        if begins:
            sample = list(itertools.islice(buffer, min(-(-SAMPLE // buffer.batch_size), self.settings.steps)))
            if self.processes.any(self.watch.stops()):
                return None
            if sample:
                x, target = self._joined(*self._pair(Activations.cat(sample)))
                self.dictionary.begin(x, target, fresh=self.settings.fresh)
                self.processes.copy_first(self.dictionary.state_dict().values())
        whole = itertools.chain(sample, buffer)
        return itertools.takewhile(lambda batch: len(batch) == buffer.batch_size, whole)

    def step(
        self, batch: Activations, dead: Tensor | None, done: float, sparsity: float
    ) -> tuple[dict[str, float], Tensor]:
        """See `Learner`."""
        x, target = self._pair(batch)
        step = self.dictionary.loss_and_gradients(x, target, dead=dead, sparsity=sparsity)
        if self.dictionary.product_form:
            self.provenance["product"] = self.dictionary.product_form
        share = float(in_float64(massive(x.norm(dim=-1))).mean())
        return {name: getattr(step, name) for name in NUMBERS} | {"massive": share}, step.fired

    def resample(
        self, batch: Activations, dead: Tensor, optimiser: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        """See `Learner`; from the batches of all processes."""
        x, target = self._joined(*self._pair(batch))
        self.dictionary.resample(x, dead, target, optimiser=optimiser, generator=generator)

    def settle(self, batch: Activations) -> None:
        """See `Learner`; from the batches of all processes."""
        x, _ = self._joined(*self._pair(batch))
        self.dictionary.calibrate(x)

    def save(self, folder: Path, *, final: bool) -> None:
        """The dictionary's folder."""
        if final:
            self.dictionary.save(folder)
        else:
            self.dictionary.write(folder)

    def restore(self, folder: Path, note: Mapping[str, Any], *, final: bool) -> None:
        """See `Learner`."""
        dictionary = self.dictionary
        try:
            saved = load_dictionary(folder)
        except DictionaryError as error:
            where = folder if final else folder.parent
            raise TrainingError(f"The training can't be continued: {error} Or delete {where}.") from error
        if not isinstance(saved, Trainable) or type(saved) is not type(dictionary):
            raise TrainingError(f"{folder} holds a {saved.kind}, not a {dictionary.kind}; choose another folder.")
        if dictionary.tensors_hash not in (note["start"], saved.tensors_hash):
            raise TrainingError(
                f"{folder if final else folder.parent} holds a training that began with other weights; "
                "build the dictionary as then, with the same seed, or choose another folder."
            )
        dictionary.load_state_dict(saved.state_dict())
        dictionary.take_origin(saved.origin())
        dictionary.provenance = saved.provenance
        if final:
            dictionary.folder = saved.folder
        else:  # a checkpoint goes on in the form in which it began, to the same bits
            form = saved.provenance.get("product")
            dictionary.product_form = form if form in FORMS else WHOLE

    def _pair(self, batch: Activations) -> tuple[Tensor, Tensor | None]:
        """What is read, and what is to be written where that is something else."""
        reads, writes = (points.split(JOIN) for points in (self.settings.reads, self.settings.writes))
        for name in (*reads, *writes):
            if name not in batch.values:
                raise TrainingError(f"The source holds activations at {', '.join(batch.values)}, not at {name}.")
        x = gather(batch.values, reads).to(self.device)
        return x, None if reads == writes else gather(batch.values, writes).to(self.device)

    def _joined(self, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same with the rows of all processes."""
        return self.processes.join(x), None if target is None else self.processes.join(target)
