"""The query for the latents of a dictionary: the search box and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

WORDS, TOKEN, REGEX = "words", "one token", "regular expression"
HINTS = {
    WORDS: (
        "dog",
        "In labels and notes, among the tokens a latent is most active on, and those it promotes. Every sign counts "
        "but case; the end of a word may be left out.",
    ),
    TOKEN: (" dog", "One token, exactly, with its space; among the most active or promoted ones."),
    REGEX: (
        "New (York)",
        "Latents that separate the matches in the index's texts from all else. The start of the first group, or of "
        "the match, marks a token.",
    ),
}
UNASKED = {"sharpness": "sharpest", "density": "most often active"}
"""Orders without a search."""
ORDERS = {"f1": "both (F1)", "precision": "precision", "recall": "recall"}
SHARES = [0.0, 0.00001, 0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
"""Densities to choose from."""
LIMIT = 200


@dataclass(frozen=True)
class LatentQuery:
    """A query for latents."""

    text: str
    mode: str
    density: tuple[float, float]
    starred: bool
    unasked: str
    order: str
    min_precision: float
    min_recall: float

    @property
    def regex(self) -> bool:
        """Whether the hits have scores of a regular expression."""
        return self.mode == REGEX and self.asks

    @property
    def asks(self) -> bool:
        """Whether there is something to look for; a space is a token, and an expression, but no word."""
        return bool(self.text.strip() if self.mode == WORDS else self.text)

    def how(self) -> dict[str, Any]:
        """The keyword arguments of `FeatureIndex.search`, without those at their usual value."""
        arguments: dict[str, Any] = {}
        if self.asks:
            arguments[{WORDS: "text", TOKEN: "token", REGEX: "regex"}[self.mode]] = self.text
        if self.starred:
            arguments["starred"] = True
        if not self.asks and self.unasked != "density":
            arguments["unasked"] = self.unasked
        if self.density != (0.0, 1.0):
            arguments["density"] = self.density
        if self.regex:
            usual = {"order": "f1", "min_precision": 0.0, "min_recall": 0.01}
            arguments |= {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        return arguments | {"limit": LIMIT}


def ask(noun: str) -> LatentQuery:
    """Draw the widgets, for features called by `noun`; returns their query."""
    box, how, more = st.columns([3.6, 3.3, 1.3], vertical_alignment="bottom")
    mode = how.segmented_control(
        "Look for",
        [WORDS, TOKEN, REGEX],
        default=WORDS,
        required=True,
        key="latent mode",
        persist_state="session",
        help="  \n".join(f"**{name}**: {hint}" for name, (_, hint) in HINTS.items()),
    )
    text = box.text_input(
        f"Search the {noun}s",
        key="latent query",
        type="search",
        placeholder=HINTS[mode][0],
        live="300ms" if mode == WORDS else False,
        persist_state="session",
        icon=":material/search:",
    )
    with more.popover("Filters", icon=":material/filter_list:", width="stretch"):
        density = st.select_slider(
            "Active on",
            SHARES,
            (0.0, 1.0),
            format_func=lambda share: f"{share:.3%}".rstrip("0").rstrip(".") if share < 0.001 else f"{100 * share:g}%",
            key="latent density",
            persist_state="session",
            help="The share of all tokens on which a latent is active.",
        )
        starred = st.toggle("Only with a star", key="latent starred", persist_state="session")
        unasked = st.segmented_control(
            "First without a search",
            list(UNASKED),
            default="sharpness",
            required=True,
            format_func=UNASKED.__getitem__,
            key="latent unasked",
            persist_state="session",
            help=f"The sharpest {noun}s are highest on the fewest different tokens; those with a star come before.",
        )
        regex = mode == REGEX
        order = st.selectbox(
            "Best by",
            list(ORDERS),
            format_func=ORDERS.__getitem__,
            key="latent order",
            persist_state="session",
            disabled=not regex,
            help="For a regular expression: which of its scores comes first.",
        )
        precision = _share("Lowest precision", "latent precision", 0.0, regex)
        recall = _share("Lowest recall", "latent recall", 0.01, regex)
    return LatentQuery(text or "", mode, tuple(density), starred, unasked, order, precision, recall)


def _share(label: str, key: str, value: float, used: bool) -> float:
    about = "For a regular expression: latents with less are left out."
    return st.number_input(
        label, 0.0, 1.0, value, 0.05, key=key, persist_state="session", disabled=not used, help=about
    )
