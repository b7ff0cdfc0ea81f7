"""The request for an attribution graph, its outcome, and the names of its nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared import dictionaries
from shared.dictionaries import Known

from workbench.core.text import visible

if TYPE_CHECKING:
    from workbench.attribution import Graph, ViewerGraph, ViewerNode
    from workbench.attribution.graph import Node
    from workbench.model import LanguageModel

CHART, NODE, PINS, MEASURED = "attribution chart", "attribution node", "attribution pins", "attribution measured"
"""Keys of the session: the figure, the open node, the pinned nodes, and their verification."""


@dataclass(frozen=True)
class AttributionRequest:
    """Everything that a graph depends on."""

    source: str
    names: tuple[str, ...]
    folders: tuple[str, ...]
    prompt: str
    token: str
    """The token to explain; the likeliest if empty."""
    other: str
    """The token whose logit is subtracted; none if empty."""
    latents: int
    mlps: str
    stamp: str
    """Changes when the model or a dictionary does."""

    @property
    def key(self) -> tuple[str, ...]:
        """The key of the tracing's task."""
        settings = (self.prompt, self.token, self.other, str(self.latents), self.mlps)
        return ("attribution", self.source, *self.folders, *settings, self.stamp)

    @property
    def target(self) -> Any:
        """The argument `target` of `attribute`."""
        if self.other:
            return (self.token, self.other)
        return self.token or None


@dataclass(frozen=True)
class AttributionOutcome:
    """A traced graph with its accuracy."""

    graph: Graph
    completeness: float
    """Largest relative error of the sums of the whole graph."""
    traced: int
    """Number of nodes whose sources are in the graph, besides the target."""


def transcoders(model: LanguageModel) -> dict[str, Known]:
    """The transcoders that fit the model, by name."""
    return {
        one.name: one
        for one in dictionaries.fitting(model)
        if one.family.transcodes and one.writes.endswith((".hook_mlp_out", ".mlp.hook_out"))
    }


def load(model: LanguageModel, request: AttributionRequest) -> list[Any]:
    """The loaded transcoders of a request."""
    return [dictionaries.load(model, dictionaries.called(model, folder)) for folder in request.folders]


def named(graph: Graph | ViewerGraph, node: Node | ViewerNode, words: str = "") -> str:
    """A node's label, token and position in a line."""
    where = "" if node.position < 0 else f" on {visible(graph.prompt[node.position])} ({node.position})"
    return f"{visible(node.label)}{where}" + (f": {words}" if words else "")
