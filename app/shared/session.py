"""The state of one browser session: the model, the open feature, the session's name. Nothing here is shared."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import pages
from shared.tokens import plain
from shared.waiting import one_sentence, wait_for

if TYPE_CHECKING:
    from workbench.model import LanguageModel
    from workbench.synthetic import TokFSM

DEFAULT = "SmolLM2-135M-Instruct"
DATA = Path(__file__).resolve().parents[2] / "data"
"""What comes with Workbench; stated here too, since the package's own constants are behind the import of torch."""
CHANGES = "changes"
"""In the address: the session whose changes of models a reloaded page takes over."""


def choose_model() -> None:
    """Draw the sidebar's chooser, with room below it for the facts about the model."""
    known: list[str] = st.session_state.setdefault("known models", [DEFAULT, *shipped_models()])
    chosen = st.session_state.get("source")
    if chosen and chosen not in known:
        known.append(chosen)
    with st.sidebar:
        st.selectbox(
            "Model",
            known,
            key="source",
            accept_new_options=True,
            on_change=_forget,
            help="The default model, or type the name of a model on Hugging Face or the path of a folder.",
        )
        st.session_state["facts"] = st.empty()


def shipped_models() -> list[str]:
    """The names of the models that come with Workbench and run through dictionaries."""
    return sorted(note.parent.name for note in (DATA / "models").glob("*/spliced.json"))


def shipped_machines() -> list[str]:
    """The names of the shipped models that were trained on the language of a state machine."""
    return [name for name in shipped_models() if name.startswith("tokfsm")]


def machine_of(model: LanguageModel) -> TokFSM | None:
    """The state machine whose language a model was trained on; None for another model."""
    import workbench as wb

    settings = model.about.get("machine")
    return wb.synthetic.TokFSM(**settings) if settings else None


def source() -> str:
    """The name or path of the chosen model."""
    return (st.session_state.get("source") or DEFAULT).strip()


def take_model(name: str) -> None:
    """Choose this model in the sidebar; only callbacks may call this."""
    st.session_state["source"] = name
    _forget()


def is_open() -> bool:
    """Whether the chosen model is open."""
    return caching.opening(source()).done


def open_model() -> LanguageModel:
    """The chosen model; waits until it is open, and ends the page with one sentence if it can't be opened."""
    name = source()
    with one_sentence():
        model = wait_for(lambda: caching.opening(name), f"Opening {plain(name)}")
        _show_facts(model)
        return model
    st.stop()


def current_model() -> LanguageModel:
    """The model that `open_model` opened in this run."""
    return caching.opening(source()).result()


def linked_feature() -> str | None:
    """The feature in the address, or the one that was open when the user left the page."""
    linked = st.query_params.get("feature")
    if linked:
        st.session_state["open"] = linked
    elif st.session_state.get("open"):
        st.query_params["feature"] = st.session_state["open"]
    return st.session_state.get("open")


def open_feature(feature: str | None) -> None:
    """Open this feature, in the address too; None closes the open one."""
    st.session_state["open"] = feature
    if feature:
        st.query_params["feature"] = feature
    else:
        st.query_params.pop("feature", None)


def name() -> str:
    """The session's own name."""
    return st.session_state.setdefault("session", uuid.uuid4().hex)


def link_changes() -> None:
    """Take over the changed models of the session that the address names; name this session there if it has any."""
    linked = st.query_params.get(CHANGES, "")
    if caching.hand_over(linked, name()):
        st.query_params[CHANGES] = name()
    elif linked == name():
        del st.query_params[CHANGES]


def _forget() -> None:
    """Drop the state that belongs to the model before."""
    for key in pages.model_state():
        st.session_state.pop(key, None)


def _show_facts(model: LanguageModel) -> None:
    from workbench.model import ModelError

    network = model.network
    try:
        neurons = f"{sum(network.neuron_hook_point(n, 'post').width for n in range(network.n_layers)):,} MLP neurons"
    except ModelError:
        neurons = "MLPs without neurons of their own"
    through = [f"runs through {len(model.splices)} dictionaries"] if model.splices else []
    facts = [
        f"{network.n_layers} layers, {neurons}",
        f"residual stream {network.d_model:,} wide, {network.n_heads} heads",
        f"{network.vocab_size:,} tokens, context {network.n_ctx:,}",
        f"weights {model.hash[:12]}",
        *through,
    ]
    st.session_state["facts"].caption("  \n".join(map(plain, facts)))
