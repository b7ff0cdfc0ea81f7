"""One node of a graph: its numbers, its strongest edges, its card; and the effect of ablating it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st
from shared import latent_card, session
from shared.tokens import show_chips
from shared.waiting import one_sentence

from attribution.request import MEASURED, NODE, PINS, AttributionRequest, load, named
from workbench import figures
from workbench.core.text import plain

if TYPE_CHECKING:
    from workbench.attribution import Graph
    from workbench.attribution.graph import Edge, Node
    from workbench.attribution.verification import Verification
    from workbench.model import LanguageModel

ROWS = 8
"""Edges listed in each direction."""
REGIMES = {
    "direct": "only the edge to the target",
    "latents": "later latents respond; attention and norms stay",
    "free": "everything responds",
}


def show(model: LanguageModel, request: AttributionRequest, whole: Graph, graph: Graph, node: Node) -> None:
    """Draw a node's numbers, its strongest edges, its de-embeddings and its card."""
    with st.container(border=True):
        name, pin = st.columns([5, 1.4], vertical_alignment="center")
        name.markdown(f"**{plain(named(whole, node))}**")
        pins: list[int] = st.session_state[PINS]
        if node.kind != "target":
            pin.button(
                "Unpin" if node.id in pins else "Pin",
                icon=":material/keep:",
                key="pin node",
                on_click=_pin,
                args=(pins, node.id),
                help="Pinned latents stay in the figure and are changed together below.",
                width="stretch",
            )
        st.caption(plain(_facts(node)))
        left, right = st.columns(2, gap="large")
        with left:
            st.markdown("**Sources**")
            sources = list(whole.edges_of(node.id))[:ROWS]
            _edges(whole, sources, [edge.source for edge in sources])
        with right:
            st.markdown("**Targets**")
            targets = whole.edges_from(node.id)[:ROWS]
            _edges(whole, targets, [edge.target for edge in targets])
        if node.feature is not None and node.kind == "latent":
            _words(model, request, node)
            _card(model, node)


def _facts(node: Node) -> str:
    if node.kind == "target":
        return f"The target of the graph; its value is {node.value:.4g}."
    active = f"Activation {node.value:.4g}. " if node.kind == "latent" else ""
    free = f", {node.gradient_effect:+.3g} if everything responds" if node.kind == "latent" else ""
    return f"{active}Influence {node.influence:.2%}. Adds {node.effect:+.3g} to the target within the graph{free}."


def _edges(graph: Graph, edges: Sequence[Edge], others: Sequence[int]) -> None:
    if not edges:
        st.caption("Nothing in this graph.")
        return
    rows = [
        {
            "node": named(graph, graph.node(other)),
            "weight": f"{edge.weight:+.4g}",
            "factor": f"{edge.factor:+.3g}",
            "invariant": "" if edge.invariant is None else f"{edge.invariant:+.3g}",
        }
        for edge, other in zip(edges, others, strict=True)
    ]
    config = {
        "node": st.column_config.TextColumn("Node", width=225),
        "weight": st.column_config.TextColumn("Weight", width=68, help="Activation times factor."),
        "factor": st.column_config.TextColumn(
            "Factor", width=62, help="The effect of one unit along all paths, on this prompt."
        ),
        "invariant": st.column_config.TextColumn(
            "Alone",
            width=62,
            help="From weights alone: decoder row times encoder row through the norm's gain: on every prompt.",
        ),
    }
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=config, height=35 * (len(rows) + 1) + 3)


def _words(model: LanguageModel, request: AttributionRequest, node: Node) -> None:
    """Draw the latent's de-embeddings."""
    import workbench as wb

    with st.expander("Which tokens drive it, from weights alone"):
        if not st.toggle("Read it through the embeddings", key=f"deembed {node.feature}"):
            return
        assert node.feature is not None
        coder: Any = node.feature.source
        deembedding = wb.attribution.deembed(model, coder, node.feature.index, top=12, heads=3)
        for title, tokens in (
            ("The token itself raises it", deembedding.drives),
            ("The token itself lowers it", deembedding.opposes),
            *((f"Head {one.head} of layer {one.layer} attends to", one.drives) for one in deembedding.heads),
            ("It raises the logits of", deembedding.promotes),
            ("It lowers the logits of", deembedding.suppresses),
        ):
            st.caption(plain(title))
            show_chips(tokens.tokens)


def _card(model: LanguageModel, node: Node) -> None:
    """Draw the latent's card of Browse where the latent is open, or the button that opens it."""
    feature = str(node.feature)
    if st.session_state.get("open") != feature:
        st.button(
            "Show its card",
            icon=":material/id_card:",
            key="card of node",
            on_click=session.open_feature,
            args=(feature,),
        )
        return
    with one_sentence():
        latent_card.show(model, feature)


def _pin(pins: list[int], id: int) -> None:
    pins.remove(id) if id in pins else pins.append(id)


def measure(model: LanguageModel, request: AttributionRequest, whole: Graph) -> None:
    """Draw the check by intervention: the graph's prediction beside the measured change."""
    chosen = st.session_state.get(NODE)
    pins: list[int] = st.session_state[PINS]
    latents = [id for id in dict.fromkeys([*pins, chosen]) if id is not None and whole.node(id).kind == "latent"]
    st.subheader("Does the graph hold under intervention?", anchor=False)
    st.caption(
        "A latent is multiplied at its position by the factor, and the target's change is compared with the graph's "
        "prediction. Without a chosen or pinned latent, the ten with the largest effects are tried, one at a time."
    )
    by, one, together = st.columns([2, 2, 2], vertical_alignment="bottom")
    factor = by.number_input("Factor", -5.0, 5.0, 0.0, 0.5, key="attribution factor", help="0 ablates the latent.")
    tried = (request.key, tuple(latents), float(factor))
    label = "Measure" if latents else "Measure the ten strongest"
    if one.button(label, icon=":material/science:", key="measure nodes", width="stretch"):
        with one_sentence(), st.spinner("The model is running with changed latents …"):
            import workbench as wb

            coders = load(model, request)
            verification = wb.attribution.verify_graph(model, coders, whole, latents or 10, factor=float(factor))
            st.session_state[MEASURED] = (tried, verification)
    pressed = together.button(
        "All of them together",
        icon=":material/compare_arrows:",
        key="measure together",
        width="stretch",
        disabled=not latents,
        help="The change of the next token's probabilities when all chosen and pinned latents are changed at once.",
    )
    if pressed:
        _together(model, request, whole, latents, float(factor))
    kept = st.session_state.get(MEASURED)
    if kept is not None and kept[0] == tried:
        _measured(whole, kept[1])


def _measured(graph: Graph, verification: Verification) -> None:
    rows = []
    for place, id in enumerate(verification.nodes):
        row = {"node": named(graph, graph.node(id))}
        for regime in verification.predicted:
            row[f"{regime} predicted"] = f"{verification.predicted[regime][place]:+.4f}"
            row[f"{regime} measured"] = f"{verification.measured[regime][place]:+.4f}"
        rows.append(row)
    config = {"node": st.column_config.TextColumn("Latent", width=230)}
    for regime in verification.predicted:
        meaning = REGIMES[regime]
        config[f"{regime} predicted"] = st.column_config.TextColumn(f"{regime}: predicted", width=120, help=meaning)
        config[f"{regime} measured"] = st.column_config.TextColumn("measured", width=90, help=meaning)
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=config, height=35 * (len(rows) + 1) + 3)
    correlations = ", ".join(f"{regime} {r:.3f}" for regime, r in verification.pearson.items() if not math.isnan(r))
    meanings = "; ".join(f"{regime}: {meaning}" for regime, meaning in REGIMES.items())
    st.caption(
        plain((f"Correlation of predicted and measured: {correlations}. " if correlations else "") + f"{meanings}.")
    )


def _together(
    model: LanguageModel, request: AttributionRequest, graph: Graph, latents: Sequence[int], factor: float
) -> None:
    import workbench as wb

    with one_sentence(), st.spinner("The model is running with changed latents …"):
        nodes = [graph.node(id) for id in latents]
        edits = [wb.Scale(node.feature, factor, positions=(node.position,)) for node in nodes if node.feature]
        both = wb.compare(model, request.prompt, edits, max_new_tokens=1)
        st.markdown("**The next token**")
        st.plotly_chart(
            figures.token_changes(both.top_changes), theme=None, key="moved", config={"displayModeBar": False}
        )
