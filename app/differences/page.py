"""Differences: what differs between the model and another one, as findings with their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import background, corpora, dictionaries, places, session
from shared.waiting import one_sentence

from differences import result
from differences.request import CHANGED, FOLDER, ComparisonRequest

if TYPE_CHECKING:
    from workbench.differences import ModelDifferences
    from workbench.model import LanguageModel

PARTS = {
    "texts": "texts and the stream",
    "weights": "weights",
    "grafts": "grafts of parts",
    "features": "neurons and latents",
}


def show() -> None:
    """Draw the settings and the findings of the last comparison."""
    model = session.current_model()
    if model.tokenizer is None:
        st.info("This model has no tokenizer, so it reads no texts.", icon=":material/info:")
        return
    with st.container(), one_sentence():
        request, other = _ask(model)
        if st.button(
            "Compare",
            type="primary",
            icon=":material/difference:",
            key="compare models",
            disabled=not request.other or not request.parts,
        ):
            _begin(model, other, request)
            st.session_state["differences"] = request
        if not request.other:
            st.caption("Name a folder or a model; what *Surgery* did to this model can be chosen once it has steps.")
        elif not request.parts:
            st.caption("Choose what to compare.")
    latest: ComparisonRequest | None = st.session_state.get("differences")
    if latest is None:
        return
    if latest != request:
        st.caption("The settings have changed; these are the findings of what was asked for last.")
    with st.container(), one_sentence():
        task = background.finished(latest.key, "Stopped before anything was compared.")
        if task is not None:
            result.show(latest, task.result())


def _ask(model: LanguageModel) -> tuple[ComparisonRequest, Any]:
    """The widgets' request, and the other model: a child, or a name or folder."""
    child = _changed()
    choices = [*([CHANGED] if child is not None else []), FOLDER]
    which, name = st.columns([2, 4])
    if st.session_state.get("differences with") not in choices:
        st.session_state["differences with"] = choices[0]
    kind = which.selectbox("Compare this model with", choices, key="differences with")
    typed = name.text_input(
        "Folder or name",
        key="differences folder",
        persist_state="session",
        disabled=kind != FOLDER,
        placeholder="a folder with the tuned model, for example",
        help="A folder with a checkpoint, or the name of a model on Hugging Face, with the same tokenizer.",
    )
    left, middle, right = st.columns([2, 1, 3])
    corpus = corpora.choose("differences corpus", left)
    tokens = int(
        middle.number_input("Tokens", 64, 1_000_000, 4096, step=1024, key="differences tokens", persist_state="session")
    )
    parts = right.multiselect(
        "Compare",
        list(PARTS),
        default=list(PARTS),
        format_func=PARTS.__getitem__,
        key="differences parts",
        persist_state="session",
        help="Grafts run the model once for each changed part.",
    )
    prompt = st.text_input(
        "Prompt that both continue (may be empty)", key="differences prompt", persist_state="session"
    )
    other = child if kind == CHANGED else (typed or "").strip()
    about = child.model.hash if kind == CHANGED and child is not None else str(other)
    return (
        ComparisonRequest(
            st.session_state["source"],
            kind,
            about,
            corpus,
            tokens,
            tuple(part for part in PARTS if part in parts),
            prompt or "",
            caching.as_placed(model),
        ),
        other,
    )


def _changed() -> Any:
    """The last child of this session's *Surgery*; None without one."""
    steps = st.session_state.get("surgery") or []
    return steps[-1].child if steps else None


def _begin(model: LanguageModel, other: Any, request: ComparisonRequest) -> None:
    """Start the comparison, unless it goes on or has ended with a result."""
    going = caching.task(request.key)
    if going is not None and not going.failed and not going.stopping:
        return
    if isinstance(other, str):
        other = places.allowed(other)
    texts = corpora.load(model, request.corpus)
    known = (
        [dictionaries.load(model, one) for one in dictionaries.fitting(model)] if "features" in request.parts else []
    )

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> ModelDifferences:
        import workbench as wb

        return wb.differences.compare_models(
            model,
            other,
            texts,
            parts=list(request.parts),  # type: ignore[arg-type]
            tokens=request.tokens,
            prompts=[request.prompt] if request.prompt else [],
            dictionaries=known,
            progress=tell,
            cancel=cancelled,
        )

    caching.begin(request.key, "Comparing", work, request)


if __name__ == "__main__":
    show()
