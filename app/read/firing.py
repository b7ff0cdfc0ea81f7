"""The active features of a text: the text tinted by them, and the features of each token in a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st
from shared import dictionaries, pages, session, snippets
from shared.dictionaries import Known, several
from shared.tokens import show_strengths, that_fit

from read import script
from read.request import TextRequest, kept
from workbench import Feature
from workbench.core.text import visible

if TYPE_CHECKING:
    from workbench.index import FeatureIndex, FeatureLabel
    from workbench.measures.firing import Fired
    from workbench.model import LanguageModel

ROWS_SHOWN, WIDE = 14, 270
"""Rows that show without scrolling, and the pixels of the column of tokens."""
FEATURES = 8
"""Features of each dictionary that an open cell lists for a token."""
ALL = "the strongest feature"


def words(model: LanguageModel, known: dict[str, Known], feature: Feature) -> tuple[str, list[str]]:
    """A feature's label, and the tokens that it is most active on; empty where there is no index."""
    one = known.get(feature.dictionary)
    index = dictionaries.usable_index(model, one) if one else None
    if index is None:
        return "", []
    label = _names(index).get(feature.index)
    active, promoted = dictionaries.latent_tokens(index, feature.index)
    return dictionaries.label_words(label) if label else "", [visible(one) for one in active or promoted]


def _names(index: FeatureIndex) -> dict[int, FeatureLabel]:
    """The labels of an index, read once in each run of the page."""
    known = st.session_state["names"]
    if id(index) not in known:
        known[id(index)] = index.names()
    return known[id(index)]


def fired(model: LanguageModel, text: TextRequest, chosen: Sequence[Known], top: int) -> list[Fired]:
    """The active features of some dictionaries on each token of a text, without what stands in front of it."""
    from workbench.measures.firing import active_features

    def read() -> list[Fired]:
        loaded = [dictionaries.load(model, one) for one in chosen]
        with model.intervening(text.interventions):
            return active_features(model, loaded, text.prompt(model), top)

    stamps = [(one.name, one.stamp) for one in chosen]
    return kept(("features", *text.key(model), *stamps, top), read)


def show(model: LanguageModel, text: TextRequest) -> None:
    """Draw the tinted text and the table of its features."""
    st.session_state["names"] = {}
    known = {one.name: one for one in dictionaries.fitting(model)}
    if not known:
        st.info(
            "There is no dictionary for this model yet. Train one on the page Train, or type a folder on Browse.",
            icon=":material/info:",
        )
        return
    names, top = _choose(known)
    with st.spinner("Reading the features …"):
        tokens = fired(model, text, [known[name] for name in names], top)
    features = _strongest(tokens)
    colour, token = st.columns([3, 2])
    chosen = colour.selectbox(
        "Colour by",
        [ALL, *features],
        format_func=lambda one: one if one == ALL else _named(model, known, one),
        key="colour by",
        help="The strongest feature of each token, or one feature over the whole text.",
    )
    where = token.selectbox(
        "List the features of",
        [None, *range(len(tokens))],
        format_func=lambda place: "all tokens" if place is None else f"{place}  {visible(tokens[place].text)}",
        key="inspected token",
    )
    values, labels = _tints(tokens, chosen)
    with st.container(border=True):
        show_strengths([one.text for one in tokens], values, labels, _least(values) if chosen == ALL else 0.0)
    st.caption(
        "Colour: the feature's value on each token; the highest here is darkest. Point at a token for its value; "
        "dots are spaces."
    )
    if chosen != ALL and st.button("Open its card", icon=":material/open_in_new:", key="open coloured"):
        go(str(chosen))
    shown = [
        (place, one.text, feature, value)
        for place, one in enumerate(tokens)
        if where in (None, place)
        for feature, value in zip(one.features, one.values, strict=True)
        if chosen in (ALL, feature)
    ]
    table(model, shown, known, f"fired {where} {chosen}")
    snippets.show(script.firing(text, [known[name].folder for name in names], top))


def _choose(offered: dict[str, Known]) -> tuple[list[str], int]:
    """Draw the choosers of dictionaries and of the number of features; returns their names and the number."""
    names = [name for name in st.session_state.get("inspected with", []) if name in offered]
    browsed = st.session_state.get("dictionary")
    indexed = [name for name, one in offered.items() if one.indexed]
    first = browsed if browsed in offered else [*indexed, *offered][0]
    st.session_state["inspected with"] = names or [first]
    which, count = st.columns([5, 2], vertical_alignment="bottom")
    names = which.multiselect(
        "Dictionaries",
        list(offered),
        format_func=lambda name: f"{offered[name].title} · {several(offered[name].reads)}",
        key="inspected with",
        persist_state="session",
    )
    top = count.slider("Features per token, at most", 1, 30, 8, key="inspected top", persist_state="session")
    return names, top


def _strongest(tokens: Sequence[Fired]) -> list[Feature]:
    """The 200 features with the highest values in the text, highest first."""
    best: dict[Feature, float] = {}
    for token in tokens:
        for feature, value in zip(token.features, token.values, strict=True):
            best[feature] = max(best.get(feature, 0.0), value)
    return sorted(best, key=lambda feature: -best[feature])[:200]


def _named(model: LanguageModel, known: dict[str, Known], feature: Feature) -> str:
    label, active = words(model, known, feature)
    title = known[feature.dictionary].title if feature.dictionary in known else feature.dictionary
    return f"{title}:{feature.index}  {label or ', '.join(active)}"


def _tints(tokens: Sequence[Fired], chosen: object) -> tuple[list[float], list[str]]:
    """For each token a value, and the label that shows on hover."""
    values, labels = [], []
    for token in tokens:
        pairs = zip(token.features, token.values, strict=True)
        of = [(value, feature) for feature, value in pairs if chosen in (ALL, feature)]
        value, feature = max(of, key=lambda pair: pair[0]) if of else (0.0, None)
        values.append(value)
        labels.append(f"{feature}  {value:.3g}" if feature else "")
    return values, labels


def _least(values: Sequence[float]) -> float:
    """The value without a colour: a little below the lowest, which is above 0 where every token has a feature."""
    return 0.9 * min(values, default=0.0)


def table(
    model: LanguageModel, rows: Sequence[tuple[int, str, Feature, float]], known: dict[str, Known], key: str
) -> None:
    """Draw features with their tokens and values; a chosen row opens its card.

    Args:
        model: the model.
        rows: place and text of the token, the feature, and its value.
        known: the dictionaries by name.
        key: of the table in the session.
    """
    if not rows:
        st.info("No feature of these dictionaries is active here.")
        return
    named = {feature: words(model, known, feature) for _, _, feature, _ in rows}
    frame = pd.DataFrame(
        {
            "place": [place for place, _, _, _ in rows],
            "token": [visible(text) for _, text, _, _ in rows],
            "feature": [f"{known[feature.dictionary].title}:{feature.index}" for _, _, feature, _ in rows],
            "value": [value for _, _, _, value in rows],
            "label": [named[feature][0] for _, _, feature, _ in rows],
            "active": [that_fit(named[feature][1], WIDE) for _, _, feature, _ in rows],
        }
    )
    shown = [name for name in frame if name not in ("label", "active") or any(frame[name])]
    event = st.dataframe(
        frame,
        key=key,
        hide_index=True,
        column_order=shown,
        column_config={
            "place": st.column_config.NumberColumn(
                "Place", width=60, help="In the text, from 0; a token that the tokenizer puts in front does not count."
            ),
            "token": st.column_config.TextColumn("Token", width=105, help="␣ is a space."),
            "feature": st.column_config.TextColumn("Feature", width=150, help="dictionary:index"),
            "value": st.column_config.ProgressColumn(
                "Value", format="%.3g", min_value=0.0, max_value=float(frame["value"].max()), width=120
            ),
            "label": st.column_config.TextColumn(
                "Label", width=160, help="Written or found; of a found one with its score."
            ),
            "active": st.column_config.ListColumn("Most active on", width=WIDE, help="In the dictionary's index."),
        },
        on_select="rerun",
        selection_mode="single-cell",
        height=35 * (min(len(rows), ROWS_SHOWN) + 1) + 3,
    )
    st.caption("A click on a row opens the feature's card.")
    if event["selection"]["cells"]:
        go(str(rows[event["selection"]["cells"][0][0]][2]))


def go(feature: str) -> None:
    """Open the card of a feature on Browse."""
    session.open_feature(feature)
    st.switch_page(pages.script("browse"), query_params=session.link(feature))
