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
from shared import dictionaries, pages
from shared.tokens import plain, show_chips
from shared.waiting import one_sentence

import workbench as wb
from workbench.dictionaries import Dictionary
from workbench.interventions.protocol import FeatureIntervention

if TYPE_CHECKING:
    from workbench.model import LanguageModel

CLAMP, SCALE, ZERO, MEAN, ADD = "Clamp", "Scale", "Ablate to zero", "Ablate to mean", "Steer"
FORCE_LEAST, FORCE_ALL, FORCE_NONE = "Force for the least", "Force for all", "Force beside all"
FORCES = {FORCE_LEAST: "least", FORCE_ALL: "all", FORCE_NONE: "none"}
KINDS = [CLAMP, SCALE, ZERO, MEAN, ADD]
CODES = [*FORCES, ZERO, SCALE, CLAMP]
"""What can be done with a code."""
AMOUNTS = {CLAMP: ("Set to", 20.0, 40.0, 0.5), SCALE: ("Multiply by", 2.0, 5.0, 0.1), ADD: ("Add", 20.0, 40.0, 0.5)}
"""Name, first value, reach to both sides, step."""
POSITIONS = {"all": "everywhere", "prompt": "in the prompt", "generated": "in the new text"}


@dataclass(frozen=True)
class Row:
    """One edit on the page."""

    number: int
    """Part of its widgets' keys."""
    start: FeatureIntervention
    """The intervention that the widgets start with."""


def rows() -> list[Row]:
    """The rows of this session."""
    return st.session_state.setdefault("rows", [])


def set_rows(interventions: Sequence[FeatureIntervention]) -> None:
    """Replace all rows."""
    st.session_state["rows"] = []
    for one in interventions:
        add(one)


def add(intervention: FeatureIntervention) -> None:
    """Append a row."""
    numbers = st.session_state.setdefault("row numbers", itertools.count())
    rows().append(Row(next(numbers), intervention))


def add_feature(model: LanguageModel, text: str) -> None:
    """Append a clamp of this feature, a `Force` for a code, unless a row has the feature.

    Raises:
        FeatureError, DictionaryError: the model and the known dictionaries have no such feature.
    """
    feature = dictionaries.feature(model, text)
    if all(row.start.feature != feature for row in rows()):
        add(wb.Force(feature) if _is_code(feature) else wb.Clamp(feature, amounts(model, feature)[CLAMP][1]))


def amounts(model: LanguageModel, feature: wb.Feature | None) -> dict[str, tuple[str, float, float, float]]:
    """`AMOUNTS`, scaled to the highest value of a latent in its index."""
    if feature is None or dictionaries.is_neuron(feature):
        return AMOUNTS
    index = dictionaries.usable_index(model, dictionaries.called(model, feature.dictionary))
    highest = float(index.statistics["highest"][feature.index]) if index is not None else 0.0
    if highest <= 0:
        return AMOUNTS
    first = float(f"{highest:.2g}")
    return AMOUNTS | {kind: (AMOUNTS[kind][0], first, 4 * first, first / 40) for kind in (CLAMP, ADD)}


def _is_code(feature: wb.Feature) -> bool:
    """Whether a feature is a code, which is present or absent."""
    return isinstance(feature.source, Dictionary) and feature.source.discrete


def show(model: LanguageModel) -> list[FeatureIntervention]:
    """Draw the rows; returns their interventions."""
    interventions = []
    if not rows():
        st.caption("None yet.")
    for row in list(rows()):
        with st.container(border=True, key=f"edit-{row.number}"), one_sentence():
            interventions.append(_show_row(model, row))
    return interventions


def _show_row(model: LanguageModel, row: Row) -> FeatureIntervention:
    start, number = row.start, row.number
    place, kinds, sites, sizes, wheres, ends = st.columns([2.6, 1.8, 1.2, 2.6, 1.8, 0.5], vertical_alignment="bottom")
    with ends:
        st.button("", key=f"remove-{number}", icon=":material/close:", help="Remove", on_click=_remove, args=(number,))
    if start.feature is None:
        place.markdown(f"**{plain(start)}**")
        amount = _amount(sizes, ADD, number, start, AMOUNTS)
        return replace(start, amount=amount, positions=_where(wheres, number, start))
    if dictionaries.is_neuron(start.feature):
        feature = _neuron(model, start.feature, number, place, sites)
    else:
        feature = start.feature
        _latent(model, feature, place, sites)
    offered = CODES if _is_code(feature) else KINDS
    kind = kinds.selectbox(
        "Edit",
        offered,
        index=offered.index(_kind(start)),
        key=f"kind-{number}",
        persist_state="session",
        help=EXPLAINED,
    )
    fitted = amounts(model, feature)
    amount = _amount(sizes, kind, number, start, fitted) if kind in AMOUNTS else 0.0
    return _make(kind, feature, amount, _where(wheres, number, start), start)


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
    _name(place, feature, f"Layer {words[1]}, neuron {feature.index}", tokens)
    return feature


def _latent(model: LanguageModel, feature: wb.Feature, place: Any, sites: Any) -> None:
    """Draw a latent's label, its tokens, and its hook point."""
    one = dictionaries.called(model, feature.dictionary)
    index = dictionaries.usable_index(model, one)
    tokens = dictionaries.latent_tokens(index, feature.index, 3)[0] if index is not None else []
    remark = index.remarks().get(feature.index) if index is not None else None
    label = f": {remark.label}" if remark is not None and remark.label else ""
    _name(place, feature, f"{one.title}, {one.noun} {feature.index}{label}", tokens)
    sites.caption(plain(one.writes), help="The hook point at which it is edited.")


def _name(place: Any, feature: wb.Feature, name: str, tokens: Sequence[str]) -> None:
    with place:
        st.page_link(
            pages.script("browse"),
            label=f"**{plain(name)}**",
            icon="",
            help="Open its card",
            query_params={"feature": str(feature)},
        )
        show_chips(tokens)


EXPLAINED = (
    "**Clamp** holds the feature at a value, **Scale** multiplies it, **Ablate** sets it to zero or to its mean, "
    "**Steer** adds to it. **Force** activates a code in place of the least similar one chosen, of all, or beside them."
)


def _make(
    kind: str, feature: wb.Feature, amount: float, positions: Any, start: FeatureIntervention
) -> FeatureIntervention:
    if kind in FORCES:
        return wb.Force(feature, FORCES[kind], positions=positions)
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
    if isinstance(one, wb.Force):
        return next(kind for kind, replaces in FORCES.items() if replaces == one.replaces)
    return type(one).__name__


def _amount(place: Any, kind: str, number: int, start: FeatureIntervention, fitted: dict) -> float:
    name, first, reach, step = fitted[kind]
    if _kind(start) == kind:
        first = next(value for key, value in start.settings().items() if key in ("value", "factor", "amount"))
    key = f"{kind}-{number}"
    reach = max(reach, abs(first), abs(st.session_state.get(key, 0.0)))  # an index may have come with a lower highest
    return place.slider(name, -reach, reach, first, step, "%.4g", key=key, persist_state="session")


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
