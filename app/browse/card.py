"""The neuron card: the tokens that a neuron promotes and suppresses, and the neurons most similar to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import neuron_index, pages, session, snippets

from browse import script
from workbench import Feature, figures
from workbench.core.text import plain, visible
from workbench.interventions.features import dictionary_of

if TYPE_CHECKING:
    from workbench.model import LanguageModel

TOP, NEAR = 10, 8
SITES = {"gate": "reads", "up": "reads", "post": "writes"}


def show(model: LanguageModel, text: str) -> None:
    """Draw the card of a neuron, given its feature id; raises `FeatureError` if the model has no such neuron."""
    feature = Feature.parse(text)
    dictionary_of(model, feature)
    words = feature.dictionary.split(".")
    layer, site = int(words[1]), words[2]
    with st.container(border=True, key="card"):
        _head(model, feature, layer, site)
        neuron_index.show(model, feature)
        reading = caching.reading(model, text, top=TOP)
        left, right = st.columns(2, gap="large")
        with left:
            st.markdown("**Promotes**")
            _bars(reading.promoted, figures.FOR, "promotes")
        with right:
            st.markdown("**Suppresses**")
            _bars(reading.suppressed, figures.AGAINST, "suppresses")
        st.caption(
            "Bar: the score of the token, weight vector times LM head. Percentage: its softmax probability over all."
        )
        left, right = st.columns(2, gap="large")
        with left:
            _siblings(model, layer, feature.index, site)
        with right:
            _neighbours(model, text)
        snippets.show(
            script.card(st.session_state["source"], text, min(TOP, model.network.vocab_size), NEAR)
            + neuron_index.code(model, feature)
        )


def _head(model: LanguageModel, feature: Feature, layer: int, site: str) -> None:
    name, excess, actions = st.columns([5, 2, 3], vertical_alignment="center")
    name.subheader(f"Layer {layer}, neuron {feature.index}, {site}", anchor=False)
    name.caption(plain(feature))
    table = caching.decoded(model, "down" if site == "post" else site, "raw")
    if table is not None:
        hit = table.hit(table.row(feature))
        excess.metric(
            "Above chance",
            f"{hit.excess:.1f} σ",
            help="Its top score less the mean top score of random directions of the same length, in their standard "
            "deviations.",
        )
    with actions.container(horizontal=True, horizontal_alignment="right"):
        if st.button("Steer this neuron", type="primary", icon=":material/tune:", key="steer this"):
            st.session_state.pop("linked", None)
            st.switch_page(pages.script("steer"), query_params=session.link(feature))
        st.button("Close", key="close card", on_click=session.open_feature, args=(None,), icon=":material/close:")


def _bars(tokens: list[tuple[str, float, float]], colour: str, key: str) -> None:
    figure = figures.token_bars(*zip(*tokens, strict=True), colour=colour)
    st.plotly_chart(figure, theme=None, key=key, config={"displayModeBar": False})


def _siblings(model: LanguageModel, layer: int, index: int, own: str) -> None:
    st.markdown("**The same neuron by each of its weights**")
    st.caption("gate opens the neuron, up scales it; post is their product, which the down weights write.")
    for site in model.network.neuron_sites:
        sibling = f"neurons.{layer}.{site}:{index}"
        st.page_link(
            pages.script("browse"),
            label=f"**{site}** {SITES[site]} {_tokens(model, sibling)}",
            query_params=session.link(sibling),
            icon=":material/radio_button_checked:" if site == own else ":material/radio_button_unchecked:",
        )


def _neighbours(model: LanguageModel, text: str) -> None:
    st.markdown("**Most similar neurons**")
    st.caption("Of the same site in any layer, by the cosine of their weights.")
    for other, cosine in caching.neighbours(model, text, NEAR):
        st.page_link(
            pages.script("browse"),
            label=f"**{cosine:.2f}** {plain(other)} {_tokens(model, str(other))}",
            query_params=session.link(other),
            icon="",
        )


def _tokens(model: LanguageModel, feature: str, count: int = 4) -> str:
    reading = caching.reading(model, feature, top=TOP)
    return ", ".join(plain(visible(token)) for token, _, _ in reading.promoted[:count])
