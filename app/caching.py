"""Everything that the app keeps between reruns, all of it here.

What is kept is shared by every browser session of the process: models and tables, which are only read, and long work,
which runs once on its own thread however many sessions wait for it. Nothing here knows of interventions; they belong to
the call that uses them.

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
    from workbench import Feature
    from workbench.dictionaries import Dictionary
    from workbench.index import FeatureIndex
    from workbench.model import LanguageModel
    from workbench.neurons import NeuronTable
    from workbench.synthetic import StateCounts, TokFSM

MODELS_KEPT = 3
TASKS_KEPT = 20
"""Ended tasks whose results are kept."""
CHANGES_KEPT = 4
"""Chains of changed models that are kept for when their page is loaded again."""
TOP_K = 10
"""Tokens kept per neuron; `decode_neurons` keeps as many by default."""


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


@functools.cache  # of the process: the server begins before there is a session that Streamlit's own caches want
def _jobs() -> dict[tuple[str, ...], Job[Any]]:
    return {}


@functools.cache
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


def task(key: tuple[str, ...]) -> Task[Any] | None:
    """The work of this key that was begun last, going on or ended."""
    return _tasks().get(key)


def begin(key: tuple[str, ...], name: str, work: Callable[..., Any], about: Any = None) -> Task[Any]:
    """Begin work that all sessions see, unless work of this key is going on: then that."""
    with _lock():
        tasks = _tasks()
        if key not in tasks or tasks[key].done:
            over = [known for known, one in tasks.items() if one.done and known != key]
            for old in over[: max(len(over) - TASKS_KEPT, 0)]:
                del tasks[old]
            tasks[key] = Task(work, name, about)
        return tasks[key]


def forget(key: tuple[str, ...]) -> None:
    """Drop work that has ended, once what came of it is seen."""
    with _lock():
        if key in _tasks() and _tasks()[key].done:
            del _tasks()[key]


@st.cache_resource(show_spinner=False)
def _tasks() -> dict[tuple[str, ...], Task[Any]]:
    return {}


def keep(session: str, model: str, changes: Any) -> None:
    """Hold what a session made of a model, for the session that follows it when its page is loaded again.

    Of all chains of changes those that were seen last are held; one that is empty is not.
    """
    with _lock():
        _kept().pop((session, model), None)
        if changes:
            _kept()[session, model] = changes
        for old in list(_kept())[:-CHANGES_KEPT]:
            del _kept()[old]


def kept(session: str, model: str) -> Any:
    """What `keep` holds; None where there is nothing."""
    return _kept().get((session, model))


def hand_over(old: str, new: str) -> bool:
    """Make what an earlier session made another's; whether that has anything now."""
    with _lock():
        for session, model in [one for one in _kept() if one[0] == old != new]:
            _kept()[new, model] = _kept().pop((session, model))
        return any(session == new for session, _ in _kept())


@functools.cache
def _kept() -> dict[tuple[str, str], Any]:
    return {}


@st.cache_resource(show_spinner=False)
def typed_folders() -> list[str]:
    """Folders of dictionaries that people have typed, for all sessions."""
    return []


@st.cache_resource(show_spinner=False, max_entries=24)
def dictionary(folder: str, name: str, stamp: tuple[int, ...]) -> Dictionary:
    """The dictionary in a folder, called `name`; `stamp` says which state of its files. It is only read."""
    import workbench as wb

    made = wb.load_dictionary(folder)
    made.name = name
    return made


_BY_WEIGHTS: dict[str | type, Callable[[Any], Any]] = {
    "workbench.model.language_model.LanguageModel": lambda model: model.hash,
    "workbench.synthetic.tokfsm.TokFSM": lambda machine: machine.hash,
}


@st.cache_resource(show_spinner=False, max_entries=5000, hash_funcs=_BY_WEIGHTS)
def reading(model: LanguageModel, feature: str, scale: str = "raw", top: int = 10) -> Reading:
    """What a neuron's own weights say: its highest tokens, and those of the opposite direction."""
    import workbench as wb

    scores = wb.neurons.token_scores(model, wb.Feature.parse(feature), scale=scale)  # type: ignore[arg-type]
    sides = []
    for side in (scores, -scores):
        best = side.topk(top)
        shares = side.softmax(-1)[best.indices]
        texts = model.token_texts(best.indices)
        sides.append(list(zip(texts, best.values.tolist(), shares.tolist(), strict=True)))
    return Reading(*sides)


@st.cache_resource(show_spinner=False, max_entries=1000, hash_funcs=_BY_WEIGHTS)
def neighbours(model: LanguageModel, feature: str, top: int) -> list[tuple[Feature, float]]:
    """The neurons of the same site with the most similar weights, with their cosines."""
    import workbench as wb

    return wb.neurons.nearest_neurons(model, wb.Feature.parse(feature), top)


@st.cache_resource(show_spinner=False, max_entries=1000, hash_funcs=_BY_WEIGHTS)
def strongest(model: LanguageModel, text: str, weights: str, scale: str, top: int) -> list[tuple[Feature, float]]:
    """The neurons that give a token the highest scores, at any rank."""
    import workbench as wb

    return wb.neurons.neurons_writing(model, text, weights, scale=scale, top=top)  # type: ignore[arg-type]


@st.cache_resource(show_spinner=False, max_entries=24, hash_funcs=_BY_WEIGHTS)
def feature_index(
    folder: str, name: str, stamp: tuple[int, ...], of: tuple[int, ...], model: LanguageModel
) -> FeatureIndex:
    """The index of the dictionary in a folder, its files checked; the stamps say which state of both they have."""
    from workbench.index import open_index

    return open_index(f"{folder}/index", model, dictionary(folder, name, of))


@st.cache_resource(
    show_spinner="Counting which codes are active on which states …", max_entries=8, hash_funcs=_BY_WEIGHTS
)
def state_counts(model: LanguageModel, machine: TokFSM) -> list[StateCounts]:
    """How often each code of the model is active on each state of a machine, and behind it on the next one's digits."""
    from workbench.synthetic import count_codes

    return [count_codes(model, machine, written=written) for written in range(machine.digits)]
