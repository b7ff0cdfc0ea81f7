"""The figure of an attribution graph: positions from left to right, layers from bottom to top."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import plotly.graph_objects as go

from workbench.core.text import figure_label
from workbench.figures.common import AGAINST, FAINT, FOR, INK, dress


class Drawn(Protocol):
    """A node: an `attribution.Node`, or an `attribution.ViewerNode`, which knows no effects."""

    @property
    def id(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def value(self) -> float | None: ...
    @property
    def label(self) -> str: ...
    @property
    def influence(self) -> float: ...
    @property
    def effect(self) -> float | None: ...
    @property
    def gradient_effect(self) -> float | None: ...


class Line(Protocol):
    """An edge: an `attribution.Edge`."""

    @property
    def source(self) -> int: ...
    @property
    def target(self) -> int: ...
    @property
    def weight(self) -> float: ...


class Picture(Protocol):
    """A pruned graph: an `attribution.Graph`, or an `attribution.ViewerGraph`."""

    @property
    def prompt(self) -> list[str]: ...
    @property
    def nodes(self) -> Sequence[Drawn]: ...
    @property
    def edges(self) -> Iterable[Line]: ...


LOOKS = {
    "latent": ("latents", "circle", FOR),
    "error": ("errors", "x-thin", FAINT),
    "mlp": ("MLPs without a transcoder", "square", "#b9c2bd"),
    "embedding": ("embeddings", "triangle-up", "#6b83a6"),
    "bias": ("biases", "cross", "#b9c2bd"),
    "other": ("others", "diamond", "#b9c2bd"),
    "target": ("target", "star", INK),
}
"""Name, symbol and colour of each kind of node."""
WIDTHS = (0.6, 1.4, 2.6, 4.5)
"""Widths of edges, from the weakest to the strongest; a trace of lines has one width."""
MOST_EDGES = 600
"""The largest number of edges drawn, the strongest."""


def attribution_graph(
    graph: Picture, words: Mapping[int, str] | None = None, *, chosen: int | None = None, pinned: Sequence[int] = ()
) -> go.Figure:
    """The nodes of a pruned graph and the strongest edges between them.

    The size of a node shows its influence, the width of an edge its weight; weights above 0 are green, those below are
    red. The `customdata` of a point is its node's id.

    Args:
        graph: a pruned graph.
        words: by node id a further line on hover, such as a latent's label.
        chosen: the id of a node whose edges stand out.
        pinned: ids of nodes to mark.
    """
    words = words or {}
    layers = sorted({node.layer for node in graph.nodes})
    places = _places(graph.nodes, {layer: height for height, layer in enumerate(layers)})
    figure = go.Figure()
    _draw_edges(figure, graph, places, chosen)
    for kind, (name, symbol, colour) in LOOKS.items():
        mine = [node for node in graph.nodes if node.kind == kind]
        if not mine:
            continue
        marked = [node.id == chosen or node.id in pinned for node in mine]
        figure.add_scatter(
            x=[places[node.id][0] for node in mine],
            y=[places[node.id][1] for node in mine],
            mode="markers",
            name=name,
            marker={
                "symbol": symbol,
                "color": colour,
                "size": [18.0 if kind == "target" else 7 + 26 * math.sqrt(min(node.influence, 1.0)) for node in mine],
                "opacity": 1.0,
                "line": {
                    "color": [AGAINST if mark else (FAINT if kind == "error" else "white") for mark in marked],
                    "width": [3 if mark else 1.2 for mark in marked],
                },
            },
            customdata=[node.id for node in mine],
            hovertext=[_hover_text(graph, node, words.get(node.id, "")) for node in mine],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    dress(figure)
    ends = any(node.kind == "target" and node.layer == max(layers) for node in graph.nodes)
    top = {max(layers): "target"} if ends and len(layers) > 1 else {}
    figure.update_layout(
        height=max(420, 80 + 44 * len(layers)),
        margin={"l": 10, "r": 10, "t": 36, "b": 30},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False},
        hovermode="closest",
    )
    figure.update_yaxes(
        tickvals=list(range(len(layers))),
        ticktext=[top.get(layer, "embedding" if layer < 0 else f"layer {layer}") for layer in layers],
        zeroline=False,
        range=[-0.6, len(layers) - 0.4],
    )
    columns = range(-1 if any(node.position < 0 for node in graph.nodes) else 0, len(graph.prompt))
    figure.update_xaxes(
        tickvals=list(columns),
        ticktext=["" if place < 0 else figure_label(graph.prompt[place]) for place in columns],
        tickangle=0 if len(graph.prompt) < 16 else -60,
        showgrid=False,
        zeroline=False,
        range=[columns[0] - 0.6, len(graph.prompt) - 0.4],
    )
    return figure


def _places(nodes: Sequence[Drawn], heights: Mapping[int, int]) -> dict[int, tuple[float, float]]:
    """Coordinates of nodes by id; those of one layer and position stand side by side, the most influential centred."""
    cells: dict[tuple[int, int], list[Drawn]] = {}
    for node in nodes:
        cells.setdefault((node.position, heights[node.layer]), []).append(node)
    places = {}
    for (position, height), mine in cells.items():
        mine.sort(key=lambda node: -node.influence)
        step = min(0.16, 0.8 / len(mine))
        for number, node in enumerate(mine):
            side = (number + 1) // 2 * (1 if number % 2 else -1)
            places[node.id] = position + side * step, height + 0.12 * (number % 3 - 1) * (len(mine) > 1)
    return places


def _draw_edges(
    figure: go.Figure, graph: Picture, places: Mapping[int, tuple[float, float]], chosen: int | None
) -> None:
    """Draw edges, in one trace for each width and sign; hovering over the middle of an edge shows its weight."""
    edges = sorted(graph.edges, key=lambda edge: -abs(edge.weight))[:MOST_EDGES]
    if not edges:
        return
    names = {node.id: node for node in graph.nodes}
    highest = abs(edges[0].weight)
    traces: dict[tuple[int, bool, bool], list[Line]] = {}
    for edge in edges:
        share = math.sqrt(abs(edge.weight) / highest)
        near = chosen in (edge.source, edge.target)
        traces.setdefault((min(int(share * 4), 3), edge.weight > 0, near), []).append(edge)
    for (width, positive, near), mine in sorted(traces.items(), key=lambda item: (item[0][2], item[0][0])):
        x, y = ([end for edge in mine for end in _line(edge, places, axis)] for axis in (0, 1))
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": FOR if positive else AGAINST, "width": WIDTHS[width] + (1 if near else 0)},
            opacity=0.9 if near else (0.3 if chosen is None else 0.12),
            hoverinfo="skip",
            showlegend=False,
        )
    figure.add_scatter(
        x=[(places[edge.source][0] + places[edge.target][0]) / 2 for edge in edges],
        y=[(places[edge.source][1] + places[edge.target][1]) / 2 for edge in edges],
        mode="markers",
        marker={"size": 8, "opacity": 0},
        hovertext=[
            " → ".join(figure_label(names[end].label) for end in (edge.source, edge.target))
            + f"<br>weight {edge.weight:+.3g}"
            for edge in edges
        ],
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
    )


def _line(edge: Line, places: Mapping[int, tuple[float, float]], axis: int) -> tuple[float, float, None]:
    return places[edge.source][axis], places[edge.target][axis], None


def _hover_text(graph: Picture, node: Drawn, words: str) -> str:
    """The hover text of a node, as HTML."""
    lines = [f"<b>{figure_label(node.label)}</b>"]
    if node.position >= 0:
        lines.append(f"on {figure_label(graph.prompt[node.position])} (position {node.position})")
    if words:
        lines.append(figure_label(words))
    if node.kind in ("target", "latent") and node.value is not None:
        lines.append(f"{'value' if node.kind == 'target' else 'activation'} {node.value:.4g}")
    if node.kind != "target":
        lines.append(f"influence {node.influence:.2%}")
        lines += [f"adds {node.effect:+.3g} within the graph"] if node.effect is not None else []
        responds = node.kind == "latent" and node.gradient_effect is not None
        lines += [f"adds {node.gradient_effect:+.3g} if all responds"] if responds else []
    return "<br>".join(lines)
