"""The figure of a graph, its open and pinned nodes, and the graph as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st
from shared import dictionaries, session

from attribution import groups
from attribution import node as attribution_node
from attribution.request import CHART, NODE, PINS, AttributionRequest, named
from workbench.core.text import visible

if TYPE_CHECKING:
    from workbench.attribution import Edge, Graph
    from workbench.model import LanguageModel

SHOWN = 0.3
"""Share of the influence whose nodes are shown at first."""
KINDS = {"latent": "latents", "embedding": "embeddings", "error": "errors", "mlp": "other MLPs", "bias": "biases"}
FIRST = ["latent", "embedding", "error"]
"""The kinds that are shown at first."""
EDGES = 0.8
"""Share of what each node reads whose edges are drawn."""
NEAR = 8
"""Edges of the chosen node that are drawn in each direction, whatever else is shown."""


def show(model: LanguageModel, request: AttributionRequest, whole: Graph) -> None:
    """Draw the most influential part of the graph, and the chosen node."""
    _belongs(request)
    pins: list[int] = st.session_state[PINS]
    known = {node.id for node in whole.nodes}
    pins[:] = [id for id in pins if id in known]
    slider, which = st.columns([3, 4], vertical_alignment="top")
    share = slider.slider(
        "Show the nodes that have this share of the influence",
        0.1,
        0.95,
        SHOWN,
        0.05,
        key="attribution share",
        persist_state="session",
        help="Influence: absolute weights along all paths to the target. The fewer, the clearer.",
    )
    kinds = which.pills(
        "Of these kinds",
        list(KINDS),
        default=FIRST,
        format_func=lambda kind: KINDS[kind],
        selection_mode="multi",
        key="attribution kinds",
    )
    chosen = st.session_state.get(NODE)
    if chosen not in known:
        chosen = None
    near = [] if chosen is None else _edges_of(whole, chosen, kinds or list(KINDS))
    beside = {end for edge in near for end in (edge.source, edge.target)} - {whole.target.id}
    graph = whole.prune(share, EDGES, keep=(*pins, *beside), kinds=kinds or list(KINDS))
    st.caption(f"{len(graph):,} of {sum(whole.counts.values()):,} nodes, {sum(1 for _ in graph.edges):,} edges.")
    words = _words(model, graph)
    from workbench.attribution import with_supernodes
    from workbench.figures.attribution import attribution_graph

    st.plotly_chart(
        attribution_graph(graph, words, chosen=chosen, pinned=pins, further=near),
        theme=None,
        key=CHART,
        on_select=partial(_picked, whole),
        selection_mode="points",
        config={"displayModeBar": False},
    )
    st.caption(
        "Each column is a token of the prompt, each band a layer. A node's area is its influence, an edge's width its "
        "part in what its end reads; green adds, red subtracts. Click a node, or choose it here: its inputs and "
        "outputs are drawn too."
    )
    ids = [node.id for node in sorted(graph.nodes, key=lambda node: -node.influence)]
    if chosen not in ids:
        st.session_state[NODE] = chosen = None
    st.selectbox(
        "Node",
        [None, *ids],
        format_func=lambda id: "none" if id is None else named(graph, graph.node(id), words.get(id, "")),
        key=NODE,
        on_change=_opened,
        args=(whole,),
    )
    if chosen is not None:
        attribution_node.show(model, request, whole, graph, graph.node(chosen))
    attribution_node.measure(model, request, whole)
    groups.show(model, request, whole, words)
    chosen_groups = groups.of(request)
    _files(graph if chosen_groups is None else with_supernodes(graph, chosen_groups), pins, words)


def pruning() -> str:
    """The arguments of `prune` of the part of a graph that the page shows, without the neighbours of a chosen node."""
    kinds, pins = st.session_state.get("attribution kinds") or list(KINDS), st.session_state.get(PINS)
    kept = f"keep={pins!r}, " if pins else ""
    return f"{st.session_state['attribution share']}, {EDGES}, {kept}kinds={kinds!r}"


def _edges_of(whole: Graph, chosen: int, kinds: Sequence[str]) -> list[Edge]:
    """The strongest edges into and out of a node, from and to nodes of these kinds."""
    wanted = {node.id for node in whole.nodes if node.kind in kinds or node.kind == "target"}
    into = [edge for edge in whole.edges_of(chosen) if edge.source in wanted][:NEAR]
    return into + [edge for edge in whole.edges_from(chosen) if edge.target in wanted][:NEAR]


def _belongs(request: AttributionRequest) -> None:
    """Clear the chosen and pinned nodes when the graph changes."""
    if st.session_state.get("attribution of") != request.key:
        st.session_state["attribution of"] = request.key
        st.session_state[PINS] = []
        st.session_state[NODE] = None


def _picked(whole: Graph) -> None:
    """Open the node that was clicked in the figure."""
    points: list[Any] = st.session_state[CHART]["selection"]["points"]
    ids = [point["customdata"] for point in points if "customdata" in point]
    ids = [id[0] if isinstance(id, list) else id for id in ids]
    if ids:
        st.session_state[NODE] = int(ids[0])
        _opened(whole)


def _opened(whole: Graph) -> None:
    node = st.session_state.get(NODE)
    if node is not None:
        feature = whole.node(node).feature
        session.open_feature(None if feature is None else str(feature))


def _words(model: LanguageModel, graph: Graph) -> dict[int, str]:
    """By node: a latent's label, or the tokens it is most active on, where its dictionary has an index."""
    words: dict[int, str] = {}
    names = {node.feature.dictionary for node in graph.nodes if node.feature is not None}
    known = {one.name: one for one in dictionaries.fitting(model) if one.name in names}
    for name, one in known.items():
        index = dictionaries.usable_index(model, one)
        if index is None:
            continue
        labels = index.names()
        for node in graph.nodes:
            if node.feature is not None and node.feature.dictionary == name:
                found = labels.get(node.feature.index)
                active, promoted = dictionaries.latent_tokens(index, node.feature.index)
                words[node.id] = (
                    dictionaries.label_words(found) if found else ", ".join(map(visible, active or promoted))
                )
    return words


def _files(graph: Graph, pins: list[int], words: dict[int, str]) -> None:
    from workbench.attribution import to_json, to_neuronpedia

    labels = {id: f"{graph.node(id).label} {text}" for id, text in words.items() if text}
    with st.container(horizontal=True):
        st.download_button(
            "This graph as JSON",
            lambda: to_json(graph),
            "graph.json",
            "application/json",
            icon=":material/download:",
            key="graph json",
        )
        st.download_button(
            "For Neuronpedia's graph viewer",
            lambda: json.dumps(to_neuronpedia(graph, "workbench", pinned=pins, labels=labels)),
            "neuronpedia.json",
            "application/json",
            icon=":material/download:",
            key="graph neuronpedia",
        )
