"""The state of one browser session: the model, the open feature, the session's name. Nothing here is shared."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import pages, placement
from shared.waiting import one_sentence, wait_for

from workbench.core.shipped import shipped
from workbench.core.text import counted, plain

if TYPE_CHECKING:
    from caching import Job

    from workbench.model import LanguageModel
    from workbench.synthetic import TokFSM

DEFAULT = "SmolLM2-135M-Instruct"
FEATURE, MODEL = "feature", "model"
"""In the address: the open feature, and the model that it belongs to, as `name@hash`."""
LONGEST = 100
"""Characters of a part of an address that a sentence shows."""
CHANGES = "changes"
"""In the address: the session whose changes of models a reloaded page takes over."""


def choose_model() -> None:
    """Draw the sidebar's chooser, with room below it for the facts about the model."""
    known: list[str] = st.session_state.setdefault("known models", [DEFAULT, *shipped_models()])
    chosen = st.session_state.get("source")
    if chosen and chosen not in known:
        known.append(chosen)
    _follow_link(known)
    with st.sidebar:
        st.selectbox(
            "Model",
            known,
            key="source",
            accept_new_options=True,
            on_change=_forget,
            help="The default model, or type the name of a model on Hugging Face, or the path of a folder "
            "or a GGUF file.",
        )
        st.session_state["facts"] = st.empty()
        st.session_state["room for placement"] = st.container()


def shipped_models() -> list[str]:
    """The names of the models that come with Workbench and run through dictionaries."""
    return list(shipped("models", "*/spliced.json"))


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


def opening(name: str) -> Job[LanguageModel]:
    """The job that opens a model on the device and in the type that were chosen, started if need be."""
    return caching.opening(name, *placement.chosen())


def is_open() -> bool:
    """Whether the chosen model is open."""
    return opening(source()).done


def open_model() -> LanguageModel:
    """The chosen model; waits until it is open, and ends the page with one sentence if it can't be opened."""
    name, model = source(), None
    with one_sentence():
        model = wait_for(lambda: opening(name), f"Opening {_cut(name)}")
    placement.ask(st.session_state["room for placement"], _place_again)
    if model is None:
        st.stop()
    _show_facts(model)
    return model


def current_model() -> LanguageModel:
    """The model that `open_model` opened in this run."""
    return opening(source()).result()


def _place_again(before: tuple[str, str]) -> None:
    """Forget the model where it was, and what belongs to it."""
    caching.close(source(), *before)
    _forget()


def link(feature: object) -> dict[str, str]:
    """The part of an address that opens a feature of the chosen model."""
    return {FEATURE: str(feature), MODEL: f"{source()}@{current_model().hash[:12]}"}


def foreign_link() -> str:
    """A sentence where the feature in the address belongs to another model than the one that is open; else empty.

    Addresses from before models stood in them belong to every model.
    """
    linked, (name, hash) = st.query_params.get(FEATURE), _linked_model()
    if not linked or not name:
        return ""
    model = current_model()
    own = model.hash[:12]
    if name != source():
        return (
            f"This link is to {_short(linked)} of the model {_short(name)}, and {plain(source())} is open; choose that "
            "model in the sidebar."
        )
    if hash not in (own, model.former_hash[:12]):
        return (
            f"This link is to {_short(linked)} of {_short(name)} with the weights {_short(hash)}, and the one that is "
            f"open has the weights {own}; open the model that the link was made on."
        )
    return ""


def _short(text: str) -> str:
    """A part of an address in a sentence."""
    return plain(_cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def linked_feature() -> str | None:
    """The feature in the address, if it is one of this model, or the one that was open when the user left the page."""
    linked = st.query_params.get(FEATURE)
    if linked and not foreign_link():
        st.session_state["open"] = linked
    elif not linked and st.session_state.get("open"):
        st.query_params.update(link(st.session_state["open"]))
    return st.session_state.get("open")


def open_feature(feature: str | None) -> None:
    """Open this feature, in the address too; None closes the open one."""
    st.session_state["open"] = feature
    if feature:
        st.query_params.update(link(feature))
    else:
        _clear_link()


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


def _follow_link(known: list[str]) -> None:
    """Choose the model of the address once, if it is one that the sidebar offers; no other is opened by an address."""
    linked = st.query_params.get(MODEL)
    if linked and linked != st.session_state.get("followed"):
        st.session_state["followed"] = linked
        name = _linked_model()[0]
        if name in known and name != source():
            take_model(name)


def _linked_model() -> tuple[str, str]:
    """Name and hash of the model in the address; empty where there is none."""
    name, _, hash = st.query_params.get(MODEL, "").rpartition("@")
    return name, hash


def _clear_link() -> None:
    for key in (FEATURE, MODEL):
        st.query_params.pop(key, None)


def _forget() -> None:
    """Drop the state that belongs to the model before, and the link unless it is one of the model that is chosen."""
    for key in pages.model_state():
        st.session_state.pop(key, None)
    if _linked_model()[0] != source():
        _clear_link()


def _show_facts(model: LanguageModel) -> None:
    from workbench.model import ModelError

    network = model.network
    try:
        neurons = f"{sum(network.neuron_hook_point(n, 'post').width for n in range(network.n_layers)):,} MLP neurons"
    except ModelError:
        neurons = "MLPs without neurons of their own"
    through = [f"runs through {counted(len(model.splices), 'dictionary', 'dictionaries')}"] if model.splices else []
    facts = [
        f"{network.n_layers} layers, {neurons}",
        f"residual stream {network.d_model:,} wide, {network.n_heads} heads",
        f"{network.vocab_size:,} tokens, context {network.n_ctx:,}",
        f"weights {model.hash[:12]}",
        *placement.facts(model),
        *through,
    ]
    st.session_state["facts"].caption("  \n".join(map(plain, facts)))
