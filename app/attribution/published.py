"""A graph made elsewhere: circuit-tracer's and Neuronpedia's files, drawn with their labels."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from attribution.request import named
from workbench.core.text import counted, plain, visible

if TYPE_CHECKING:
    from workbench.attribution import ViewerGraph, ViewerLink, ViewerNode

GRAPH, NODE, CHART, TROUBLE = "published graph", "published node", "published chart", "published trouble"
"""Keys of the session: the opened graph, its open node, its figure, and why the last file can't be opened."""
TURN = "published turn"
KINDS = {"latent": "features", "embedding": "embeddings", "error": "errors", "bias": "biases", "other": "others"}
LARGEST = 200
"""Megabytes of a file."""
SHOWN = 0.5
"""Share of the influence whose nodes are shown at first."""
ROWS = 8
"""Links listed in each direction."""


def show() -> None:
    """Draw the box that opens a file, and the graph that was opened last."""
    with st.expander("Open a graph made elsewhere", icon=":material/folder_open:", expanded=GRAPH in st.session_state):
        turn = st.session_state.setdefault(TURN, 0)
        st.file_uploader(
            "A graph of circuit-tracer or Neuronpedia",
            "json",
            key=f"published-{turn}",
            max_upload_size=LARGEST,
            on_change=_open,
            args=(turn,),
        )
        if trouble := st.session_state.get(TROUBLE):
            st.error(plain(trouble), icon=":material/error:")
        graph: ViewerGraph | None = st.session_state.get(GRAPH)
        if graph is not None:
            _graph(graph)


def _open(turn: int) -> None:
    from workbench.attribution import AttributionError, read_viewer_graph

    file = st.session_state[f"published-{turn}"]
    if file is None:
        return
    st.session_state[TURN] = turn + 1  # an empty box for the next file
    for key in (TROUBLE, GRAPH, NODE):
        st.session_state.pop(key, None)
    try:
        st.session_state[GRAPH] = read_viewer_graph(file.getvalue().decode())
    except (AttributionError, UnicodeDecodeError) as error:
        known = isinstance(error, AttributionError)
        st.session_state[TROUBLE] = str(error) if known else f"{file.name} is no text in UTF-8."


def _graph(whole: ViewerGraph) -> None:
    from workbench.figures.attribution import attribution_graph

    _about(whole)
    slider, which = st.columns([3, 4], vertical_alignment="top")
    share = slider.slider(
        "Show the nodes that have this share of the influence", 0.1, 0.95, SHOWN, 0.05, key="published share"
    )
    present = [kind for kind in KINDS if any(node.kind == kind for node in whole.nodes)]
    kinds = which.pills(
        "Of these kinds",
        present,
        default=present,
        format_func=KINDS.__getitem__,
        selection_mode="multi",
        key="published kinds",
    )
    graph: Any = whole.prune(share, 0.95, keep=whole.pinned, kinds=kinds or present)  # type: ignore[arg-type]
    st.caption(f"{len(graph):,} of {len(whole):,} nodes, {len(graph.edges):,} of {len(whole.edges):,} links.")
    ids = [node.id for node in sorted(graph.nodes, key=lambda node: -node.influence)]
    chosen = st.session_state.get(NODE)
    if chosen not in ids:
        st.session_state[NODE] = chosen = None
    figure = attribution_graph(graph, chosen=chosen, pinned=whole.pinned)
    options: Any = {"on_select": _picked, "selection_mode": "points", "config": {"displayModeBar": False}}
    st.plotly_chart(figure, theme=None, key=CHART, **options)
    names = partial(_named, graph)
    st.selectbox("Node", [None, *ids], format_func=names, key=NODE)
    if chosen is not None:
        _node(whole, whole.node(chosen))
    with st.container(horizontal=True):
        st.download_button(
            "This part as JSON",
            lambda: json.dumps(graph.to_dict()),
            "graph.json",
            "application/json",
            icon=":material/download:",
            key="published json",
        )
        st.button("Close", icon=":material/close:", key="close published", on_click=_close)


def _about(graph: ViewerGraph) -> None:
    """Say what the file is of, and what it does not hold."""
    st.markdown(f"**{plain(graph.model)}** · {plain(visible(''.join(graph.prompt)))}")
    said = ", ".join(node.label for node in graph.targets)
    st.caption(plain(f"Predictions: {said}."))
    st.caption(
        "Its features belong to transcoders that this file does not hold, so they show the file's labels and no cards. "
        "Influence is that of the links in the file: what was left out of it counts for nothing."
    )
    if graph.supernodes:
        groups = "; ".join(f"{name}: {counted(len(ids), 'node')}" for name, ids in graph.supernodes)
        st.caption(plain(f"Supernodes: {groups}."))
    if graph.left_out:
        st.caption(f"{graph.left_out:,} links name a node that the file does not have, and are left out.")


def _named(graph: Any, id: int | None) -> str:
    return "none" if id is None else named(graph, graph.node(id))


def _node(graph: ViewerGraph, node: ViewerNode) -> None:
    with st.container(border=True):
        st.markdown(f"**{plain(_named(graph, node.id))}**")
        facts = [f"{node.kind} {node.name}", f"influence {node.influence:.2%}"]
        facts += [f"layer {node.layer}, feature {node.index:,}"] if node.index is not None else []
        facts += [f"activation {node.value:.4g}"] if node.kind == "latent" and node.value is not None else []
        st.caption(plain(f"{', '.join(facts)}."))
        left, right = st.columns(2, gap="large")
        for place, title, links in (
            (left, "Sources", [link for link in graph.edges if link.target == node.id]),
            (right, "Targets", [link for link in graph.edges if link.source == node.id]),
        ):
            with place:
                st.markdown(f"**{plain(title)}**")
                _links(graph, links, title == "Sources")


def _links(graph: ViewerGraph, links: list[ViewerLink], sources: bool) -> None:
    strongest = sorted(links, key=lambda link: -abs(link.weight))[:ROWS]
    if not strongest:
        st.caption("Nothing in this graph.")
        return
    rows = [
        {"node": _named(graph, link.source if sources else link.target), "weight": f"{link.weight:+.4g}"}
        for link in strongest
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, height=35 * (len(rows) + 1) + 3)


def _picked() -> None:
    """Open the node that was clicked in the figure."""
    points: list[Any] = st.session_state[CHART]["selection"]["points"]
    ids = [point["customdata"] for point in points if "customdata" in point]
    ids = [id[0] if isinstance(id, list) else id for id in ids]
    if ids:
        st.session_state[NODE] = int(ids[0])


def _close() -> None:
    for key in (GRAPH, NODE, TROUBLE):
        st.session_state.pop(key, None)
