"""Open: a dictionary from a folder, a file or the hub, with what was recognised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import background, dictionaries, exports, places, session

from workbench.core.text import plain

if TYPE_CHECKING:
    from workbench.dictionaries.loading import Place
    from workbench.model import LanguageModel

TYPED, FETCHED, WRONG, OPENED = "typed folder", "fetched dictionary", "trouble with folder", "opened dictionary"
"""In the session: what is typed, the key of the download that it waits for, why it failed, and what was recognised."""
BOX = "box to open a dictionary"
"""In the session: whether the box is open."""
STOPPED = "The download was stopped; what was fetched is kept, and opening the same name goes on."


def ask(model: LanguageModel, place: Any) -> None:
    """Draw the button that asks for a dictionary."""
    # what is typed closes the box, which would hide a part of the sentence below it
    with place.popover("Open", icon=":material/folder_open:", width="stretch", key=BOX, on_change="rerun"):
        st.text_input(
            "Folder, file or name on the hub",
            key=TYPED,
            placeholder="google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
            on_change=_typed,
            args=(model,),
            help="What Workbench, SAELens, sparsify, dictionary_learning or circuit-tracer wrote, or a dictionary on "
            "Hugging Face: OWNER/REPOSITORY/FOLDER, with @REVISION if need be. Or an export of features of Neuronpedia "
            "or circuit-tracer, whose dictionary need not be there.",
        )


def take_fetched(model: LanguageModel) -> None:
    """Choose the dictionary of a download that has ended; call this before the chooser is drawn."""
    key = st.session_state.get(FETCHED)
    task = caching.task(key) if key else None
    if key is None or (task is not None and (not task.done or task.failed)):
        return
    st.session_state[FETCHED] = None
    if task is not None:
        with _in_the_session():
            _take(model, task.result())
        caching.forget(key)


def report(model: LanguageModel) -> None:
    """Draw the progress of a download, why a dictionary was not opened, or what was recognised."""
    key = st.session_state.get(FETCHED)
    background.finished(key, STOPPED)
    if key is not None and ((task := caching.task(key)) is None or task.done):
        st.session_state[FETCHED] = None  # its sentence is drawn once
    if complaint := st.session_state.pop(WRONG, ""):
        st.error(plain(complaint), icon=":material/error:")
    if what := st.session_state.pop(OPENED, None):
        one, form = what
        made_for = f", made for {plain(one.made_for)}." if one.made_for else "."
        opened = f"a dictionary in the format of {plain(form)}, {dictionaries.about(one)}"
        if one.exported:
            opened = f"an export of {plain(form)} with {dictionaries.counted(one)}, without their dictionary"
        st.success(f"Opened {plain(one.title)}: {opened}{made_for}", icon=":material/check:")


class _in_the_session:
    """Keeps an error for the next drawing of the page."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: object) -> bool:
        # the last: ~ of an unknown user
        if isinstance(error, ValueError | KeyError | OSError | RuntimeError):
            st.session_state[WRONG] = str(error)
            return True
        return False


def _typed(model: LanguageModel) -> None:
    """Open what was typed, or begin its download."""
    from workbench.dictionaries.loading import entry_on_hub, located

    typed = st.session_state[TYPED].strip()
    if not typed:
        return
    st.session_state[FETCHED], st.session_state[BOX] = None, False
    with _in_the_session():
        name = dictionaries.path_of(places.allowed(typed))
        if exports.recognised(Path(name)):
            _begin(name, exports.opening(Path(name)))
        elif entry_on_hub(name) is None:
            _take(model, located(name))
        else:
            _begin(name, _fetching(name))


def _begin(name: str, work: Callable[..., Place | Path]) -> None:
    """Begin long work that opens what is called so."""
    key = ("open", name)
    caching.forget(key)
    caching.begin(key, f"Opening {name}", work)
    st.session_state[FETCHED], st.session_state[TYPED] = key, ""


def _fetching(name: str) -> Callable[..., Place]:
    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Place:
        from workbench.dictionaries.loading import located, opened

        place = located(name, progress=tell, cancel=cancelled)
        tell(1.0, "Reading the weights")
        opened(place)
        return place

    return work


def _take(model: LanguageModel, place: Place | Path) -> None:
    """Add a dictionary, or the index of an export, to the known ones, choose it, and say what was recognised."""
    from workbench.dictionaries.recognition import format_of

    if isinstance(place, Path):
        one = exports.add(place)
        form = exports.index_of(one).about["export"]["source"]
    else:
        one = dictionaries.add(model, place)
        form = format_of(place.path).TITLE
    st.session_state["dictionary"] = one.name
    session.open_feature(None)
    st.session_state[TYPED] = ""
    st.session_state[OPENED] = one, form
