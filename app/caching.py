"""Everything that the app caches between reruns.

Every browser session of the process shares it: models and tables, which are only read, and long work, which runs once
on its own thread however many sessions wait for it. Nothing here holds interventions; they belong to a call.

`workbench` is imported inside the functions: the page shows its frame while torch is loading.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st
from jobs import Job, Stopped, Task  # noqa: F401 - a door to all long work

if TYPE_CHECKING:
    from shared.dictionaries import Known

    from workbench import Feature
    from workbench.dictionaries import Dictionary
    from workbench.dictionaries.loading import Place
    from workbench.index import FeatureIndex
    from workbench.model import LanguageModel
    from workbench.neurons import NeuronTable
    from workbench.synthetic import StateCounts, TokFSM

KEPT = {"model": 3, "table": 6, "lens": 8}
"""Number of open models, decoded tables and lens readings that are kept, those that were used last."""
TASKS_KEPT = 20
"""Number of ended tasks whose results are kept."""
CHANGES_KEPT = 4
"""Number of chains of changed models that are kept for the reload of their page."""
READINGS_KEPT, LISTS_KEPT, DICTIONARIES_KEPT, COUNTS_KEPT = 2000, 500, 24, 8
"""Number of neurons that were read, of lists of neurons, of dictionaries and their indexes, of counts of states."""
TOP_K = 10
"""Tokens kept per neuron; the default of `decode_neurons`."""


@dataclass(frozen=True)
class Reading:
    """A neuron's highest tokens of both signs, best first: text, score, softmax probability."""

    promoted: list[tuple[str, float, float]]
    suppressed: list[tuple[str, float, float]]


def opening(source: str, device: str = "auto", dtype: str = "auto") -> Job[LanguageModel]:
    """The job that opens the model of this name on a device and in a type, started if need be."""

    def work(tell: Callable[[float, str], None]) -> LanguageModel:
        from shared import places

        import workbench as wb
        import workbench.figures

        return wb.load_model(places.allowed(source), device=device, dtype=dtype, progress=tell)

    return _job(("model", source, device, dtype), work)


def close(source: str, device: str, dtype: str) -> None:
    """Drop the model of this name on a device and in a type, unless a session waits for it."""
    key = ("model", source, device, dtype)
    with _lock():
        if key in _jobs() and _idle(_jobs()[key]):
            del _jobs()[key]


def as_placed(model: LanguageModel) -> str:
    """What a model's results depend on: its hash, which is the same wherever it is, its device and its type."""
    return f"{model.hash} {model.device} {model.dtype}"


def decoding(model: LanguageModel, weights: str, scale: str) -> Job[NeuronTable]:
    """The job that decodes all neurons into a table, started if need be."""

    def work(tell: Callable[[float, str], None]) -> NeuronTable:
        import workbench as wb

        table = wb.decode_neurons(model, weights=weights, top_k=TOP_K, scale=scale, progress=tell)  # type: ignore[arg-type]
        threading.Thread(target=prepare, args=(table,), daemon=True).start()
        return table

    def prepare(table: NeuronTable) -> None:
        for sign in (1, -1):
            table.search("the", sign=sign, limit=1)  # makes the look-up that every later search shares

    return _job(("table", as_placed(model), weights, scale), work)


def decoded(model: LanguageModel, weights: str, scale: str) -> NeuronTable | None:
    """The table of all neurons if it is ready, None if not; starts nothing."""
    job = _jobs().get(("table", as_placed(model), weights, scale))
    return job.result() if job is not None and job.done and not job.failed else None


def lens_reading(key: tuple[str, ...], work: Callable[..., Any]) -> Job[Any]:
    """The job that reads the layers of a text, started if need be; `key` holds all that the reading depends on."""
    return _job(("lens", *key), work)


@functools.cache  # of the process: the server begins before there is a session that Streamlit's own caches want
def _jobs() -> dict[tuple[str, ...], Job[Any]]:
    return {}


@functools.cache
def _lock() -> threading.Lock:
    return threading.Lock()


def _job(key: tuple[str, ...], work: Callable[..., Any]) -> Job[Any]:
    """The job of this key; started if there is none, and again if it failed and no session waits for it.

    Of the jobs of its kind that have ended, `KEPT` are kept, those that were asked for last.
    """
    with _lock():
        jobs = _jobs()
        job = jobs.pop(key, None)
        if job is None or (job.failed and job.waiting == 0):
            job = Job(work)
        jobs[key] = job
        ended = [known for known, one in jobs.items() if known[0] == key[0] and known != key and _idle(one)]
        for old in ended[: max(len(ended) + 1 - KEPT.get(key[0], TASKS_KEPT), 0)]:
            del jobs[old]
        return job


def _idle(job: Job[Any]) -> bool:
    """Whether a job has ended and no session waits for it."""
    return job.done and job.waiting == 0


def held() -> dict[str, tuple[int, int]]:
    """What this process keeps for all sessions, in words: how many now, and how many at most."""
    with _lock():
        kinds = [key[0] for key in _jobs()]
        return {
            "open models": (kinds.count("model"), KEPT["model"]),
            "tables of decoded neurons": (kinds.count("table"), KEPT["table"]),
            "texts read layer by layer": (kinds.count("lens"), KEPT["lens"]),
            "results of long work": (len(_tasks()), TASKS_KEPT),
            "chains of changed models": (len(_kept()), CHANGES_KEPT),
        }


def let_go() -> None:
    """Drop what this process keeps and can make again; what goes on, and changes of models, stay."""
    with _lock():
        for key in [key for key, job in _jobs().items() if _idle(job)]:
            del _jobs()[key]
        for key in [key for key, one in _tasks().items() if one.done]:
            del _tasks()[key]
    for cached in (dictionary, reading, neighbours, strongest, feature_index, exported_index, state_counts):
        cached.clear()


def task(key: tuple[str, ...]) -> Task[Any] | None:
    """The last task of this key, going on or ended; None without one."""
    return _tasks().get(key)


def begin(key: tuple[str, ...], name: str, work: Callable[..., Any], about: Any = None) -> Task[Any]:
    """The task of this key that goes on; without one a new task, which all sessions see."""
    with _lock():
        tasks = _tasks()
        if key not in tasks or tasks[key].done:
            over = [known for known, one in tasks.items() if one.done and known != key]
            for old in over[: max(len(over) - TASKS_KEPT, 0)]:
                del tasks[old]
            tasks[key] = Task(work, name, about)
        return tasks[key]


def forget(key: tuple[str, ...]) -> None:
    """Drop the task of this key if it has ended."""
    with _lock():
        if key in _tasks() and _tasks()[key].done:
            del _tasks()[key]


@st.cache_resource(show_spinner=False)
def _tasks() -> dict[tuple[str, ...], Task[Any]]:
    return {}


def keep(session: str, model: str, changes: Any) -> None:
    """Keep a session's changes of a model for the session that follows when the page is reloaded.

    The `CHANGES_KEPT` latest chains of changes are kept; an empty chain is not.
    """
    with _lock():
        _kept().pop((session, model), None)
        if changes:
            _kept()[session, model] = changes
        for old in list(_kept())[:-CHANGES_KEPT]:
            del _kept()[old]


def kept(session: str, model: str) -> Any:
    """The changes that `keep` holds; None without any."""
    return _kept().get((session, model))


def hand_over(old: str, new: str) -> bool:
    """Move the changes of an earlier session to another; returns whether that has any now."""
    with _lock():
        for session, model in [one for one in _kept() if one[0] == old != new]:
            _kept()[new, model] = _kept().pop((session, model))
        return any(session == new for session, _ in _kept())


@functools.cache
def _kept() -> dict[tuple[str, str], Any]:
    return {}


@st.cache_resource(show_spinner=False)
def typed_folders() -> dict[str, Place]:
    """The dictionaries that users asked for, for all sessions, by their absolute paths."""
    return {}


@st.cache_resource(show_spinner=False)
def typed_exports() -> dict[str, Known]:
    """The exports of features that users opened, for all sessions, by their names."""
    return {}


@st.cache_resource(show_spinner=False, max_entries=DICTIONARIES_KEPT)
def exported_index(folder: str, stamp: tuple[int, ...]) -> FeatureIndex:
    """The checked index of an export; the stamp identifies the state of its files."""
    from workbench.index import open_index

    return open_index(folder)


@st.cache_resource(show_spinner=False, max_entries=DICTIONARIES_KEPT)
def dictionary(folder: str, name: str, stamp: tuple[int, ...], device: str = "cpu") -> Dictionary:
    """The dictionary in a folder or file, on a device; read-only. `stamp` identifies the state of its files.

    Args:
        name: its name in the app; empty for its own.
    """
    from pathlib import Path

    from workbench.dictionaries.loading import Place, opened

    place = typed_folders().get(str(Path(folder).absolute()))
    loaded = opened(place or Place(Path(folder))).to(device)
    if name:
        loaded.name = name
    return loaded


_BY_WEIGHTS: dict[str | type, Callable[[Any], Any]] = {
    "workbench.model.language_model.LanguageModel": as_placed,
    "workbench.synthetic.tokfsm.TokFSM": lambda machine: machine.hash,
}


@st.cache_resource(show_spinner=False, max_entries=READINGS_KEPT, hash_funcs=_BY_WEIGHTS)
def reading(model: LanguageModel, feature: str, scale: str = "raw", top: int = 10) -> Reading:
    """A neuron's highest tokens, and those of the opposite direction, from its own weights."""
    import workbench as wb

    scores = wb.neurons.token_scores(model, wb.Feature.parse(feature), scale=scale)  # type: ignore[arg-type]
    sides = []
    for side in (scores, -scores):
        best = side.topk(min(top, len(side)))  # a small model has fewer tokens
        shares = side.softmax(-1)[best.indices]
        texts = model.token_texts(best.indices)
        sides.append(list(zip(texts, best.values.tolist(), shares.tolist(), strict=True)))
    return Reading(*sides)


@st.cache_resource(show_spinner=False, max_entries=LISTS_KEPT, hash_funcs=_BY_WEIGHTS)
def neighbours(model: LanguageModel, feature: str, top: int) -> list[tuple[Feature, float]]:
    """The neurons of the same site with the most similar weights, with their cosines."""
    import workbench as wb

    return wb.neurons.nearest_neurons(model, wb.Feature.parse(feature), top)


@st.cache_resource(show_spinner=False, max_entries=LISTS_KEPT, hash_funcs=_BY_WEIGHTS)
def strongest(
    model: LanguageModel,
    text: str,
    weights: str,
    scale: str,
    top: int,
    *,
    sign: int = 1,
    layers: tuple[int, ...] | None = None,
    min_score: float | None = None,
) -> list[tuple[Feature, float]]:
    """The neurons that give a token the highest scores, at any rank; see `neurons_writing`."""
    import workbench as wb

    how = {"scale": scale, "sign": sign, "layers": layers, "min_score": min_score, "top": top}
    return wb.neurons.neurons_writing(model, text, weights, **how)  # type: ignore[arg-type]


@st.cache_resource(show_spinner=False, max_entries=DICTIONARIES_KEPT, hash_funcs=_BY_WEIGHTS)
def feature_index(
    index_folder: str, folder: str, name: str, stamps: tuple[tuple[int, ...], tuple[int, ...]], model: LanguageModel
) -> FeatureIndex:
    """The checked index of the dictionary in a folder; the stamps identify the state of the files of both."""
    from workbench.index import open_index

    index = open_index(index_folder, model, dictionary(folder, name, stamps[1], str(model.device)))
    index.model = None  # pages run prompts by `active_features`; an index that is kept would keep the model
    return index


@st.cache_resource(show_spinner=False, max_entries=DICTIONARIES_KEPT, hash_funcs=_BY_WEIGHTS)
def neuron_index(folder: str, stamp: int, model: LanguageModel) -> FeatureIndex:
    """The checked index of a layer's neurons in a folder; the stamp identifies the state of its files."""
    from workbench.index import open_index

    index = open_index(folder, model)
    index.model = None
    return index


@st.cache_resource(
    show_spinner="Counting which codes are active on which states …", max_entries=COUNTS_KEPT, hash_funcs=_BY_WEIGHTS
)
def state_counts(model: LanguageModel, machine: TokFSM) -> list[StateCounts]:
    """How often each code of the model is active on each state of a machine, one `StateCounts` for each digit."""
    from workbench.synthetic import count_codes

    return [count_codes(model, machine, written=written) for written in range(machine.digits)]
