"""Graphs as circuit-tracer and Neuronpedia publish them: nodes with labels, links with weights, and a saved view.

Source: circuit-tracer 0.5.0, `frontend/graph_models.py` and `utils/create_graph_files.py`, and Neuronpedia's JSON
schema of attribution graphs. Such a file names features by layer and index and holds no transcoder; it keeps what was
left after pruning, so its weights sum to nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from workbench.attribution.errors import AttributionError
from workbench.attribution.graph import PositiveShare, heaviest
from workbench.core.checks import Integer, checked
from workbench.core.display import Rows, Shown, Tabular, record_of

if TYPE_CHECKING:
    from workbench.figures.common import Figure

ViewerKind = Literal["target", "latent", "error", "embedding", "bias", "other"]
VIEWER_KINDS: tuple[ViewerKind, ...] = get_args(ViewerKind)


@dataclass(frozen=True)
class ViewerNode(Shown):
    """A node of a published graph."""

    id: int
    """Its place in the file; pruning keeps it."""
    name: str
    """The file's own name of it, such as 20_15589_10."""
    kind: ViewerKind
    """`target`: a logit; `latent`: a feature; `error`; `embedding`; `bias`; `other`: of a type that no viewer knows."""
    layer: int
    """-1 for embeddings, one above all others for logits."""
    position: int
    value: float | None
    """A latent's activation, a logit's probability; None where the file states none."""
    label: str
    influence: float = 0.0
    """Share of all absolute influence on the logits that passes this node, along the links of the file."""
    index: int | None = None
    """The feature's index in its transcoder, where the node's name, layer, position and feature number agree on it."""
    content: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The node as it stands in the file."""

    effect: None = field(default=None, repr=False, init=False)
    gradient_effect: None = field(default=None, repr=False, init=False)


@dataclass(frozen=True)
class ViewerLink(Shown):
    """A link: the part of the target that comes from the source, by the ids of the nodes."""

    source: int
    target: int
    weight: float


@dataclass(frozen=True)
class ViewerGraph(Tabular):
    """A published graph, from `load_viewer_graph` or `read_viewer_graph`."""

    prompt: list[str]
    """The text of each token."""
    nodes: list[ViewerNode]
    edges: list[ViewerLink] = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    """As in the file."""
    view: dict[str, Any] = field(repr=False)
    """The saved view, `qParams`, as in the file."""
    pinned: list[int] = field(default_factory=list)
    """Ids of the nodes that the saved view pins."""
    supernodes: list[tuple[str, list[int]]] = field(default_factory=list)
    """Groups of nodes that the saved view joins: a name, and ids of nodes."""
    others: dict[str, Any] = field(default_factory=dict, repr=False)
    """What else the file holds."""
    left_out: int = 0
    """Links of the file that name a node it does not have; viewers leave them out too."""

    @property
    def model(self) -> str:
        """What the file calls the model, or the model with its transcoders."""
        return self.metadata["scan"]

    @property
    def targets(self) -> Rows[ViewerNode]:
        """The logits, the likeliest first."""
        targets = (node for node in self.nodes if node.kind == "target")
        return Rows(sorted(targets, key=lambda node: -(node.value or 0.0)))

    @checked(AttributionError)
    def node(self, id: Integer) -> ViewerNode:
        """The node of this id; raises `AttributionError` if the graph has none."""
        if id not in self._by_id:
            raise AttributionError(f"The graph has no node {id}.")
        return self._by_id[id]

    @cached_property
    def _by_id(self) -> dict[int, ViewerNode]:
        return {node.id: node for node in self.nodes}

    def __len__(self) -> int:
        return len(self.nodes)

    @checked(AttributionError)
    def prune(
        self,
        share: PositiveShare = 0.8,
        edges: PositiveShare = 0.95,
        *,
        keep: Collection[Integer] = (),
        kinds: Collection[ViewerKind] = VIEWER_KINDS,
    ) -> ViewerGraph:
        """The graph of the logits and of the most influential nodes and links; arguments as in `Graph.prune`.

        Raises:
            AttributionError: a share that is not above 0 and up to 1, or an unknown kind.
        """
        sizes = {node.id: node.influence for node in self.nodes if node.kind in kinds and node.kind != "target"}
        logits = {node.id for node in self.nodes if node.kind == "target"}
        kept = logits | {id for id in keep if id in self._by_id} | heaviest(sizes, share)
        total: dict[int, float] = {}
        for edge in self.edges:
            total[edge.target] = total.get(edge.target, 0.0) + abs(edge.weight)
        flows = {
            place: self._by_id[edge.target].influence * abs(edge.weight) / (total[edge.target] or 1.0)
            for place, edge in enumerate(self.edges)
            if edge.source in kept and edge.target in kept
        }
        strong = heaviest(flows, edges)
        links = [edge for place, edge in enumerate(self.edges) if place in strong]
        reached = self._reaching(links, logits) | {id for id in keep if id in self._by_id}
        return replace(
            self,
            nodes=[node for node in self.nodes if node.id in reached],
            edges=[edge for edge in links if edge.target in reached and edge.source in reached],
        )

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each node."""
        return map(record_of, self.nodes)

    def figure(self) -> Figure:
        """The graph over positions and layers."""
        from workbench.figures.attribution import attribution_graph

        return attribution_graph(self)

    def _facts(self) -> Mapping[str, object]:
        return {
            "prompt": "".join(self.prompt),
            "model": self.model,
            "nodes": len(self.nodes),
            "edges": len(self.edges),
            "pinned": len(self.pinned),
        }

    def to_dict(self) -> dict[str, Any]:
        """The same in the published form, with everything that the file held for the nodes that are left."""
        names = {node.id: node.name for node in self.nodes}
        links = [{"source": names[one.source], "target": names[one.target], "weight": one.weight} for one in self.edges]
        nodes = [node.content for node in self.nodes]
        return {**self.others, "metadata": self.metadata, "qParams": self.view, "nodes": nodes, "links": links}

    @staticmethod
    def _reaching(links: Sequence[ViewerLink], ends: set[int]) -> set[int]:
        """The nodes from which links lead to one of `ends`, and these."""
        sources: dict[int, list[int]] = {}
        for link in links:
            sources.setdefault(link.target, []).append(link.source)
        reached, waiting = set(ends), [*ends]
        while waiting:
            for source in sources.get(waiting.pop(), ()):
                if source not in reached:
                    reached.add(source)
                    waiting.append(source)
        return reached


def with_influences(nodes: Sequence[ViewerNode], links: Sequence[ViewerLink]) -> list[ViewerNode]:
    """The nodes with their influence: absolute weights, normed to a sum of 1 for each target, along all paths.

    The influence starts at the logits with their probabilities, which are normed to a sum of 1; where the nodes state
    none, each logit counts alike.

    Raises:
        AttributionError: the links lead in a circle.
    """
    into: dict[int, list[ViewerLink]] = {}
    readers = {node.id: 0 for node in nodes}
    for link in links:
        into.setdefault(link.target, []).append(link)
        readers[link.source] += 1
    chances = {node.id: node.value or 0.0 for node in nodes if node.kind == "target"}
    whole = sum(chances.values())
    influence = {node.id: 0.0 for node in nodes}
    for id, chance in chances.items():
        influence[id] = chance / whole if whole > 0 else 1 / len(chances)
    ready, done = [id for id, count in readers.items() if count == 0], 0
    while ready:
        target = ready.pop()
        done += 1
        total = sum(abs(link.weight) for link in into.get(target, ()))
        for link in into.get(target, ()):
            if total > 0:
                influence[link.source] += influence[target] * abs(link.weight) / total
            readers[link.source] -= 1
            if readers[link.source] == 0:
                ready.append(link.source)
    if done < len(readers):
        raise AttributionError("its links lead in a circle, so no node comes before another")
    return [replace(node, influence=influence[node.id]) for node in nodes]
