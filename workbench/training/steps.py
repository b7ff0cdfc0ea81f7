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
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from workbench.core.checks import checked
from workbench.core.hashing import not_finite
from workbench.core.locks import alone
from workbench.core.precision import float64_device, in_float64
from workbench.core.provenance import command_line
from workbench.training.checkpoints import RunFolder, State, TrainingError, has_ended
from workbench.training.learner import Learner
from workbench.training.processes import Processes
from workbench.training.reading import Monitor
from workbench.training.settings import RunOptions, TrainingSettings

LINES = 1000
"""Lines of history, at most."""


@checked(TrainingError)
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
    """One training, from its beginning or from a checkpoint to its end.

    A checkpoint in the folder of the options gives the learner its weights at once.

    Args:
        learner: what is trained, in place.
        settings: what decides about the result.
        processes: those that learn together.
        options: what does not decide about it.

    Raises:
        TrainingError: the folder holds something else, or a training with other settings or other weights, or another
            process trains there.
    """

    def __init__(self, learner: Learner, settings: TrainingSettings, processes: Processes, options: RunOptions):
        self.learner, self.settings, self.processes, self.options = learner, settings, processes, options
        self.batch_size, self.steps = settings.batch_size, learner.steps
        self.start = learner.hash
        self.run: RunFolder | None = None
        self._lock = ExitStack()
        if options.folder is not None and processes.rank == 0 and not has_ended(options.folder):
            self._lock.enter_context(alone(Path(options.folder), TrainingError))
        try:
            if options.folder is not None:  # as whoever had the lock left it
                self.run = RunFolder(options.folder, settings.plain())
            if self.run and self.run.note:
                self.run.restore(learner)
        except BaseException:
            self._lock.close()
            raise

    def finish(self, watch: Monitor) -> None:
        """Train until the end, or until it is cancelled; a training that has ended is left as it is.

        Raises:
            TrainingError: the loss is not finite, or the batches end too soon.
        """
        with self._lock:
            if not (self.run and self.run.finished):
                self._go(watch)
        self.processes.wait()

    def _go(self, watch: Monitor) -> None:
        begun = time.monotonic()
        done = int(self.run.note.get("step", 0)) if self.run else 0
        batches = self.learner.batches(done, begins=not (self.run and self.run.note))
        if self.processes.any(batches is None or watch.stops()):
            return  # there is nothing to keep yet
        assert batches is not None
        state = self._begin()
        first, learned = self.processes.rank == 0, self.learner.tokens_after
        begun -= state.seconds
        saved, logged = state.seconds, (state.step, state.seconds)
        watch.begin(learned(state.step))
        batch = None
        while state.step < self.steps:
            batch = next(batches, None)
            if self.processes.any(watch.stops()):
                break
            if batch is None:
                raise TrainingError(
                    f"The source ends after {learned(state.step):,} of {self.settings.tokens:,} tokens; "
                    "give one that repeats, or fewer tokens."
                )
            line = self._step(batch, state)
            state.seconds = time.monotonic() - begun
            watch.tell(learned(state.step), _shown(line))
            if first and (state.step in (1, self.steps) or state.step % -(-self.steps // LINES) == 0):
                speed = (learned(state.step) - learned(logged[0])) / max(state.seconds - logged[1], 1e-9)
                line |= {"seconds": state.seconds, "tokens_per_second": speed}
                logged = (state.step, state.seconds)
                if self.run:
                    self.run.log(line)
                if self.options.log:
                    self.options.log(line)
            self.learner.provenance["tokens"] = learned(state.step)
            due = state.seconds - saved >= self.options.checkpoint_every and state.step < self.steps
            if self.run and first and due:
                self.run.save(self.learner, state)
                saved = state.seconds
        if batch is not None and state.step == self.steps:
            self.learner.settle(batch)
        self._check_weights()
        if self.run and first and state.step < self.steps:
            self.run.save(self.learner, state)
        elif self.run and first:
            self.run.finish(self.learner, state)

    def _begin(self) -> State:
        """Bring everything to its beginning, or to where the checkpoint is."""
        learner, processes = self.learner, self.processes
        optimiser = _optimiser(learner.parameter_groups(self.settings.lr), self.settings.lr)
        for group in optimiser.param_groups:
            group["full_lr"] = group["lr"]
        state = State(optimiser, torch.zeros(learner.n_features, dtype=torch.long, device=learner.device))
        if self.run and self.run.note:
            self.run.restore_state(state)
        else:
            learner.provenance.update(_provenance(self.settings))
        if int(processes.add(torch.tensor(state.step, device=learner.device))) != state.step * processes.count:
            raise TrainingError(
                "The processes see different checkpoints; the folder must be one that all of them share."
            )
        if self.run and processes.rank == 0:
            self.run.begin(self.start)
        return state

    def _step(self, batch: Any, state: State) -> dict[str, float]:
        """One step of training; what it measured."""
        learner, processes, settings = self.learner, self.processes, self.settings
        share = ramp(state.step, self.steps, settings.warmup, settings.decay)
        for group in state.optimiser.param_groups:
            group["lr"] = share * group["full_lr"]
        dead = state.tokens_since_fired > settings.dead_after
        sparsity = ramp(state.step, self.steps, settings.sparsity_warmup, 0)
        measured, fired = learner.step(batch, dead if bool(dead.any()) else None, state.step / self.steps, sparsity)
        line = self._averaged(measured)
        if not math.isfinite(line["loss"]):
            raise TrainingError(
                f"The loss is {line['loss']} in step {state.step + 1:,} of {self.steps:,}; build it anew "
                f"and train it with a lower lr than {settings.lr:g}, on activations that are finite numbers."
            )
        processes.average(parameter.grad for parameter in learner.parameters())
        length = _shorten(state.optimiser, learner.unit(settings.lr), settings.clip)
        state.optimiser.step()
        learner.constrain()
        processes.average(learner.shared())
        state.step += 1
        new = learner.tokens_after(state.step) - learner.tokens_after(state.step - 1)
        state.tokens_since_fired = torch.where(processes.add(fired) > 0, 0, state.tokens_since_fired + new)
        dead = state.tokens_since_fired > settings.dead_after
        dead_share = float(in_float64(dead).mean()) if learner.n_features else 0.0
        self._resample(batch, state)
        where = {"step": state.step, "tokens": learner.tokens_after(state.step)}
        return where | line | {"dead": dead_share, "gradient": length, "lr": share * settings.lr}

    def _check_weights(self) -> None:
        """Refuse to end with weights that are no finite numbers: the last step may have made them so."""
        tensors = itertools.chain(self.learner.parameters(), self.learner.shared())
        if not_finite({str(number): tensor for number, tensor in enumerate(tensors)}):
            raise TrainingError(
                "The training made weights that are not finite numbers; build it anew and train it with a lower lr "
                f"than {self.settings.lr:g}, on activations that are finite numbers."
            )

    def _averaged(self, measured: dict[str, float]) -> dict[str, float]:
        """The numbers of a step, averaged over the processes."""
        home = float64_device(self.learner.device)
        numbers = torch.tensor(list(measured.values()), dtype=torch.float64, device=home)
        self.processes.average([numbers])
        return dict(zip(measured, numbers.tolist(), strict=True))

    def _resample(self, batch: Any, state: State) -> None:
        """Now and then revive dead features, where the learner wants it and they still have time to learn: as much as
        makes a feature dead, at least."""
        every = max(self.settings.dead_after // self.batch_size, 1)
        late = state.step > min(self.steps * (1 - self.settings.decay), self.steps - every)
        dead = state.tokens_since_fired > self.settings.dead_after
        if not self.learner.resamples or state.step % every or late or not bool(dead.any()):
            return
        chance = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + state.step)
        self.learner.resample(batch, dead, state.optimiser, chance)
        state.tokens_since_fired[dead] = 0


def _optimiser(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """Adam, or gradient descent with Nesterov's momentum where the groups state a `momentum`."""
    if groups and "momentum" in groups[0]:
        return torch.optim.SGD(groups, lr=lr, momentum=groups[0]["momentum"], nesterov=True)
    return torch.optim.Adam(groups or [{"params": [], "name": ""}], lr=lr, fused=True)


def _shown(line: dict[str, float]) -> str:
    """The measure that says most, in words."""
    return f"FVU {line['fvu']:.3f}" if "fvu" in line else f"loss {line['loss']:.3f}"


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


def _provenance(settings: TrainingSettings) -> dict[str, Any]:
    """What a dictionary records of its training."""
    source = settings.source
    names = {"model_name": "model", "model_hash": "model_hash", "corpus": "corpus", "corpus_hash": "corpus_hash"}
    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name in ("workbench-lm", "torch", "transformers")}
    known = {name: source[other] for name, other in names.items() if other in source}
    how = {"seed": settings.seed, "versions": versions, "command": command_line(), "settings": settings.plain()}
    return known | {"tokens": 0} | how
