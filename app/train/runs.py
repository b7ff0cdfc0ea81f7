"""Trainings on disk: the request of each, its history, and the training that goes on now."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

import caching
from shared import corpora, places
from shared.dictionaries import runs_folder
from typing_extensions import TypedDict

import workbench as wb
from workbench.core.files import replacing
from workbench.core.forms import read_json
from workbench.dictionaries import Dictionary, Trainable
from workbench.training import TrainingError, read_history

if TYPE_CHECKING:
    from workbench.model import LanguageModel

KEY = ("training",)
"""The key of the one training that goes on in this process."""
REQUEST = "request.json"
BLOCK, MIXED = 65_536, 8
"""Activations that `train` shuffles together, and the least number of such blocks in a training."""


@dataclass(frozen=True)
class TrainingRequest:
    """Everything that a training depends on."""

    name: str
    kind: str
    reads: str
    writes: str
    corpus: str
    tokens: int
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the kind, besides its widths at the hook points."""
    lr: float = 1e-3
    batch_size: int = 4096

    @property
    def folder(self) -> Path:
        """The folder of the training."""
        return runs_folder() / self.name

    def call(self, model: LanguageModel) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """The class's name, the arguments of its constructor, and those of `train`."""
        kind = Dictionary.kinds[self.kind]
        built = {"d_in": model.hook_points[self.reads].width, **self.settings}
        if "d_out" in inspect.signature(kind).parameters:
            built["d_out"] = model.hook_points[self.writes].width
        how: dict[str, Any] = {"tokens": self.tokens, "folder": str(self.folder)}
        how |= {"target": self.writes} if self.writes != self.reads else {}
        how |= {"lr": self.lr, "batch_size": self.batch_size}
        if self.tokens < MIXED * BLOCK:  # otherwise a small training reads far more tokens than it trains on
            how["block"] = max(self.batch_size, self.tokens // MIXED)
        return kind.__name__, built, how


class RequestForm(TypedDict):
    """The content of `request.json`."""

    name: str
    kind: str
    reads: str
    writes: str
    corpus: str
    tokens: int
    settings: dict[str, int | float]
    lr: NotRequired[int | float]
    batch_size: NotRequired[int]


@dataclass(frozen=True)
class Run:
    """A folder of `runs`."""

    folder: Path
    request: TrainingRequest | None
    """The request from this app's page; None for a training that was started elsewhere."""
    finished: bool

    @property
    def history(self) -> list[dict[str, Any]]:
        """The measurements so far."""
        return read_history(self.folder)


def kinds() -> dict[str, type[Trainable]]:
    """The classes of dictionaries that can be trained, by the word of their kind; transcoders come last.

    Those of several hook points are trained from a script: the page asks for one.
    """
    can = {word: kind for word, kind in Dictionary.kinds.items() if issubclass(kind, Trainable) and not kind.across}
    return dict(sorted(can.items(), key=lambda pair: (pair[1].transcodes, pair[0] != "topk", pair[0])))


def all_runs() -> list[Run]:
    """All trainings, the newest first."""
    marks = ("request.json", "history.jsonl")
    folders = {file.parent for mark in marks for file in runs_folder().glob(f"*/{mark}")}
    return [_read(folder) for folder in sorted(folders, key=lambda one: -one.stat().st_mtime)]


def current() -> TrainingRequest | None:
    """The request of the training that goes on; None without one."""
    task = caching.task(KEY)
    return task.about if task is not None and not task.done else None


def begin(model: LanguageModel, request: TrainingRequest) -> None:
    """Start or resume a training.

    Raises:
        TrainingError: the name can't be a folder, is taken, or another training goes on.
        DictionaryError: the settings don't fit the kind.
        PlaceError: a visitor may not write there.
    """
    if not re.fullmatch(r"[\w.-]+", request.name) or request.name.startswith("."):
        raise TrainingError(f"{request.name!r} can't be a folder's name; use letters, digits, - and _.")
    places.allowed(request.folder)
    if going := current():
        raise TrainingError(f"{going.name} is being trained; one training goes on at a time.")
    earlier = _read(request.folder)
    if (earlier.request is not None and earlier.request != request) or (earlier.request is None and earlier.history):
        raise TrainingError(f"There is another training called {request.name}; choose another name.")
    _, built, _ = request.call(model)
    dictionary = Dictionary.kinds[request.kind](**built)  # raises before the folder exists
    with replacing(request.folder / REQUEST, TrainingError, owned=True) as temporary:
        temporary.write_text(json.dumps(asdict(request), indent=2))
    caching.begin(KEY, f"Training {request.name}", _work(model, request, dictionary), request)


def _work(model: LanguageModel, request: TrainingRequest, dictionary: Any) -> Callable[..., None]:
    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> None:
        how = request.call(model)[2]
        corpus = corpora.opened(request.corpus)
        wb.train(dictionary, model, request.reads, corpus, **how, progress=tell, cancel=cancelled)  # type: ignore[type-var]

    return work


def _read(folder: Path) -> Run:
    return Run(folder, _request(folder), (folder / "progress.json").exists())


def _request(folder: Path) -> TrainingRequest | None:
    """The request in a folder; None where there is none, or none that this version can carry out."""
    try:
        request = TrainingRequest(**read_json(folder / REQUEST, RequestForm, wb.WorkbenchError, "a request"))
    except wb.WorkbenchError:
        return None
    kind = kinds().get(request.kind)
    known = kind is not None and request.settings.keys() <= {one.name for one in kind.fields()}
    return request if known else None
