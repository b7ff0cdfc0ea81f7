"""The chooser of the features to browse: the model's neurons, or those of a dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from shared import dictionaries, exports, session
from shared.dictionaries import Known

from browse import opening
from workbench import Feature
from workbench.core.text import plain
from workbench.dictionaries import FeatureError

if TYPE_CHECKING:
    from workbench.model import LanguageModel

NEURONS = "Neurons (read through the LM head)"


def choose(model: LanguageModel) -> Known | None:
    """Draw the chooser; returns the chosen dictionary, None for the neurons."""
    opening.take_fetched(model)
    offered = {one.name: one for one in _all(model)}
    if st.session_state.get("dictionary") not in (NEURONS, *offered):
        st.session_state["dictionary"] = NEURONS
    which, folder = st.columns([5, 2], vertical_alignment="bottom")
    name = which.selectbox(
        "Features of",
        [NEURONS, *offered],
        key="dictionary",
        on_change=session.open_feature,
        args=(None,),
        format_func=lambda name: _titled(name, offered),
        persist_state="session",
        help="The model's own neurons, or the latents of a dictionary that was trained on its activations.",
    )
    opening.ask(model, folder)
    opening.report(model)
    chosen = offered.get(name)
    if chosen is not None and (warning := dictionaries.foreign(model, chosen)):
        st.warning(plain(warning), icon=":material/warning:")
    return chosen


def follow(model: LanguageModel, link: str | None) -> None:
    """Choose the dictionary of a newly opened feature; call this before `choose`."""
    if not link or st.session_state.get("followed") == link:
        return
    st.session_state["followed"] = link
    try:
        feature = Feature.parse(link)
    except FeatureError:
        return
    if dictionaries.is_neuron(feature):
        st.session_state["dictionary"] = NEURONS
        return
    known = [one.name for one in _all(model) if feature.dictionary in (one.name, one.folder, one.title)]
    if known:
        st.session_state["dictionary"] = known[0]


def _all(model: LanguageModel) -> list[Known]:
    """The dictionaries that fit the model, and the exports that were opened, which may be of any."""
    return [*dictionaries.fitting(model), *exports.known()]


def _titled(name: str, offered: dict[str, Known]) -> str:
    one = offered.get(name)
    if one is None:
        return name
    count = f" · {one.n_features:,} {one.noun}s" if one.n_features else ""
    return f"{one.title} · {one.kind.replace('_', ' ')}{count}" + (f" · {one.where}" if one.where else "")
