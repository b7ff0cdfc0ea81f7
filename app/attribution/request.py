"""What is asked of an attribution graph, and how its nodes are called; for the components of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared import dictionaries
from shared.dictionaries import Known

from workbench.figures.common import visible

if TYPE_CHECKING:
    from workbench.attribution import Graph
    from workbench.attribution.graph import Node
    from workbench.model import LanguageModel

CHART, NODE, PINS, MEASURED = "attribution chart", "attribution node", "attribution pins", "attribution measured"
"""Where the session keeps the picture, the open node, the pinned ones, and what was measured of them."""


@dataclass(frozen=True)
class AttributionRequest:
    """All that a graph depends on."""

    source: str
    names: tuple[str, ...]
    folders: tuple[str, ...]
    prompt: str
    token: str
    """The token to explain; the likeliest if empty."""
    other: str
    """The token whose logit is taken off; none if empty."""
    latents: int
    mlps: str
    stamp: str
    """Changes when the model or a dictionary does."""

    @property
    def key(self) -> tuple[str, ...]:
        """Names the tracing."""
        settings = (self.prompt, self.token, self.other, str(self.latents), self.mlps)
        return ("attribution", self.source, *self.folders, *settings, self.stamp)

    @property
    def target(self) -> Any:
        """As `attribute` takes it."""
        if self.other:
            return (self.token, self.other)
        return self.token or None


@dataclass(frozen=True)
class AttributionOutcome:
    """What came of it."""

    graph: Graph
    completeness: float
    """Largest relative error of the sums of the whole graph."""
    traced: int


def transcoders(model: LanguageModel) -> dict[str, Known]:
    """The transcoders that fit the model, by name."""
    return {
        one.name: one
        for one in dictionaries.fitting(model)
        if "transcoder" in one.kind and one.writes.endswith("hook_mlp_out")
    }


def load(model: LanguageModel, request: AttributionRequest) -> list[Any]:
    """The transcoders themselves."""
    return [dictionaries.load(model, dictionaries.called(model, folder)) for folder in request.folders]


def named(graph: Graph, node: Node, words: str = "") -> str:
    """A node in a line."""
    where = "" if node.position < 0 else f" on {visible(graph.prompt[node.position])} ({node.position})"
    return f"{visible(node.label)}{where}" + (f": {words}" if words else "")
