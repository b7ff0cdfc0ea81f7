"""The active features of a text: the text tinted by them, and the features of each token in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st
from shared import dictionaries, pages, session, snippets
from shared.dictionaries import Known
from shared.tokens import show_strengths

from read import script
from workbench import Feature
from workbench.core.text import visible

if TYPE_CHECKING:
    from workbench.measures.firing import Fired
    from workbench.model import LanguageModel

ROWS_SHOWN = 14
ALL = "the strongest feature"


@dataclass(frozen=True)
class Reading:
    """A text with its settings and the active features of its tokens."""

    source: str
    text: str
    names: tuple[str, ...]
    top: int
    tokens: list[Fired]

    @property
    def settings(self) -> tuple[str, str, tuple[str, ...], int]:
        """The source, the text, the dictionaries' names, and the number of features per token."""
        return self.source, self.text, self.names, self.top


def words(model: LanguageModel, known: dict[str, Known], feature: Feature) -> tuple[str, str]:
    """A feature's label, and the tokens that it is most active on; empty where there is no index."""
    one = known.get(feature.dictionary)
    index = dictionaries.usable_index(model, one) if one else None
    if index is None:
        return "", ""
    remark = _remarks(index).get(feature.index)
    active, promoted = dictionaries.latent_tokens(index, feature.index)
    return remark.label if remark else "", ", ".join(map(visible, active or promoted))


def _remarks(index: object) -> dict:
    """The remarks of an index, read once in each run of the page."""
    kept = st.session_state["remarks"]
    if id(index) not in kept:
        kept[id(index)] = index.remarks()  # type: ignore[attr-defined]
    return kept[id(index)]


def show(model: LanguageModel, reading: Reading) -> None:
    """Draw the tinted text and the table of its features."""
    st.session_state["remarks"] = {}
    known = {one.name: one for one in dictionaries.fitting(model)}
    features = _strongest(reading.tokens)
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
        [None, *range(len(reading.tokens))],
        format_func=lambda place: "all tokens" if place is None else f"{place}  {visible(reading.tokens[place].text)}",
        key="inspected token",
    )
    values, labels = _tints(reading.tokens, chosen)
    with st.container(border=True):
        show_strengths([one.text for one in reading.tokens], values, labels, _least(values) if chosen == ALL else 0.0)
    st.caption(
        "Colour: the feature's value on each token; the highest here is darkest. Point at a token for its value; "
        "dots are spaces."
    )
    if chosen != ALL and st.button("Open its card", icon=":material/open_in_new:", key="open coloured"):
        _go(str(chosen))
    _table(model, reading.tokens, known, chosen, where)
    folders = [known[name].folder for name in reading.names]
    snippets.show(script.firing(reading.source, folders, reading.text, reading.top))


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
    return f"{title}:{feature.index}  {label or active}"


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


def _table(
    model: LanguageModel, tokens: Sequence[Fired], known: dict[str, Known], chosen: object, where: int | None
) -> None:
    """Draw the features of all tokens, or of one; a chosen row opens its card."""
    rows = [
        (place, token.text, feature, value)
        for place, token in enumerate(tokens)
        if where in (None, place)
        for feature, value in zip(token.features, token.values, strict=True)
        if chosen in (ALL, feature)
    ]
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
            "active": [named[feature][1] for _, _, feature, _ in rows],
        }
    )
    shown = [name for name in frame if name not in ("label", "active") or any(frame[name])]
    event = st.dataframe(
        frame,
        key=f"fired {where} {chosen}",
        hide_index=True,
        column_order=shown,
        column_config={
            "place": st.column_config.NumberColumn(
                "Place", width=60, help="In the text, from 0; a token that the tokenizer puts in front does not count."
            ),
            "token": st.column_config.TextColumn("Token", width=110, help="␣ is a space."),
            "feature": st.column_config.TextColumn("Feature", width=150, help="dictionary:index"),
            "value": st.column_config.ProgressColumn(
                "Value", format="%.3g", min_value=0.0, max_value=float(frame["value"].max()), width=130
            ),
            "label": st.column_config.TextColumn("Label", width=180, help="The label that was written for it."),
            "active": st.column_config.TextColumn("Most active on", width=300, help="In the dictionary's index."),
        },
        on_select="rerun",
        selection_mode="single-row",
        height=35 * (min(len(rows), ROWS_SHOWN) + 1) + 3,
    )
    st.caption("The box in front of a row opens the feature's card.")
    if event["selection"]["rows"]:
        _go(str(rows[event["selection"]["rows"][0]][2]))


def _go(feature: str) -> None:
    session.open_feature(feature)
    st.switch_page(pages.script("browse"), query_params=session.link(feature))
