"""The folder of a training: what it takes to go on after any interruption, and the curves.

    step-00001200/    the last checkpoint: a dictionary folder, with `optimiser.safetensors` and `progress.json`
    history.jsonl     what was measured, a line of JSON for each logged step

and once it has ended, in place of the checkpoint, the dictionary's own files and `progress.json` beside the history.

A checkpoint is written under another name, reaches the disk, gets its name, and only then is the one before it
removed: whenever the process is killed, one whole checkpoint is there, or none yet.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import torch
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.checks import Natural, Number, checked
from workbench.core.display import Rows
from workbench.core.errors import WorkbenchError
from workbench.core.failures import explained
from workbench.core.files import clear_leftovers, replacing
from workbench.core.forms import as_form, parse_json, read_json, read_text
from workbench.core.hashing import fingerprint
from workbench.core.locks import clear_lock
from workbench.core.paths import check_links
from workbench.core.settings import difference
from workbench.dictionaries.folder import CONFIG, WEIGHTS
from workbench.training.learner import Learner
from workbench.training.settings import POSITIONS

FORMAT = 3
"""Version of `progress.json` and of the optimiser's state."""
OLD = 2
"""In this version the optimiser's state has the name `silent` for `tokens_since_fired`."""
HISTORY = "history.jsonl"
OPTIMISER = "optimiser.safetensors"
PROGRESS = "progress.json"


class TrainingError(WorkbenchError):
    """A training that can't be begun, continued or carried on as asked."""


@with_config(ConfigDict(extra="allow"))
class SavedVersion(TypedDict):
    """What every version of `progress.json` has."""

    format: int


@with_config(ConfigDict(extra="allow"))
class SavedProgress(SavedVersion):
    """`progress.json`."""

    start: str
    step: Natural
    seconds: Number
    settings: dict[str, Any]
    provenance: NotRequired[dict[str, Any]]
    optimiser_sha256: NotRequired[str]


@with_config(ConfigDict(extra="allow"))
class SavedLine(TypedDict):
    """A line of the history: the measures of a step."""

    step: Natural


@dataclass
class State:
    """Where a training is, beside the dictionary's own weights."""

    optimiser: torch.optim.Optimizer
    tokens_since_fired: Tensor
    """Tokens since each feature was last active, `[n_features]` int64."""
    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """How long they took, over all calls."""

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's moments, by group, place in the group and name; and `tokens_since_fired`."""
        return {"tokens_since_fired": self.tokens_since_fired} | {
            f"{group['name']}.{place}.{name}": value
            for group in self.optimiser.param_groups
            for place, parameter in enumerate(group["params"])
            for name, value in self.optimiser.state.get(parameter, {}).items()
        }

    def take(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """The inverse of `tensors`."""
        self.step, self.seconds = note["step"], note["seconds"]
        self.tokens_since_fired.copy_(tensors["tokens_since_fired"])
        for group in self.optimiser.param_groups:
            for place, parameter in enumerate(group["params"]):
                prefix = f"{group['name']}.{place}."
                moments = {
                    name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
                }
                if moments:  # copies, because what is read can lie at any address
                    self.optimiser.state[parameter] = {
                        name: value.to(parameter.device, copy=True) for name, value in moments.items()
                    }


def has_ended(folder: str | Path) -> bool:
    """Whether a folder holds a training that has come to its end."""
    return (Path(folder) / PROGRESS).exists()


class RunFolder:
    """The folder of one training.

    Args:
        folder: where it is, or will be.
        settings: all that decides about the result, as plain data.

    Attributes:
        note: what the last checkpoint or the end of the training says; empty where there is neither.
        finished: whether the training has come to its end.

    Raises:
        TrainingError: the folder holds something else, or the training of other settings.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))
        self.finished = has_ended(self.folder)
        self._at = self.folder if self.finished else self._newest()
        for place in {self.folder, self._at or self.folder}:
            check_links(place, TrainingError)
        self.note: dict[str, Any] = self._read_note() if self._at else {}
        if not self._at and (self.folder / CONFIG).exists() and not self._was_trained_here():
            raise TrainingError(f"{folder} holds a dictionary that was not trained there; choose another folder.")
        wrong = difference(self._kept(), self.settings) if self.note else ""
        if wrong:
            raise TrainingError(f"{folder} holds another training: {wrong}. Choose another folder, or delete this one.")
        if self.finished:  # a killed process may not have come to it
            with contextlib.suppress(OSError):
                self._clear()
                clear_lock(self.folder)

    def _kept(self) -> dict[str, Any]:
        """The settings of the note. Older notes do not say what tokens count; a result stays what it is, whichever."""
        kept = self.note["settings"]
        if "counts" not in self.settings:
            return kept
        return {"counts": self.settings["counts"] if self.finished else POSITIONS} | kept

    def restore(self, learner: Learner) -> None:
        """Give a learner the weights of the checkpoint.

        Raises:
            TrainingError: they are damaged, or the learner is not the one that the training began with.
        """
        assert self._at is not None
        learner.restore(self._at, self.note, final=self.finished)

    def restore_state(self, state: State) -> None:
        """Set the rest of the state as it was at the checkpoint.

        Raises:
            TrainingError: it is damaged.
        """
        assert self._at is not None
        try:
            tensors = load_file(self._at / OPTIMISER)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{self._at / OPTIMISER} can't be read ({error}); delete {self._at}.") from error
        if fingerprint(tensors) != self.note.get("optimiser_sha256"):
            raise TrainingError(f"{self._at / OPTIMISER} is not what was written; delete {self._at}.")
        if self.note["format"] == OLD:
            tensors["tokens_since_fired"] = tensors.pop("silent")
        state.take(tensors, self.note)

    def begin(self, start: str) -> None:
        """Be ready for new lines of history; what was measured after the checkpoint will be measured again.

        Args:
            start: hash of the weights that the training begins with.
        """
        self.note = {"start": start} | self.note
        kept = [line for line in read_history(self.folder) if line["step"] <= self.note.get("step", 0)]
        with replacing(self.folder / HISTORY, TrainingError, owned=True) as temporary:
            temporary.write_text("".join(f"{json.dumps(line)}\n" for line in kept))

    def log(self, line: Mapping[str, float]) -> None:
        """Add a line to the history."""
        plain = {name: value if math.isfinite(value) else None for name, value in line.items()}
        history = self.folder / HISTORY
        with explained(history, TrainingError), open(history, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(plain)}\n")

    def save(self, learner: Learner, state: State) -> None:
        """Write a checkpoint and remove the one before it."""
        name = self.folder / f"step-{state.step:08d}"
        if name == self._at:
            return
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors().items()}
        with replacing(name, TrainingError, owned=True) as partial:
            learner.save(partial, final=False)
            save_file(tensors, partial / OPTIMISER)
            self._note(learner, state, optimiser_sha256=fingerprint(tensors))
            (partial / PROGRESS).write_text(json.dumps(self.note, indent=2))
            for path in (*partial.rglob("*"), partial):
                _to_disk(path)
        with explained(self.folder, TrainingError):
            _to_disk(self.folder)
        self._at = name
        self._clear(besides=name)

    def finish(self, learner: Learner, state: State) -> None:
        """Write what was trained; then the checkpoint is no longer needed."""
        with explained(self.folder, TrainingError):
            learner.save(self.folder, final=True)
        self._note(learner, state)
        with replacing(self.folder / PROGRESS, TrainingError, owned=True) as temporary:
            temporary.write_text(json.dumps(self.note, indent=2))
        self._clear()

    def _note(self, learner: Learner, state: State, **more: Any) -> None:
        where = {"step": state.step, "seconds": state.seconds, "start": self.note["start"]}
        self.note = {"format": FORMAT, **where, **more, "provenance": learner.provenance, "settings": self.settings}

    def _read_note(self) -> dict[str, Any]:
        path = (self._at or self.folder) / PROGRESS
        content = read_json(path, SavedVersion, TrainingError, "the note of a training")
        readable = {FORMAT, OLD, 1} if self.finished else {FORMAT, OLD}  # 1 has another state of the optimiser
        if content["format"] not in readable:
            raise TrainingError(f"{path} is of another version of Workbench; choose another folder.")
        return dict(as_form(content, SavedProgress, TrainingError, f"{path} is not the note of a training"))

    def _was_trained_here(self) -> bool:
        """Whether the dictionary is what a process that was killed at the end of this training left."""
        try:
            own = json.loads((self.folder / CONFIG).read_text())["workbench"]["provenance"]["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return (self.folder / HISTORY).exists() and own == self.settings

    def _newest(self) -> Path | None:
        checkpoints = self._checkpoints()
        return checkpoints[-1] if checkpoints else None

    def _checkpoints(self) -> list[Path]:
        """Oldest first; another name that begins like theirs is somebody else's."""
        found = (path for path in self.folder.glob("step-[0-9]*") if re.fullmatch("step-[0-9]{8,}", path.name))
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def _clear(self, besides: Path | None = None) -> None:
        """Remove checkpoints, oldest first, so that the last one to go is whole, and what killed processes left."""
        for path in self._checkpoints():
            if path != besides:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".step-[0-9]*.part"):
            clear_leftovers(self.folder / path.name.split(".")[1])
        shutil.rmtree(self.folder / ".checkpoint.part", ignore_errors=True)  # of versions before
        for name in (HISTORY, PROGRESS, CONFIG, WEIGHTS):
            clear_leftovers(self.folder / name)


@checked(TrainingError)
def read_history(folder: str | Path) -> Rows[dict[str, Any]]:
    """What a training in this folder has measured so far, a line for each logged step; also while it runs.

    Raises:
        TrainingError: a line is damaged.
    """
    check_links(Path(folder), TrainingError)
    file = Path(folder) / HISTORY
    if not file.exists():
        return Rows()
    lines = read_text(file, TrainingError, "the history of a training").split("\n")[:-1]  # the last is half written
    complaints = (f"Line {number} of {file} is not of a training's history" for number in range(1, len(lines) + 1))
    pairs = zip(lines, complaints, strict=True)
    return Rows(dict(parse_json(line, SavedLine, TrainingError, complaint)) for line, complaint in pairs)


def _to_disk(path: Path) -> None:
    """Wait until a file or a folder's list of names has reached the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
