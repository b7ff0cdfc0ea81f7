"""Changed models as folders: saving with a check, loading; and the whole session as a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import background, corpora, dictionaries, places, session, snippets

import workbench as wb
from surgery import panel
from surgery.panel import LOADING, SAVING, Step
from workbench.core.forms import read_json
from workbench.core.text import plain
from workbench.interventions.saved import File
from workbench.surgery.notes import NOTE, read_note

if TYPE_CHECKING:
    from workbench.model import LanguageModel
    from workbench.surgery import Child
    from workbench.surgery.certificate.check import Verification


def show(model: LanguageModel) -> None:
    """Draw the folder with the buttons that save and load it, and the certificate."""
    st.subheader("Save or load", anchor=False)
    st.session_state.setdefault("surgery folder", str(dictionaries.runs_folder() / "edited"))
    box, save, load = st.columns([5, 1, 1], vertical_alignment="bottom")
    typed = box.text_input(
        "Folder",
        key="surgery folder",
        persist_state="session",
        help="An ordinary Hugging Face checkpoint, with a certificate of the operations and their cost.",
    )
    folder, wrong = _folder(typed)
    kept = panel.steps()
    saves = save.button("Save", key="surgery save", icon=":material/save:", width="stretch", disabled=not kept)
    loads = load.button("Load", key="surgery load", icon=":material/folder_open:", width="stretch")
    if not kept:
        st.caption("Keep a step to save it.")
    if (saves or loads) and not folder:
        panel.clear_messages()
        st.error(plain(wrong), icon=":material/error:")
    elif saves and (Path(folder) / NOTE).exists():
        _ask(SAVING, folder, f"{folder} already holds a changed model; saving replaces it.", "Replace it")
    elif loads and not (Path(folder) / NOTE).exists():
        panel.clear_messages()
        st.error(plain(f"{folder} holds no model that this page saved."), icon=":material/error:")
    elif loads and any(not _is_saved(one.child, folder) for one in panel.steps_and_trial()[-1:]):
        warning = f"Loading replaces the steps and the trial here, and {folder} does not hold the last of them."
        _ask(LOADING, folder, warning, "Load it")
    elif saves or loads:
        panel.clear_messages()
        (_begin_saving if saves else _begin_loading)(model, folder)
    _show_question(model, folder)
    _follow_saving()
    _follow_loading()
    if kept and kept[-1].child.certificate is not None:
        certificate = kept[-1].child.certificate
        with st.expander("Certificate", icon=":material/verified:"):
            st.markdown(certificate.to_markdown())
        st.download_button(
            "Download the certificate",
            certificate.to_markdown(),
            "certificate.md",
            "text/markdown",
            icon=":material/download:",
            on_click="ignore",
        )


def _folder(typed: str) -> tuple[str, str]:
    """The folder that was typed, and a sentence where it can't be used; one of them is empty."""
    if not typed.strip():
        return "", "Type a folder first."
    try:
        return str(Path(places.allowed(typed.strip())).expanduser()), ""
    except (ValueError, RuntimeError) as error:  # the last: ~ of an unknown user
        return "", str(error)


def _ask(what: str, folder: str, warning: str, button: str) -> None:
    panel.clear_messages()
    st.session_state[panel.QUESTION] = (what, folder, warning, button)


def _show_question(model: LanguageModel, typed: str) -> None:
    """Draw the open question, until it is answered, another folder is typed, or the steps change."""
    question = st.session_state.get(panel.QUESTION)
    if question is None or question[1] != typed:
        return
    what, folder, warning, button = question
    st.warning(plain(warning), icon=":material/warning:")
    with st.container(horizontal=True):
        yes = st.button(button, key="surgery yes", icon=":material/check:")
        no = st.button("Leave it", key="surgery no", icon=":material/close:")
    if yes or no:
        st.session_state[panel.QUESTION] = None
    if yes:
        (_begin_saving if what == SAVING else _begin_loading)(model, folder)
    if yes or no:
        st.rerun()


def _is_saved(child: Child, folder: str) -> bool:
    """Whether this folder holds the child."""
    try:
        return read_note(Path(folder))["hash"] == child.model.hash
    except wb.WorkbenchError:
        return False


def _begin_saving(model: LanguageModel, folder: str) -> None:
    child = panel.steps()[-1].child

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Verification:
        tell(0.1, "Writing the checkpoint")
        child.save_pretrained(folder)
        tell(0.5, "Loading it with plain transformers, in a process of its own")
        return wb.surgery.verify_checkpoint(folder, child.model)

    key = (SAVING, folder, child.model.hash)
    st.session_state[SAVING] = key
    caching.begin(key, "Saving", work)


def _follow_saving() -> None:
    key = st.session_state.get(SAVING)
    task = background.finished(key)
    if task is None:
        return
    check: Verification = task.result()
    largest = check.max_logit_difference
    far = f"no logit differs by more than {largest:.2g} from the model here" if largest else "every logit is the same"
    message = f"Saved in {key[1]}. Plain transformers {check.transformers} loads it as {check.loaded}; {far}."
    (st.success if check.agrees else st.warning)(plain(message), icon=":material/verified:")
    st.button("Open it on all pages", key="surgery open", on_click=session.take_model, args=(key[1],))


def _begin_loading(model: LanguageModel, folder: str) -> None:
    needed = _needed(model, folder)

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Child:
        tell(0.1, "Reading the checkpoint")
        return wb.surgery.open_child(folder, model, needed)

    key = (LOADING, folder, caching.as_placed(model))
    st.session_state[LOADING] = key
    caching.begin(key, "Loading", work)


def _follow_loading() -> None:
    key = st.session_state.get(LOADING)
    task = background.finished(key)
    if task is None:
        return
    panel.take([Step(task.result(), "", {"folder": key[1]})])
    for name in (LOADING, SAVING):
        st.session_state.pop(name, None)
    caching.forget(key)
    st.rerun()


def _needed(model: LanguageModel, folder: str) -> list[Any]:
    """The dictionaries that the interventions beside a checkpoint name."""
    try:
        saved = read_json(Path(folder) / "interventions.json", File, wb.WorkbenchError, "a file of interventions")
    except wb.WorkbenchError:
        return []
    names = [one["name"] for one in saved.get("dictionaries", ())]
    return [dictionaries.load(model, dictionaries.called(model, name)) for name in names]


def code(source: str, steps: Sequence[Step], folder: str) -> str:
    """A script that repeats the steps."""
    lines, now = snippets.opening(source), "model"
    for step in steps:
        if not step.operation:
            lines += f"child = wb.surgery.open_child({step.arguments['folder']!r}, model)\n"
        else:
            before, keywords = _arguments(step, now)
            lines += f"{before}child = wb.surgery.apply_operation({now}, {step.operation!r}{keywords})\n"
        now = "child"
    text = "" if steps[-1].corpus == corpora.FIRST else f"wb.Corpus.load({steps[-1].corpus!r}), "
    lines += f"print(child.certify({text}tokens={steps[-1].tokens}).to_markdown())\n"
    return lines + f"child.save_pretrained({folder!r})\n"


def _arguments(step: Step, now: str) -> tuple[str, str]:
    """The lines before a step's call, and its keyword arguments; `now` is the variable of the model that it changes."""
    before, keywords = "", ""
    directions = panel.directions(step.operation)
    model = now if now == "model" else f"{now}.model"
    for name, value in step.arguments.items():
        if name == "edits":
            before += snippets.edit_list(value)
            keywords += ", edits=edits"
        elif isinstance(value, wb.Feature):
            lines, names = snippets.loading([wb.Steer(value, 1.0)])
            before += lines
            variable = names.get(value.dictionary)
            written = f"{variable}.feature({value.index})" if variable else repr(str(value))
            written = f"wb.surgery.direction_of({model}, {written})" if name in directions else written
            keywords += f", {name}={written}"
        else:
            keywords += f", {name}={value!r}"
    return before, keywords
