"""A text, its tokens tinted by how many neurons each needs, and the tokens that need most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st
from shared import snippets
from shared.tokens import show_strengths
from shared.waiting import one_sentence

from sparsity import panel
from sparsity.panel import SparsityRequest
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.model import LanguageModel
    from workbench.sparsity import Sparsity
    from workbench.sparsity.tokens import Demand

TEXT = "The dog ran to the river, and the old man told his children the story of the war of 1914."
ROWS = 10


def show(models: Sequence[LanguageModel], requests: Sequence[SparsityRequest], results: Sequence[Sparsity]) -> None:
    """Draw the text for each model that is measured."""
    st.subheader("Which tokens need most neurons?", anchor=False)
    st.session_state.setdefault("sparse text", TEXT)
    text = st.text_area("Text", key="sparse text", height=90, persist_state="session")
    for column, model, one, result in zip(st.columns(len(results)), models, requests, results, strict=True):
        with column, one_sentence():
            _show_one(_activity(model, one, result, text), panel.short(one.source) if len(results) > 1 else "")
    st.caption(
        "Colour: the share of the model's neurons that a token needs; the highest is darkest, the lowest blank. "
        "Point at a token for its share; dots are spaces."
    )
    limits = [float(f"{one:.6g}") for one in results[0].thresholds]
    snippets.show(code(requests[0].source, limits, text))


def _activity(model: LanguageModel, request: SparsityRequest, result: Sparsity, text: str) -> list[Demand]:
    """The activity of each token, computed once for each text and result."""
    import workbench as wb

    kept = st.session_state.setdefault("sparse readings", {})
    key = (request.key, tuple(result.thresholds), text)
    if key not in kept:
        while len(kept) > 8:
            kept.pop(next(iter(kept)))
        kept[key] = wb.sparsity.token_activity(model, result, text)
    return kept[key]


def _show_one(tokens: Sequence[Demand], name: str) -> None:
    shares = [one.active for one in tokens]
    if name:
        st.markdown(f"**{plain(name)}**")
    with st.container(border=True):
        labels = [f"{one.active:.1%} of the neurons" for one in tokens]
        show_strengths([one.text for one in tokens], shares, labels, min(shares))
    most = sorted(range(len(tokens)), key=lambda place: -shares[place])[:ROWS]
    frame = pd.DataFrame(
        {
            "place": most,
            "token": [visible(tokens[place].text) for place in most],
            "active": [shares[place] for place in most],
            "layer": [_busiest(tokens[place]) for place in most],
        }
    )
    config = {
        "place": st.column_config.NumberColumn("Place", width=60, help="From 0."),
        "token": st.column_config.TextColumn("Token", width=120, help="␣ is a space."),
        "active": st.column_config.ProgressColumn("Neurons", format="percent", min_value=0.0, max_value=1.0, width=150),
        "layer": st.column_config.TextColumn("Busiest layer", width=150),
    }
    st.dataframe(frame, hide_index=True, column_config=config, height=35 * (len(frame) + 1) + 3)


def _busiest(token: Demand) -> str:
    layer = max(range(len(token.by_layer)), key=token.by_layer.__getitem__)
    return f"{layer}  ({token.by_layer[layer]:.0%})"


def code(source: str, thresholds: list[float], text: str) -> str:
    """A script that computes the same activities."""
    return snippets.opening(source) + (
        f"thresholds = {thresholds!r}\n"
        f"tokens = wb.sparsity.token_activity(model, thresholds, {text!r})\n"
        "for token in sorted(tokens, key=lambda token: -token.active):\n"
        "    print(f'{token.active:.4f}', repr(token.text))\n"
    )
