"""The search over all neurons: what to look for, and the table of what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import caching
import pandas as pd
import streamlit as st
from caching import TOP_K, Stopped
from components import session, snippets
from components.tokens import plain
from components.waiting import begin_again, one_sentence, wait_for

from workbench.figures import visible

if TYPE_CHECKING:
    from workbench import LanguageModel, NeuronTable
    from workbench.decode import Hit

EXAMPLES = ["dog", "water", "river", "doctor", "France", "python", "themselves", "yesterday"]
AMONG, HIGHEST = "among a neuron's top tokens", "at any rank"
WEIGHTS = {"gate": "gate", "up": "up", "down": "down"}
SIGNS = {1: "promotes", -1: "suppresses"}
MATCHES = {"any": "any form", "exact": "exactly", "contains": "inside words"}
SCALES = {"raw": "raw", "unit": "unit length", "norm": "through the final norm"}
ROWS_SHOWN, LIMIT, STRONGEST = 10, 200, 50


@dataclass(frozen=True)
class Query:
    """What is looked for."""

    text: str
    where: str
    weights: str
    sign: int
    match: str
    scale: str
    layers: tuple[int, ...] | None
    min_score: float | None
    max_rank: int | None


@st.fragment
def panel(model: LanguageModel) -> None:
    """Search box and results; a search draws only this part of the page anew."""
    if st.session_state.pop("opened", False):
        st.rerun()
    query = _ask(model)
    what = f"Decoding the {query.weights} weights"
    try:
        with one_sentence():
            ready = caching.decoded(model, query.weights, query.scale) is not None
            table = wait_for(caching.decoding(model, query.weights, query.scale), what, may_stop=True)
            if not ready and st.session_state.get("open"):
                st.rerun()  # the card can say more now
            _show_results(model, table, query)
    except Stopped:
        st.info("Decoding was stopped, so there is nothing to search yet.")
        st.button("Decode the neurons", on_click=begin_again, args=(what,))


def _ask(model: LanguageModel) -> Query:
    box, where = st.columns([3, 2], vertical_alignment="bottom")
    text = box.text_input(
        "Search for a word",
        key="query",
        type="search",
        placeholder="dog",
        live="100ms",
        persist_state="session",
        icon=":material/search:",
    )
    place = where.segmented_control(
        "Where",
        [AMONG, HIGHEST],
        default=AMONG,
        required=True,
        key="where",
        persist_state="session",
        help=f"Among the {TOP_K} tokens that a neuron scores highest; or the neurons that score this token highest, "
        "wherever it ranks among their tokens.",
    )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        weights = _choice(
            "Weights",
            WEIGHTS,
            "weights",
            "**gate** and **up** are what a neuron looks for in the model's state; **down** is what it writes into it.",
            options=[site if site != "post" else "down" for site in model.network.neuron_sites],
        )
        sign = _choice(
            "Direction", SIGNS, "sign", "A neuron can point towards a word, or away from it.", disabled=place == HIGHEST
        )
        match = _choice(
            "Match",
            MATCHES,
            "match",
            "**any form** ignores case and the space in front; **exactly** wants the very token, ␣dog with its space.",
            disabled=place == HIGHEST,
        )
        with st.popover("Filters", icon=":material/filter_list:"):
            scale = _choice(
                "Scale of the weights",
                SCALES,
                "scale",
                "As they are; each neuron's divided by its length; or sent through the model's final norm.",
            )
            last = model.network.n_layers - 1
            low, high = st.slider("Layers", 0, last, (0, last), key="layers", persist_state="session")
            least = st.number_input("Lowest score", value=None, key="min_score", persist_state="session")
            rank = st.number_input(
                "Worst rank", 0, TOP_K - 1, None, key="max_rank", persist_state="session", help="0 is the top token."
            )
    layers = None if (low, high) == (0, last) else tuple(range(low, high + 1))
    return Query(text or "", place, weights, sign, match, scale, layers, least, rank)


def _choice(
    label: str, names: dict, key: str, help: str, *, options: Sequence[Any] | None = None, disabled: bool = False
) -> Any:
    options = list(options or names)
    return st.segmented_control(
        label,
        options,
        default=options[0],
        required=True,
        format_func=names.__getitem__,
        key=key,
        help=help,
        disabled=disabled,
        persist_state="session",
    )


def _show_results(model: LanguageModel, table: NeuronTable, query: Query) -> None:
    word = query.text.strip()
    if not word:
        _show_examples()
        hits = most_specialised(table, query)
        st.markdown(f"**The most specialised neurons**: their best token stands out most from chance.{_shown(hits)}")
        _show_table(hits, query)
        snippets.show(_code(query))
        return
    hits = [] if query.where == HIGHEST else table.search(query.text, limit=LIMIT, **_how(query))
    if hits:
        count = f"{len(hits)} neuron{'s have' if len(hits) > 1 else ' has'}"
        st.markdown(f"**{count} “{plain(word)}” among the {TOP_K} tokens of highest score.**{_shown(hits)}")
        _show_table(hits, query)
        snippets.show(_code(query))
        return
    if query.where == AMONG:
        st.markdown(
            f"No neuron has “{plain(word)}” among its {TOP_K} tokens of highest score "
            "under these settings. These score it highest, at any rank:"
        )
    token = query.text if query.text.startswith(" ") or query.match == "exact" else f" {word}"
    found = caching.strongest(model, token, query.weights, query.scale, STRONGEST)
    first = visible(model.token_texts(model.to_tokens(token)[0, :1])[0])
    st.markdown(f"**The neurons whose {query.weights} weights score the token “{plain(first)}” highest.**")
    _show_table([table.hit(table.row(feature)) for feature, _ in found], query, [score for _, score in found])
    snippets.show(snippets.strongest(st.session_state["source"], query.weights, query.scale, token, STRONGEST))


def most_specialised(table: NeuronTable, query: Query) -> list[Hit]:
    """The neurons whose top token stands out most from what random directions score."""
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


def _how(query: Query) -> dict[str, Any]:
    return {
        "match": query.match,
        "sign": query.sign,
        "layers": query.layers,
        "max_rank": query.max_rank,
        "min_score": query.min_score,
    }


def _code(query: Query) -> str:
    table = {"weights": query.weights, "top_k": TOP_K, "scale": query.scale}
    return snippets.search(st.session_state["source"], query.text.strip() and query.text, table, _how(query))


def _shown(hits: Sequence[Hit]) -> str:
    return f" The first {LIMIT}." if len(hits) == LIMIT else ""


def _show_examples() -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("For example", width="content")
        for word in EXAMPLES:
            st.button(word, key=f"example {word}", on_click=_search, args=(word,), type="secondary")


def _search(word: str) -> None:
    st.session_state["query"] = word


def _show_table(hits: Sequence[Hit], query: Query, scores: Sequence[float] | None = None) -> None:
    """The hits; a chosen row opens its neuron."""
    frame = pd.DataFrame(
        {
            "neuron": [str(hit.feature) for hit in hits],
            "layer": [hit.layer for hit in hits],
            "tokens": [[visible(token) for token in hit.tokens[:7]] for hit in hits],
            "score": scores or [hit.scores[hit.rank] for hit in hits],
            "rank": [hit.rank for hit in hits],
            "excess": [hit.excess for hit in hits],
        }
    )
    columns = {
        "neuron": st.column_config.TextColumn("Neuron", help="dictionary.layer.site:index", width=150),
        "layer": st.column_config.NumberColumn("Layer", width=60),
        "tokens": st.column_config.ListColumn("Top tokens", help="Best first; ␣ is a space.", width=480),
        "score": st.column_config.NumberColumn("Score", format="%.2f", width=70, help="Of the token looked for."),
        "rank": st.column_config.NumberColumn("Rank", width=60, help="0: it is the neuron's top token."),
        "excess": st.column_config.NumberColumn(
            "Above chance",
            format="%.1f σ",
            width=110,
            help="How far the neuron's top score lies above that of random directions of the same length, in their "
            "standard deviations.",
        ),
    }
    if scores is not None:
        del columns["rank"]
    key = f"hits {query}"
    st.dataframe(
        frame,
        key=key,
        hide_index=True,
        column_config=columns,
        column_order=list(columns),
        on_select=lambda: _open(key, list(frame["neuron"])),
        selection_mode="single-row",
        height=35 * (min(len(hits), ROWS_SHOWN) + 1) + 3,
    )


def _open(key: str, features: list[str]) -> None:
    rows = st.session_state[key]["selection"]["rows"]
    session.open_feature(features[rows[0]] if rows else None)
    st.session_state["opened"] = True
