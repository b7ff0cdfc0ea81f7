"""The search over all neurons, and the table of its hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import caching
import pandas as pd
import streamlit as st
from caching import TOP_K, Stopped
from shared import neuron_index, session, snippets
from shared.sample import knows
from shared.tokens import that_fit
from shared.waiting import begin_again, one_sentence, wait_for, was_stopped

from browse import script
from browse.query import AMONG, HIGHEST, SCALES, Query, ask, chosen_table
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.index import Remark
    from workbench.model import LanguageModel
    from workbench.neurons import NeuronTable
    from workbench.neurons.table import Hit

EXAMPLES = ["dog", "water", "river", "doctor", "France", "python", "themselves", "yesterday"]
ROWS_SHOWN, LIMIT, STRONGEST = 10, 200, 50
TOKENS_WIDE, LABEL_WIDE = 440, 140
"""Pixels of the columns of tokens and of labels, which stand where there is one."""
AT_ONCE = 1.5
"""Seconds to wait for a table before the page shows progress; one from the disk takes less."""


def show(model: LanguageModel) -> None:
    """Draw the search box and its hits; decode the neurons first where no table is cached."""
    weights, scale = chosen_table(model)
    what = f"Decoding the {weights} weights, {SCALES[scale]}"
    if not was_stopped(what):
        caching.decoding(model, weights, scale).wait(AT_ONCE)
    st.session_state["whole page"] = True
    try:
        _panel(model)
    finally:  # a run is interrupted when the user does something
        st.session_state["whole page"] = False
    if caching.decoded(model, weights, scale) is None:
        _decode(model, weights, scale, what)


@st.fragment
def _panel(model: LanguageModel) -> None:
    """The part of the page that a search redraws."""
    query = ask(model)
    table = caching.decoded(model, query.weights, query.scale)
    opened = st.session_state.pop("opened", False)
    if (opened or table is None) and not st.session_state["whole page"]:
        st.rerun()  # a card is to be drawn, or a table is to be decoded
    if table is not None:
        with one_sentence():
            _show_results(model, table, query)


def _decode(model: LanguageModel, weights: str, scale: str, what: str) -> None:
    """Wait for the table, outside the fragment: a fragment's own buttons can't interrupt the page around it."""
    try:
        with one_sentence():
            wait_for(lambda: caching.decoding(model, weights, scale), what, may_stop=True)
            st.rerun()
    except Stopped:
        st.info("Decoding was stopped, so there is nothing to search yet.")
        st.button("Decode the neurons", on_click=begin_again, args=(what,))


def _show_results(model: LanguageModel, table: NeuronTable, query: Query) -> None:
    word = query.text.strip()
    if not word:
        _show_examples(model)
        hits = most_specialised(table, query)
        if hits:
            st.markdown(
                f"**The most specialised neurons**: their best token stands out most from chance.{_shown(hits)}"
            )
            _show_table(model, hits, query)
        else:
            st.markdown("No neuron has a token with such a score under these settings.")
        snippets.show(_code(query))
        return
    hits = [] if query.where == HIGHEST else table.search(query.text, limit=LIMIT, **query.how())
    if hits:
        count = f"{len(hits)} neuron{'s have' if len(hits) > 1 else ' has'}"
        st.markdown(f"**{count} “{plain(word)}” among the {TOP_K} tokens of highest score.**{_shown(hits)}")
        _show_table(model, hits, query)
        snippets.show(_code(query))
        return
    if query.where == AMONG:
        st.markdown(f"No neuron has “{plain(word)}” among its {TOP_K} tokens of highest score under these settings.")
        if query.max_rank is not None:  # a list at any rank would not keep to it
            snippets.show(_code(query))
            return
    _show_strongest(model, table, query)


def _show_strongest(model: LanguageModel, table: NeuronTable, query: Query) -> None:
    """Draw the neurons that score one token highest, at any rank; every other setting holds."""
    word = query.text.strip()
    exact = query.where == AMONG and query.match == "exact"
    token = query.text if query.text.startswith(" ") or exact else f" {word}"
    best = caching.strongest(model, token, query.weights, query.scale, STRONGEST, **query.at_any_rank())
    first = plain(visible(model.token_texts(model.to_tokens(token, start=False)[0, :1])[0]))
    side = "highest" if query.sign == 1 else "lowest"
    if best:
        many = f" The first {STRONGEST}." if len(best) == STRONGEST else ""
        st.markdown(
            f"**The neurons whose {query.weights} weights score the token “{first}” {side}, at any rank.**{many}"
        )
        hits = [table.hit(table.row(feature), query.sign) for feature, _ in best]
        _show_table(model, hits, query, [score for _, score in best])
    else:
        st.markdown(f"At any rank, no neuron scores the token “{first}” as these settings ask.")
    how = {"scale": query.scale} | query.at_any_rank() | {"top": STRONGEST}
    snippets.show(script.strongest(st.session_state["source"], query.weights, token, how))


def most_specialised(table: NeuronTable, query: Query) -> list[Hit]:
    """The neurons whose top score lies furthest above that of random directions, best first."""
    order = (-table.excess[0 if query.sign == 1 else 1]).argsort()
    hits = []
    for row in order:
        layer = int(row) // table.d_mlp
        if query.layers is not None and layer not in query.layers:
            continue
        hit = table.hit(int(row), query.sign)
        if query.min_score is None or hit.scores[0] >= query.min_score:
            hits.append(hit)
            if len(hits) == LIMIT:
                break
    return hits


def _code(query: Query) -> str:
    table = {"weights": query.weights, "top_k": TOP_K, "scale": query.scale}
    return script.search(st.session_state["source"], query.text.strip() and query.text, table, query.how())


def _shown(hits: Sequence[Hit]) -> str:
    return f" The first {LIMIT}." if len(hits) == LIMIT else ""


def _show_examples(model: LanguageModel) -> None:
    words = [word for word in EXAMPLES if knows(model, word)]
    if not words:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("For example", width="content")
        for word in words:
            st.button(word, key=f"example {word}", on_click=_search, args=(word,), type="secondary")


def _label(remark: Remark | None) -> str:
    """A neuron's label, behind a star if it has one."""
    return "" if remark is None else ("★ " if remark.starred else "") + remark.label


def _search(word: str) -> None:
    st.session_state["query"] = word


def _show_table(model: LanguageModel, hits: Sequence[Hit], query: Query, scores: Sequence[float] | None = None) -> None:
    """Draw the hits; a chosen row opens its neuron."""
    remarks = neuron_index.written(model, "post" if query.weights == "down" else query.weights)
    wide = TOKENS_WIDE - LABEL_WIDE * bool(remarks)
    frame = pd.DataFrame(
        {
            "neuron": [str(hit.feature) for hit in hits],
            "layer": [hit.layer for hit in hits],
            "label": [_label(remarks.get(str(hit.feature))) for hit in hits],
            "tokens": [that_fit([visible(token) for token in hit.tokens[:7]], wide) for hit in hits],
            "score": scores or [hit.scores[hit.rank] for hit in hits],
            "rank": [hit.rank for hit in hits],
            "excess": [hit.excess for hit in hits],
        }
    )
    columns = {
        "neuron": st.column_config.TextColumn("Neuron", help="dictionary.layer.site:index", width=150),
        "layer": st.column_config.NumberColumn("Layer", width=60),
        "label": st.column_config.TextColumn("Label", width=LABEL_WIDE, help="The label that was written for it."),
        "tokens": st.column_config.ListColumn("Top tokens", help="Best first; ␣ is a space.", width=wide),
        "score": st.column_config.NumberColumn("Score", format="%.2f", width=70, help="Of the searched token."),
        "rank": st.column_config.NumberColumn("Rank", width=60, help="0: it is the neuron's top token."),
        "excess": st.column_config.NumberColumn(
            "Above chance",
            format="%.1f σ",
            width=110,
            help="The neuron's top score less the mean top score of random directions of the same length, in their "
            "standard deviations.",
        ),
    }
    if scores is not None:
        del columns["rank"]
    if not remarks:
        del columns["label"]
    key = f"hits {query}"
    st.dataframe(
        frame,
        key=key,
        hide_index=True,
        column_config=columns,
        column_order=list(columns),
        on_select=lambda: _open(key, list(frame["neuron"])),
        selection_mode="single-cell",
        height=35 * (min(len(hits), ROWS_SHOWN) + 1) + 3,
    )
    st.caption("A click on a row opens its card.")


def _open(key: str, features: list[str]) -> None:
    cells = st.session_state[key]["selection"]["cells"]
    session.open_feature(features[cells[0][0]] if cells else None)
    st.session_state["opened"] = True
