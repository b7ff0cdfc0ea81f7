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
"""The largest number of edges drawn, those with the largest parts in what their targets read."""
LARGEST, SMALLEST, TARGET = 20.0, 5.0, 18.0
"""Diameters in pixels: of the most influential node at most, the least one that can be clicked, and of the target."""
WIDE = 850
"""Pixels between the edges of the figure on a page, by which nodes side by side are kept apart."""
SIDE_BY_SIDE, STEP = 5, 0.18
"""Nodes of one layer and position that stand in a row, and their distance, in columns."""
GAP = 0.8
"""Rows between the nodes of a layer and the edge of the figure."""
ROW = 30
"""Pixels of a row of nodes; a layer has as many rows as its fullest position needs."""


def attribution_graph(
    graph: Picture,
    words: Mapping[int, str] | None = None,
    *,
    chosen: int | None = None,
    pinned: Sequence[int] = (),
    further: Sequence[Line] = (),
) -> go.Figure:
    """The nodes of a pruned graph and the strongest edges between them.

    The area of a node shows its influence, the width of an edge its part in what its target reads; weights above 0 are
    green, those below are red. The `customdata` of a point is its node's id; nothing else takes hover or clicks.

    Args:
        graph: a pruned graph.
        words: by node id a further line on hover, such as a latent's label.
        chosen: the id of a node whose edges stand out; the nodes at their ends state the weights on hover.
        pinned: ids of nodes to mark.
        further: edges between nodes of the graph that are drawn too, such as all those of the chosen node.
    """
    words = words or {}
    layers = sorted({node.layer for node in graph.nodes})
    heights = _heights(graph.nodes, layers)
    places = _places(graph.nodes, heights)
    lines = _lines(graph, further, places)
    figure = go.Figure()
    _draw_edges(figure, lines, places, chosen)
    weights = _weights_beside(lines, chosen)
    largest = max(SMALLEST, min(LARGEST, 1.7 * STEP * WIDE / (len(graph.prompt) + 1)))
    most = max((node.influence for node in graph.nodes if node.kind != "target"), default=0.0)
    for kind, (name, symbol, colour) in LOOKS.items():
        mine = sorted((node for node in graph.nodes if node.kind == kind), key=lambda node: -node.influence)
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
                "size": [TARGET if kind == "target" else _diameter(node.influence, most, largest) for node in mine],
                "opacity": 1.0,
                "line": {
                    "color": [AGAINST if mark else (FAINT if kind == "error" else "white") for mark in marked],
                    "width": [3 if mark else 1.2 for mark in marked],
                },
            },
            customdata=[node.id for node in mine],
            hovertext=[_hover_text(graph, node, words.get(node.id, ""), weights.get(node.id, [])) for node in mine],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    dress(figure)
    ends = any(node.kind == "target" and node.layer == max(layers) for node in graph.nodes)
    top = {max(layers): "target"} if ends and len(layers) > 1 else {}
    figure.update_layout(
        height=max(420, 80 + int(ROW * (heights[layers[-1]][1] + GAP))),
        margin={"l": 10, "r": 10, "t": 36, "b": 30},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False},
        hovermode="closest",
    )
    figure.update_yaxes(
        tickvals=[(low + high) / 2 for low, high in (heights[layer] for layer in layers)],
        ticktext=[top.get(layer, "embedding" if layer < 0 else f"layer {layer}") for layer in layers],
        zeroline=False,
        range=[-GAP, heights[layers[-1]][1] + GAP],
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


def _diameter(influence: float, most: float, largest: float) -> float:
    """The size of a node: its area is proportional to its influence, down to the least that can be clicked."""
    return max(SMALLEST, largest * math.sqrt(influence / most)) if most > 0 else SMALLEST


def _cells(nodes: Sequence[Drawn]) -> dict[tuple[int, int], list[Drawn]]:
    """Nodes by layer and position, the most influential first."""
    cells: dict[tuple[int, int], list[Drawn]] = {}
    for node in sorted(nodes, key=lambda node: -node.influence):
        cells.setdefault((node.layer, node.position), []).append(node)
    return cells


def _heights(nodes: Sequence[Drawn], layers: Sequence[int]) -> dict[int, tuple[float, float]]:
    """The lowest and the highest row of each layer, in rows from the bottom; layers are a row and a half apart."""
    rows = dict.fromkeys(layers, 1)
    for (layer, _), mine in _cells(nodes).items():
        rows[layer] = max(rows[layer], math.ceil(len(mine) / SIDE_BY_SIDE))
    heights, low = {}, 0.0
    for layer in layers:
        heights[layer] = low, low + rows[layer] - 1
        low += rows[layer] + 0.5
    return heights


def _places(nodes: Sequence[Drawn], heights: Mapping[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
    """Coordinates of nodes by id; those of one layer and position stand in rows, the most influential in the middle."""
    places = {}
    for (layer, position), mine in _cells(nodes).items():
        for row, start in enumerate(range(0, len(mine), SIDE_BY_SIDE)):
            for number, node in enumerate(mine[start : start + SIDE_BY_SIDE]):
                side = (number + 1) // 2 * (1 if number % 2 else -1)
                places[node.id] = position + side * STEP, heights[layer][0] + row
    return places


def _lines(
    graph: Picture, further: Sequence[Line], places: Mapping[int, tuple[float, float]]
) -> list[tuple[Line, float]]:
    """The edges to draw, each with its part in what its target reads: 1 for the strongest edge into a node."""
    both = {(edge.source, edge.target): edge for edge in (*graph.edges, *further)}
    edges = [edge for edge in both.values() if edge.weight and edge.source in places and edge.target in places]
    strongest: dict[int, float] = {}
    for edge in edges:
        strongest[edge.target] = max(strongest.get(edge.target, 0.0), abs(edge.weight))
    shares = [(edge, abs(edge.weight) / strongest[edge.target]) for edge in edges]
    return sorted(shares, key=lambda pair: -pair[1])[:MOST_EDGES]


def _weights_beside(lines: Sequence[tuple[Line, float]], chosen: int | None) -> dict[int, list[str]]:
    """By node at the other end of an edge of the chosen node what its hover text says of the edge."""
    found: dict[int, list[str]] = {}
    for edge, _ in lines:
        if edge.target == chosen:
            found.setdefault(edge.source, []).append(f"into the chosen node {edge.weight:+.3g}")
        elif edge.source == chosen:
            found.setdefault(edge.target, []).append(f"from the chosen node {edge.weight:+.3g}")
    return found


def _draw_edges(
    figure: go.Figure,
    lines: Sequence[tuple[Line, float]],
    places: Mapping[int, tuple[float, float]],
    chosen: int | None,
) -> None:
    """Draw edges, in one trace for each width and sign; they take neither hover nor clicks."""
    traces: dict[tuple[int, bool, bool], list[Line]] = {}
    for edge, share in lines:
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


def _line(edge: Line, places: Mapping[int, tuple[float, float]], axis: int) -> tuple[float, float, None]:
    return places[edge.source][axis], places[edge.target][axis], None


def _hover_text(graph: Picture, node: Drawn, words: str, weights: Sequence[str]) -> str:
    """The hover text of a node, as HTML; `weights` are lines on its edges with the chosen node."""
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
    lines += weights
    return "<br>".join(lines)
