"""The search over the latents of a dictionary, and the table of its hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st
from shared import dictionaries, exports, session, snippets
from shared.dictionaries import Known
from shared.tokens import that_fit
from shared.waiting import one_sentence

from browse import labels, latent_query, rules, script
from browse.latent_query import LIMIT, LatentQuery
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.index import FeatureHit, FeatureIndex
    from workbench.model import LanguageModel

ROWS_SHOWN = 10
SHOWN_TOKENS = 6
FOUND = "▸"


def show(model: LanguageModel, one: Known) -> None:
    """Draw the search box and the hits of a dictionary with an index."""
    st.session_state["whole page"] = True
    try:
        _panel(model, one)
    finally:  # a run is interrupted when the user does something
        st.session_state["whole page"] = False
    rules.show(model, one)


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
        if one.exported:
            return f"**{count}.** The export holds {dictionaries.counted(one)}, with examples that somebody chose."
        which = f"{'with a star, ' if query.starred else ''}the {latent_query.UNASKED[query.unasked]} first"
        return f"**{count}, {which}.** The index covers {n_tokens:,} tokens."
    if not hits:
        return f"No {noun} fits “{plain(query.text)}” under these settings."
    matches = f" It marks {hits[0].score.matches:,} of {n_tokens:,} tokens." if hits[0].score else ""
    return f"**{count} for “{plain(query.text)}”, best first.**{matches}"


def _show_table(one: Known, hits: Sequence[FeatureHit], query: LatentQuery) -> None:
    """Draw the hits; a chosen row opens its latent."""
    wide = 185 if query.regex else 260
    columns: dict[str, tuple[list, object]] = {
        "latent": (
            [hit.index for hit in hits],
            st.column_config.NumberColumn(one.noun.title(), format="%d", width=70),
        ),
        "label": (
            [("★ " if hit.starred else "") + hit.label for hit in hits],
            st.column_config.TextColumn(
                "Label",
                width=160,
                help="Written or found; the card says by whom, and the score.",
            ),
        ),
        "active": (
            [_shown(hit, "activating", wide) for hit in hits],
            st.column_config.ListColumn(
                "Most active on", width=wide, help="Tokens with its highest values, each once; ␣ is a space."
            ),
        ),
        "promotes": (
            [_shown(hit, "promoted", wide) for hit in hits],
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
        selection_mode="single-cell",
        height=35 * (min(len(hits), ROWS_SHOWN) + 1) + 3,
    )
    estimated = any(hit.score is not None and not hit.score.exact for hit in hits)
    st.caption(
        "A click on a row opens its card."
        + (f" {FOUND} stands in front of the token that was found." if any(hit.matched_token for hit in hits) else "")
        + (
            " Some of the precisions and recalls are estimates: the index keeps only part of these latents' tokens."
            if estimated
            else ""
        )
    )


def _shown(hit: FeatureHit, field: str, width: int) -> list[str]:
    """The first tokens of a list that fit into a column, and the found one wherever it stands, marked."""
    tokens = getattr(hit, field)
    found = hit.matched_token if hit.matched_in == field else None
    marked = [f"{FOUND} {visible(token)}" if token == found else visible(token) for token in tokens]
    kept = f"{FOUND} {visible(found)}" if found else None
    return that_fit(marked[:SHOWN_TOKENS], width, kept)


REGEX_COLUMNS = {
    "precision": "Of the tokens it is active on, the share that the expression marks.",
    "recall": "Of the tokens that the expression marks, the share it is active on.",
    "f1": "Both together.",
}


def _open(key: str, features: list[str]) -> None:
    cells = st.session_state[key]["selection"]["cells"]
    session.open_feature(features[cells[0][0]] if cells else None)
    st.session_state["opened"] = True
