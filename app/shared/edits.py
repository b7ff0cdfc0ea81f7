"""The list of edits: each a feature with the kind of its intervention, its strength, and its positions.

A row keeps the intervention it started with, so that what the widgets can't show (a list of positions, a direction,
a given mean) is kept until the user changes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import dictionaries, neuron_index, pages, session
from shared.tokens import show_chips
from shared.waiting import one_sentence

import workbench as wb
from workbench.core.arguments import Argument
from workbench.core.text import plain
from workbench.interventions import FeatureIntervention, InterventionKind
from workbench.interventions.choices import choice_of, choices, strength_of
from workbench.interventions.features import dictionary_of
from workbench.interventions.protocol import feature_of

if TYPE_CHECKING:
    from workbench.model import LanguageModel

DRAWN = "drawn edits"
"""Key of the session: by the number of a row, the intervention that its widgets state."""
POSITIONS = {"all": "everywhere", "prompt": "in the prompt", "generated": "in the new text"}


@dataclass(frozen=True)
class Row:
    """One edit on the page."""

    number: int
    """Part of its widgets' keys."""
    start: InterventionKind
    """The intervention that the widgets start with."""


def rows() -> list[Row]:
    """The rows of this session."""
    return st.session_state.setdefault("rows", [])


def set_rows(interventions: Sequence[InterventionKind]) -> None:
    """Replace all rows."""
    st.session_state["rows"] = []
    for one in interventions:
        add(one)


def add(intervention: InterventionKind) -> None:
    """Append a row."""
    numbers = st.session_state.setdefault("row numbers", itertools.count())
    rows().append(Row(next(numbers), intervention))


def add_feature(model: LanguageModel, text: str) -> None:
    """Append the first edit that is offered for this feature, unless a row has the feature.

    Raises:
        FeatureError, DictionaryError: the model and the known dictionaries have no such feature.
    """
    feature = dictionaries.feature(model, text)
    if all(feature_of(row.start) != feature for row in rows()):
        first = choices(dictionary_of(model, feature))[0]
        strength = first.strength
        add(first.make(feature, None if strength is None else slider_of(model, feature, strength).first))


@dataclass(frozen=True)
class Slider:
    """The slider of a strength."""

    first: float
    reach: float
    """How far it goes to both sides of 0."""
    step: float


def slider_of(model: LanguageModel, feature: wb.Feature | None, strength: Argument) -> Slider:
    """The slider that a strength declares, scaled to the highest value of a latent in its index where it follows it."""
    declared = Slider(strength.default, strength.reach or 1.0, strength.step or 0.1)
    if feature is None or dictionaries.is_neuron(feature) or not strength.follows_activation:
        return declared
    index = dictionaries.usable_index(model, dictionaries.called(model, feature.dictionary))
    highest = float(index.statistics["highest"][feature.index]) if index is not None else 0.0
    first = float(f"{highest:.2g}")
    return Slider(first, 4 * first, first / 40) if highest > 0 else declared


def show(model: LanguageModel) -> list[InterventionKind]:
    """Draw the rows; returns their interventions."""
    interventions = []
    if not rows():
        st.caption("None yet.")
    for row in list(rows()):
        with st.container(border=True, key=f"edit-{row.number}"), one_sentence():
            interventions.append(_show_row(model, row))
            st.session_state.setdefault(DRAWN, {})[row.number] = interventions[-1]
    return interventions


def current() -> list[InterventionKind]:
    """The interventions of the rows as the page that draws them showed them last."""
    drawn = st.session_state.get(DRAWN, {})
    return [drawn.get(row.number, row.start) for row in rows()]


def _show_row(model: LanguageModel, row: Row) -> InterventionKind:
    start, number = row.start, row.number
    place, kinds, sites, sizes, wheres, ends = st.columns([2.6, 1.8, 1.2, 2.6, 1.8, 0.5], vertical_alignment="bottom")
    with ends:
        st.button("", key=f"remove-{number}", icon=":material/close:", help="Remove", on_click=_remove, args=(number,))
    if start.when is not None:
        st.caption(f"Acts {plain(start.when)}.")
    if not isinstance(start, FeatureIntervention):
        place.markdown(f"**{plain(start)}**")
        return start
    if start.feature is None:
        place.markdown(f"**{plain(start)}**")
        strength = strength_of(type(start))
        amount = {} if strength is None else {strength.name: _amount(sizes, model, type(start).title, strength, row)}
        return replace(start, positions=_where(wheres, number, start), **amount)
    if dictionaries.is_neuron(start.feature):
        feature = _neuron(model, start.feature, number, place, sites)
    else:
        feature = start.feature
        _latent(model, feature, place, sites)
    dictionary = dictionary_of(model, feature)
    offered = {one.title: one for one in choices(dictionary)}
    began = choice_of(start, dictionary)
    offered.setdefault(began.title, began)
    choice = offered[
        kinds.selectbox(
            "Edit",
            list(offered),
            index=list(offered).index(began.title),
            key=f"kind-{number}",
            persist_state="session",
            help=" ".join(dict.fromkeys(one.kind.about for one in offered.values())),
        )
    ]
    strength = choice.strength
    amount = None if strength is None else _amount(sizes, model, choice.title, strength, row)
    positions = _where(wheres, number, start)
    if choice.describes(start) and feature == start.feature:
        changed = {} if strength is None else {strength.name: amount}
        return replace(start, positions=positions, **changed)
    return replace(choice.make(feature, amount, positions), when=start.when)


def _neuron(model: LanguageModel, start: wb.Feature, number: int, place: Any, sites: Any) -> wb.Feature:
    """Draw a neuron's tokens and the chooser of its site; returns the neuron at that site."""
    words = start.dictionary.split(".")
    site = sites.selectbox(
        "Site",
        model.network.neuron_sites,
        index=model.network.neuron_sites.index(words[2]),
        key=f"site-{number}",
        persist_state="session",
        help="**gate** opens the neuron, **up** scales it, **post** is their product: the neuron's output.",
    )
    feature = wb.Feature(f"{words[0]}.{words[1]}.{site}", start.index)
    tokens = [token for token, _, _ in caching.reading(model, str(feature)).promoted[:3]]
    remark = neuron_index.remark_on(model, feature)
    label = f": {remark.label}" if remark is not None and remark.label else ""
    _name(place, feature, f"Layer {words[1]}, neuron {feature.index}{label}", tokens)
    return feature


def _latent(model: LanguageModel, feature: wb.Feature, place: Any, sites: Any) -> None:
    """Draw a latent's label, its tokens, and its hook point."""
    one = dictionaries.called(model, feature.dictionary)
    index = dictionaries.usable_index(model, one)
    tokens = dictionaries.latent_tokens(index, feature.index, 3)[0] if index is not None else []
    found = index.names().get(feature.index) if index is not None else None
    label = f": {dictionaries.label_words(found)}" if found is not None else ""
    _name(place, feature, f"{one.title}, {one.noun} {feature.index}{label}", tokens)
    writes = plain(dictionaries.several(one.writes))
    breakable = writes.replace("\\.", "\\.\u200b").replace("_", "_\u200b")  # the column is narrower than the name
    sites.caption(breakable, help="The hook point at which it is edited, or several.")


def _name(place: Any, feature: wb.Feature, name: str, tokens: Sequence[str]) -> None:
    with place:
        st.page_link(
            pages.script("browse"),
            label=f"**{plain(name)}**",
            icon="",
            help="Open its card",
            query_params=session.link(feature),
        )
        show_chips(tokens)


def _amount(place: Any, model: LanguageModel, title: str, strength: Argument, row: Row) -> float:
    """Draw the slider of a strength; it starts with the row's own where the row's intervention has one."""
    slider, key = slider_of(model, feature_of(row.start), strength), f"{title}-{row.number}"
    first = row.start.settings().get(strength.name, slider.first)
    # the highest value in a new index may be lower
    reach = max(slider.reach, abs(first), abs(st.session_state.get(key, 0.0)))
    return place.slider(strength.title, -reach, reach, first, slider.step, "%.4g", key=key, persist_state="session")


def _where(place: Any, number: int, start: FeatureIntervention) -> Any:
    choices: list[Any] = list(POSITIONS) if start.positions in POSITIONS else [*POSITIONS, start.positions]
    return place.selectbox(
        "Where",
        choices,
        index=choices.index(start.positions),
        format_func=lambda rule: POSITIONS.get(rule) or f"at {', '.join(map(str, rule))}",
        key=f"where-{number}",
        persist_state="session",
    )


def _remove(number: int) -> None:
    st.session_state["rows"] = [row for row in rows() if row.number != number]
