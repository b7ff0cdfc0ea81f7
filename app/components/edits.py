"""The list of edits: each a neuron, what to do with it, how much, and where.

A row keeps the intervention it began with, so that what the widgets can't show (named positions, a direction, a stated
mean) is kept until the user changes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from components import session
from components.tokens import plain, show_chips
from components.waiting import one_sentence

import workbench as wb
from workbench.interventions import FeatureIntervention, dictionary_of

if TYPE_CHECKING:
    from workbench import LanguageModel

CLAMP, SCALE, ZERO, MEAN, ADD = "Clamp", "Scale", "Ablate to zero", "Ablate to mean", "Steer"
KINDS = [CLAMP, SCALE, ZERO, MEAN, ADD]
AMOUNTS = {CLAMP: ("Set to", 20.0, 40.0, 0.5), SCALE: ("Multiply by", 2.0, 5.0, 0.1), ADD: ("Add", 20.0, 40.0, 0.5)}
"""Name, first value, reach to both sides, step."""
POSITIONS = {"all": "everywhere", "prompt": "in the prompt", "generated": "in the new text"}
FOUND = 6


@dataclass(frozen=True)
class Row:
    """One edit on the page."""

    number: int
    """Names its widgets."""
    start: FeatureIntervention
    """What they begin with."""


def rows() -> list[Row]:
    """The edits of this session."""
    return st.session_state.setdefault("rows", [])


def set_rows(interventions: Sequence[FeatureIntervention]) -> None:
    """Replace all edits."""
    st.session_state["rows"] = []
    for one in interventions:
        add(one)


def add(intervention: FeatureIntervention) -> None:
    """One more edit, at the end."""
    numbers = st.session_state.setdefault("row numbers", itertools.count())
    rows().append(Row(next(numbers), intervention))


def add_feature(model: LanguageModel, feature: str) -> None:
    """Clamp this neuron, unless it is in the list; raises `FeatureError` if the model has no such neuron."""
    dictionary_of(model, feature)
    if all(str(row.start.feature) != feature for row in rows()):
        add(wb.Clamp(wb.Feature.parse(feature), AMOUNTS[CLAMP][1]))


def show(model: LanguageModel) -> list[FeatureIntervention]:
    """The list, to be changed; what it says now."""
    said = []
    if not rows():
        st.caption("None yet. Take an example above, or add a neuron below.")
    for row in list(rows()):
        with st.container(border=True, key=f"edit-{row.number}"), one_sentence():
            said.append(_show_row(model, row))
    return said


def show_adder(model: LanguageModel) -> None:
    """A box that takes a neuron's id, or a word to look for."""
    text = st.text_input(
        "Add a neuron",
        key="adder",
        placeholder="a word, such as dog, or an id, such as neurons.29.gate:808",
        icon=":material/add:",
        persist_state="session",
    ).strip()
    if not text:
        return
    if ":" in text:
        with one_sentence():
            add_feature(model, str(wb.Feature.parse(text)))
            st.session_state["clear adder"] = True
            st.rerun()
        return
    with one_sentence(), st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("These point to it most:", width="content")
        for feature, _ in caching.strongest(model, f" {text}", "down", "unit", FOUND):
            tokens = caching.reading(model, str(feature)).promoted[:3]
            words = plain(", ".join(token.strip() for token, _, _ in tokens))
            name = feature.dictionary.removeprefix("neurons.")
            st.button(
                f"**{name}:{feature.index}** {words}",
                key=f"add {feature}",
                on_click=add_feature,
                args=(model, str(feature)),
            )


def clear_adder() -> None:
    """Empty the box after what it held was added; to be called before it is drawn."""
    if st.session_state.pop("clear adder", False):
        st.session_state["adder"] = ""


def _show_row(model: LanguageModel, row: Row) -> FeatureIntervention:
    start, number = row.start, row.number
    place, kinds, sites, amounts, wheres, ends = st.columns([2.6, 1.8, 1.2, 2.6, 1.8, 0.5], vertical_alignment="bottom")
    with ends:
        st.button("", key=f"remove-{number}", icon=":material/close:", help="Remove", on_click=_remove, args=(number,))
    if start.feature is None:
        place.markdown(f"**{plain(start)}**")
        amount = _amount(amounts, ADD, number, start)
        return replace(start, amount=amount, positions=_where(wheres, number, start))
    words = start.feature.dictionary.split(".")
    site = sites.selectbox(
        "Site",
        model.network.neuron_sites,
        index=model.network.neuron_sites.index(words[2]),
        key=f"site-{number}",
        persist_state="session",
        help="**gate** opens the neuron, **up** scales it, **post** is their product: what the neuron writes.",
    )
    feature = wb.Feature(f"{words[0]}.{words[1]}.{site}", start.feature.index)
    with place:
        st.page_link(
            session.BROWSE,
            label=f"**Layer {words[1]}, neuron {feature.index}**",
            icon="",
            help="Open its card",
            query_params={"feature": str(feature)},
        )
        show_chips([token for token, _, _ in caching.reading(model, str(feature)).promoted[:3]])
    kind = kinds.selectbox(
        "Edit", KINDS, index=KINDS.index(_kind(start)), key=f"kind-{number}", persist_state="session", help=EXPLAINED
    )
    amount = _amount(amounts, kind, number, start) if kind in AMOUNTS else 0.0
    return _make(kind, feature, amount, _where(wheres, number, start), start)


EXPLAINED = (
    "**Clamp** holds the neuron at a value, **Scale** multiplies it, **Ablate** sets it to zero or to its mean, "
    "**Steer** adds to it."
)


def _make(
    kind: str, feature: wb.Feature, amount: float, positions: Any, start: FeatureIntervention
) -> FeatureIntervention:
    if kind == CLAMP:
        return wb.Clamp(feature, amount, positions=positions)
    if kind == SCALE:
        return wb.Scale(feature, amount, positions=positions)
    if kind == ADD:
        return wb.Steer(feature, amount, positions=positions)
    mean = start.mean if kind == MEAN and isinstance(start, wb.Ablate) and feature == start.feature else None
    return wb.Ablate(feature, "zero" if kind == ZERO else "mean", mean, positions=positions)


def _kind(one: FeatureIntervention) -> str:
    if isinstance(one, wb.Ablate):
        return ZERO if one.mode == "zero" else MEAN
    return type(one).__name__


def _amount(place: Any, kind: str, number: int, start: FeatureIntervention) -> float:
    name, first, reach, step = AMOUNTS[kind]
    if _kind(start) == kind:
        first = next(value for key, value in start.settings().items() if key in ("value", "factor", "amount"))
    reach = max(reach, abs(first))
    return place.slider(name, -reach, reach, first, step, "%.4g", key=f"{kind}-{number}", persist_state="session")


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
