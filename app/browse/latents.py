"""The search over the latents of a dictionary, and the table of its hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st
from shared import dictionaries, exports, session, snippets
from shared.dictionaries import Known
from shared.waiting import one_sentence

from browse import labels, latent_query, script
from browse.latent_query import LIMIT, LatentQuery
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.index import FeatureHit, FeatureIndex
    from workbench.model import LanguageModel

ROWS_SHOWN = 10
SHOWN_TOKENS = 6


def show(model: LanguageModel, one: Known) -> None:
    """Draw the search box and the hits of a dictionary with an index."""
    st.session_state["whole page"] = True
    try:
        _panel(model, one)
    finally:  # a run is interrupted when the user does something
        st.session_state["whole page"] = False


@st.fragment
def _panel(model: LanguageModel, one: Known) -> None:
    """The part of the page that a search redraws."""
    query = latent_query.ask(one.noun)
    if st.session_state.pop("opened", False) and not st.session_state["whole page"]:
        st.rerun()  # a card is to be drawn
    with one_sentence():
        index = exports.index_of(one) if one.exported else dictionaries.open_index(model, one)
        if index is None:
            st.rerun()
        hits = index.search(**query.how())
        st.markdown(_summary(query, hits, index, one))
        if hits:
            _show_table(one, hits, query)
        labels.show(index)
        snippets.show(script.latent_search(one.folder, query.how()))


def _summary(query: LatentQuery, hits: Sequence[FeatureHit], index: FeatureIndex, one: Known) -> str:
    noun, n_tokens = one.noun, index.n_tokens
    count = f"The first {LIMIT} {noun}s" if len(hits) == LIMIT else f"{len(hits)} {noun}{'s' if len(hits) != 1 else ''}"
    if not query.asks:
        which = "with a star, the most often active first" if query.starred else "the most often active first"
        if one.exported:
            return f"**{count}.** The export holds {dictionaries.counted(one)}, with examples that somebody chose."
        return f"**{count}, {which}.** The index covers {n_tokens:,} tokens."
    if not hits:
        return f"No {noun} fits “{plain(query.text)}” under these settings."
    matches = f" It marks {hits[0].score.matches:,} of {n_tokens:,} tokens." if hits[0].score else ""
    return f"**{count} for “{plain(query.text)}”, best first.**{matches}"


def _show_table(one: Known, hits: Sequence[FeatureHit], query: LatentQuery) -> None:
    """Draw the hits; a chosen row opens its latent."""
    wide = 190 if query.regex else 265
    columns: dict[str, tuple[list, object]] = {
        "latent": (
            [hit.index for hit in hits],
            st.column_config.NumberColumn(one.noun.title(), format="%d", width=70),
        ),
        "label": (
            [("★ " if hit.starred else "") + hit.label for hit in hits],
            st.column_config.TextColumn("Label", width=160, help="The label that was written for it."),
        ),
        "active": (
            [[visible(token) for token in hit.activating[:SHOWN_TOKENS]] for hit in hits],
            st.column_config.ListColumn(
                "Most active on", width=wide, help="Tokens with its highest values, each once; ␣ is a space."
            ),
        ),
        "promotes": (
            [[visible(token) for token in hit.promoted[:SHOWN_TOKENS]] for hit in hits],
            st.column_config.ListColumn("Promotes", width=wide, help="Tokens that it makes likelier."),
        ),
        "density": (
            [None if hit.density is None else 100 * hit.density for hit in hits],
            st.column_config.NumberColumn(
                "Active", format="%.3g%%", width=70, help="The share of all tokens on which it is active."
            ),
        ),
        "highest": (
            [hit.highest for hit in hits],
            st.column_config.NumberColumn("Highest", format="%.3g", width=70, help="Its highest value."),
        ),
    }
    if query.regex:
        for name, help in REGEX_COLUMNS.items():
            values = [getattr(hit.score, name) if hit.score else None for hit in hits]
            columns[name] = values, st.column_config.NumberColumn(name.title(), format="%.2f", width=75, help=help)
        order = ["latent", "label", *REGEX_COLUMNS, "active", "promotes", "density"]
    else:
        order = list(columns)
    key = f"latents {one.name} {query}"
    st.dataframe(
        pd.DataFrame({name: values for name, (values, _) in columns.items()}),
        key=key,
        hide_index=True,
        column_config={name: config for name, (_, config) in columns.items()},
        column_order=order,
        on_select=lambda: _open(key, [f"{one.name}:{hit.index}" for hit in hits]),
        selection_mode="single-row",
        height=35 * (min(len(hits), ROWS_SHOWN) + 1) + 3,
    )
    estimated = any(hit.score is not None and not hit.score.exact for hit in hits)
    st.caption(
        "The box in front of a row opens its card."
        + (
            " Some of the precisions and recalls are estimates: the index keeps only part of these latents' tokens."
            if estimated
            else ""
        )
    )


REGEX_COLUMNS = {
    "precision": "Of the tokens it is active on, the share that the expression marks.",
    "recall": "Of the tokens that the expression marks, the share it is active on.",
    "f1": "Both together.",
}


def _open(key: str, features: list[str]) -> None:
    rows = st.session_state[key]["selection"]["rows"]
    session.open_feature(features[rows[0]] if rows else None)
    st.session_state["opened"] = True
