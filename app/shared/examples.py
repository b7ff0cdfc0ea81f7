"""The texts on which a feature is most and least active, and how its values are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st
from shared.tokens import show_examples

from workbench import figures

if TYPE_CHECKING:
    from workbench.index import Example, FeatureCard

SHOWN, MORE = 8, 20
"""The numbers of examples shown at first, and at most."""


def show_all(card: FeatureCard, tokens: str) -> None:
    """Draw the tabs of a feature's examples and of its values.

    Args:
        card: from an index that was built here.
        tokens: the number of tokens that its values are counted on, with their word.
    """
    full = max([card.highest or 0.0, *(one.value for one in card.top_examples)])
    names = ["Strongest examples", "From weak to strong", "All values"]
    if card.lowest_examples:
        names.insert(1, "Most negative")
    tabs = dict(zip(names, st.tabs(names), strict=True))
    with tabs["Strongest examples"]:
        show_strongest(card.top_examples, full)
    if card.lowest_examples:
        with tabs["Most negative"]:
            show_strongest(card.lowest_examples, full)
    with tabs["From weak to strong"]:
        for low, high in sorted({example.band for example in card.quantile_examples}):
            st.caption(f"From the {_part(low)} quarter of its values")
            show_examples([one for one in card.quantile_examples if one.band == (low, high)], full)
    with tabs["All values"]:
        st.caption(f"The distribution of its values over {tokens}.")
        figure = figures.activation_histogram(card.histogram.edges, card.histogram.counts)
        st.plotly_chart(figure, theme=None, key="histogram", config={"displayModeBar": False})


def show_strongest(examples: Sequence[Example], full: float) -> None:
    """Draw the first examples, and the others behind a click.

    Args:
        examples: the best first.
        full: the value of the darkest colour.
    """
    show_examples(examples[:SHOWN], full)
    rest = examples[SHOWN:MORE]
    if rest:
        with st.expander(f"{len(rest)} more"):
            show_examples(rest, full)


def _part(low: float) -> str:
    return {0.75: "highest", 0.5: "second", 0.25: "third", 0.0: "lowest"}.get(round(low, 2), f"{low:.0%}")
