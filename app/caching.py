"""Everything that the app keeps between reruns, all of it here.

What is kept is shared by every browser session of the process: models and tables, which are only read, and long work,
which runs once on its own thread however many sessions wait for it. Nothing here knows of interventions; they belong to
the call that uses them.

`workbench` is imported inside the functions: the page shows its frame while torch is loading.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import streamlit as st

if TYPE_CHECKING:
    from workbench import Feature, LanguageModel, NeuronTable

MODELS_KEPT = 3
TOP_K = 10
"""Tokens kept per neuron; `decode_neurons` keeps as many by default."""

Result = TypeVar("Result")


class Stopped(Exception):
    """Long work that nobody waits for any more."""


class Job(Generic[Result]):
    """Long work on its own thread, with how far it is."""

    def __init__(self, work: Callable[[Callable[[float, str], None]], Result]):
        self.share, self.what, self.waiting = 0.0, "", 0
        self.begun = self._told = time.monotonic()
        self._work, self._result, self._error = work, None, None
        self._stop, self._over = False, threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._over.is_set()

    @property
    def failed(self) -> bool:
        """Whether it has ended without a result."""
        return self.done and self._error is not None

    @property
    def seconds_left(self) -> float | None:
        """An estimate, once there is something to go by."""
        worked = self._told - self.begun
        if self.share <= 0 or worked < 1:
            return None
        return max(0.0, worked * (1 - self.share) / self.share - (time.monotonic() - self._told))

    def wait(self, seconds: float) -> None:
        """Return when it is done, or after this time."""
        self._over.wait(seconds)

    def result(self) -> Result:
        """What came of it; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def stop(self) -> None:
        """End it, unless another session waits for it."""
        self._stop = self.waiting == 0

    def _tell(self, share: float, what: str) -> None:
        self.share, self.what, self._told = share, what, time.monotonic()
        if self._stop:
            raise Stopped

    def _run(self) -> None:
        try:
            self._result = self._work(self._tell)
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
            self._error = error
        self._over.set()


@dataclass(frozen=True)
class Reading:
    """A neuron's highest tokens of both signs, best first: text, score, softmax probability."""

    promoted: list[tuple[str, float, float]]
    suppressed: list[tuple[str, float, float]]


def opening(source: str) -> Job[LanguageModel]:
    """The model of this name, being opened or open."""

    def work(tell: Callable[[float, str], None]) -> LanguageModel:
        import workbench as wb
        import workbench.figures

        return wb.load_model(source, progress=tell)

    return _job(("model", source), work)


def decoding(model: LanguageModel, weights: str, scale: str) -> Job[NeuronTable]:
    """The table of all neurons, being decoded or ready."""

    def work(tell: Callable[[float, str], None]) -> NeuronTable:
        import workbench as wb

        table = wb.decode_neurons(model, weights=weights, top_k=TOP_K, scale=scale, progress=tell)  # type: ignore[arg-type]
        threading.Thread(target=prepare, args=(table,), daemon=True).start()
        return table

    def prepare(table: NeuronTable) -> None:
        for sign in (1, -1):
            table.search("the", sign=sign, limit=1)  # makes the look-up that every later search shares

    return _job(("table", model.hash, weights, scale), work)


def decoded(model: LanguageModel, weights: str, scale: str) -> NeuronTable | None:
    """The table of all neurons if it is ready; starts nothing."""
    job = _jobs().get(("table", model.hash, weights, scale))
    return job.result() if job is not None and job.done and not job.failed else None


@st.cache_resource(show_spinner=False)
def _jobs() -> dict[tuple[str, ...], Job[Any]]:
    return {}


@st.cache_resource(show_spinner=False)
def _lock() -> threading.Lock:
    return threading.Lock()


def _job(key: tuple[str, ...], work: Callable[..., Any]) -> Job[Any]:
    """The job of this key, begun if there is none and begun anew if it failed after somebody saw it fail."""
    with _lock():
        jobs = _jobs()
        if key not in jobs or (jobs[key].failed and jobs[key].waiting == 0):
            models = [known for known in jobs if known[0] == "model" and known != key]
            if key[0] == "model" and len(models) >= MODELS_KEPT:
                del jobs[models[0]]
            jobs[key] = Job(work)
        return jobs[key]


_BY_WEIGHTS: dict[str | type, Callable[[Any], Any]] = {"workbench.generation.LanguageModel": lambda model: model.hash}


@st.cache_data(show_spinner=False, max_entries=5000, hash_funcs=_BY_WEIGHTS)
def reading(model: LanguageModel, feature: str, scale: str = "raw", top: int = 10) -> Reading:
    """What a neuron's own weights say: its highest tokens, and those of the opposite direction."""
    import workbench as wb

    scores = wb.token_scores(model, wb.Feature.parse(feature), scale=scale)  # type: ignore[arg-type]
    sides = []
    for side in (scores, -scores):
        best = side.topk(top)
        shares = side.softmax(-1)[best.indices]
        texts = model.token_texts(best.indices)
        sides.append(list(zip(texts, best.values.tolist(), shares.tolist(), strict=True)))
    return Reading(*sides)


@st.cache_data(show_spinner=False, max_entries=1000, hash_funcs=_BY_WEIGHTS)
def neighbours(model: LanguageModel, feature: str, top: int) -> list[tuple[Feature, float]]:
    """The neurons of the same site with the most similar weights, with their cosines."""
    import workbench as wb

    return wb.nearest_neurons(model, wb.Feature.parse(feature), top)


@st.cache_data(show_spinner=False, max_entries=1000, hash_funcs=_BY_WEIGHTS)
def strongest(model: LanguageModel, text: str, weights: str, scale: str, top: int) -> list[tuple[Feature, float]]:
    """The neurons that give a token the highest scores, at any rank."""
    import workbench as wb

    return wb.neurons_writing(model, text, weights, scale=scale, top=top)  # type: ignore[arg-type]
