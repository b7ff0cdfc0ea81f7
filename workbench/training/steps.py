"""The steps of a training: schedules, clipping, dead latents, checkpoints, and where they go on.

The recipe is the usual one for sparse autoencoders: Adam, a learning rate that rises and at the end falls in a line,
clipped gradients, a sparsity penalty that warms up (Gao et al., "Scaling and evaluating sparse autoencoders", 2024,
arXiv 2406.04093; Conerly et al., "Update on how we train SAEs", 2024,
https://transformer-circuits.pub/2024/april-update).
"""

from __future__ import annotations

import itertools
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from workbench.dictionaries.trainable import Step, Trainable
from workbench.harvest import Activations, Buffer
from workbench.training.checkpoints import RunFolder, State, TrainingError
from workbench.training.processes import Processes
from workbench.training.reading import Watch

SAMPLE = 4096
"""Activations from which a fresh dictionary gets its biases and sizes."""
LINES = 1000
"""Lines of history, at most."""


def ramp(step: int, steps: int, rise: float, fall: float) -> float:
    """Share of the learning rate in a step: up in a line, level, down in a line.

    Args:
        step: from 0.
        steps: how many there are.
        rise: share of the steps by the end of which it is 1.
        fall: share of the steps during which it goes down; one step after the last it would be 0.
    """
    return min(1.0, (step + 1) / max(rise * steps, 1), (steps - step) / max(fall * steps, 1))


class Training:
    """One training, from its beginning or from a checkpoint to its end."""

    def __init__(self, dictionary: Trainable, settings: dict[str, Any], processes: Processes, run: RunFolder | None):
        self.dictionary, self.settings, self.processes, self.run = dictionary, settings, processes, run
        self.batch_size: int = settings["batch_size"]
        self.steps = -(-settings["tokens"] // self.batch_size)
        self.start = dictionary.hash

    def go(
        self,
        buffer: Buffer,
        watch: Watch,
        checkpoint_every: float,
        log: Callable[[Mapping[str, float]], None] | None,
    ) -> None:
        """Train until the end, or until it is cancelled."""
        begun = time.monotonic()
        sample = self._sample(buffer)
        if self.processes.any(watch.stops()):
            return  # there is nothing to keep yet
        state = self._begin(sample, buffer)
        first = self.processes.rank == 0
        begun -= state.seconds
        saved, logged = state.seconds, (state.step, state.seconds)
        watch.begin(state.step * self.batch_size)
        batches = itertools.chain(sample, buffer)
        while state.step < self.steps:
            batch = next(batches, None)
            if self.processes.any(watch.stops()):
                break
            if batch is None or len(batch) < buffer.batch_size:
                raise TrainingError(
                    f"The source ends after {state.step * self.batch_size:,} of {self.settings['tokens']:,} tokens; "
                    "give one that repeats, or fewer tokens."
                )
            line = self._step(batch, state)
            state.seconds = time.monotonic() - begun
            watch.tell(state.step * self.batch_size, f"FVU {line['fvu']:.3f}")
            if first and (state.step in (1, self.steps) or state.step % -(-self.steps // LINES) == 0):
                speed = (state.step - logged[0]) * self.batch_size / max(state.seconds - logged[1], 1e-9)
                line |= {"seconds": state.seconds, "tokens_per_second": speed}
                logged = (state.step, state.seconds)
                if self.run:
                    self.run.log(line)
                if log:
                    log(line)
            self.dictionary.provenance["tokens"] = state.step * self.batch_size
            if self.run and first and state.seconds - saved >= checkpoint_every and state.step < self.steps:
                self.run.save(self.dictionary, state)
                saved = state.seconds
        if self.run and first and state.step < self.steps:
            self.run.save(self.dictionary, state)
        elif self.run and first:
            self.run.finish(self.dictionary, state)

    def _sample(self, buffer: Buffer) -> list[Activations]:
        """The first batches, for a dictionary that starts fresh."""
        fresh = self.settings["fresh"]
        if fresh is None:
            fresh = "tokens" not in self.dictionary.provenance
        if not fresh or (self.run and self.run.note):
            return []
        return list(itertools.islice(buffer, min(-(-SAMPLE // self.batch_size), self.steps)))

    def _begin(self, sample: list[Activations], buffer: Buffer) -> State:
        """Bring everything to its beginning, or to where the checkpoint is."""
        dictionary, processes = self.dictionary, self.processes
        if sample:
            dictionary.initialise(*self._joined(*self._pair(Activations.cat(sample))))
            processes.copy_first(dictionary.state_dict().values())
        groups = dictionary.parameter_groups(self.settings["lr"])
        optimiser = torch.optim.Adam(groups or [{"params": [], "name": ""}], lr=self.settings["lr"], fused=True)
        for group in optimiser.param_groups:
            group["full_lr"] = group["lr"]
        device = next(itertools.chain(dictionary.parameters(), dictionary.buffers())).device
        state = State(optimiser, torch.zeros(dictionary.n_features, dtype=torch.long, device=device))
        if self.run and self.run.note:
            self.run.restore_state(state)
            buffer.restore(buffer.state() | {"handed": state.step})
        else:
            dictionary.provenance = dictionary.provenance | _provenance(self.settings)
        if int(processes.add(state.silent.new_tensor(state.step))) != state.step * processes.count:
            raise TrainingError(
                "The processes see different checkpoints; the folder must be one that all of them share."
            )
        if self.run and processes.rank == 0:
            self.run.begin(self.start)
        return state

    def _pair(self, batch: Activations) -> tuple[Tensor, Tensor | None]:
        """What is read, and what is to be written where that is something else."""
        reads, writes = self.settings["reads"], self.settings["writes"]
        for name in (reads, writes):
            if name not in batch.values:
                raise TrainingError(f"The source holds activations at {', '.join(batch.values)}, not at {name}.")
        device = next(itertools.chain(self.dictionary.parameters(), self.dictionary.buffers())).device
        x = batch.values[reads].to(device)
        return x, None if reads == writes else batch.values[writes].to(device)

    def _joined(self, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same with the rows of all processes."""
        return self.processes.join(x), None if target is None else self.processes.join(target)

    def _step(self, batch: Activations, state: State) -> dict[str, float]:
        """One step of training; what it measured."""
        dictionary, processes, settings = self.dictionary, self.processes, self.settings
        share = ramp(state.step, self.steps, settings["warmup"], settings["decay"])
        for group in state.optimiser.param_groups:
            group["lr"] = share * group["full_lr"]
        x, target = self._pair(batch)
        dead = state.silent > settings["dead_after"]
        sparsity = ramp(state.step, self.steps, settings["sparsity_warmup"], 0)
        step = dictionary.loss_and_gradients(x, target, dead=dead if bool(dead.any()) else None, sparsity=sparsity)
        line = self._measured(step)
        if not math.isfinite(line["loss"]):
            raise TrainingError(
                f"The loss is {line['loss']} in step {state.step + 1:,} of {self.steps:,}; build the dictionary anew "
                f"and train it with a lower lr than {settings['lr']:g}, on activations that are finite numbers."
            )
        processes.average(parameter.grad for parameter in dictionary.parameters())
        length = _shorten(state.optimiser, dictionary.d_out * settings["lr"], settings["clip"])
        state.optimiser.step()
        dictionary.constrain()
        processes.average(dictionary.buffers())
        state.step += 1
        state.silent = torch.where(processes.add(step.fired) > 0, 0, state.silent + self.batch_size)
        self._resample(x, target, state)
        dead_share = float((state.silent > settings["dead_after"]).double().mean())
        where = {"step": state.step, "tokens": state.step * self.batch_size}
        return where | line | {"dead": dead_share, "gradient": length, "lr": share * settings["lr"]}

    def _measured(self, step: Step) -> dict[str, float]:
        """The numbers of a step, averaged over the processes."""
        names = ("loss", "error", "penalty", "auxiliary", "fvu", "l0")
        numbers = torch.tensor([getattr(step, name) for name in names], dtype=torch.float64, device=step.fired.device)
        self.processes.average([numbers])
        return dict(zip(names, numbers.tolist(), strict=True))

    def _resample(self, x: Tensor, target: Tensor | None, state: State) -> None:
        """Now and then revive dead latents, where the kind wants it and they still have time to learn."""
        every = max(self.settings["dead_after"] // self.batch_size, 1)
        late = state.step > self.steps * (1 - self.settings["decay"])
        dead = state.silent > self.settings["dead_after"]
        if not self.dictionary.resamples or state.step % every or late or not bool(dead.any()):
            return
        chance = torch.Generator(x.device).manual_seed(self.settings["seed"] * 1_000_003 + state.step)
        x, target = self._joined(x, target)
        self.dictionary.resample(x, dead, target, optimiser=state.optimiser, generator=chance)
        state.silent[dead] = 0


def _shorten(optimiser: torch.optim.Optimizer, unit: float, longest: float | None) -> float:
    """Shorten the gradient to at most `longest`; its length before that, in the unit that `train` says."""
    parts = [
        (parameter.grad, group["full_lr"] / unit)
        for group in optimiser.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    length = math.sqrt(sum((float(torch.linalg.vector_norm(gradient)) * size) ** 2 for gradient, size in parts))
    if longest is not None and length > longest:
        for gradient, _ in parts:
            gradient.mul_(longest / length)
    return length


def _provenance(settings: dict[str, Any]) -> dict[str, Any]:
    """What a dictionary records of its training."""
    source = settings["source"]
    names = {"model_name": "model", "model_hash": "model_hash", "corpus": "corpus", "corpus_hash": "corpus_hash"}
    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name in ("workbench-lm", "torch", "transformers")}
    made = {name: source[other] for name, other in names.items() if other in source}
    how = {"seed": settings["seed"], "versions": versions, "command": shlex.join(sys.argv), "settings": settings}
    return made | {"tokens": 0} | how
