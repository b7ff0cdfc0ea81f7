"""The forms of saved graphs: format 3 is written, formats 1 to 3 are read.

Format 1 names two keys otherwise: a node's `free_effect` is `gradient_effect` since format 2, and the graph's `made` is
`provenance`. Formats 1 and 2 list each edge as an object; format 3 keeps those into a row as lists.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from annotated_types import Ge, Le, Len, Lt
from typing_extensions import TypedDict

from workbench.attribution.graph import Kind
from workbench.core.checks import Natural, Number

Layer = Annotated[int, Ge(-1), Lt(2**31)]
TokenId = Annotated[int, Ge(0), Lt(2**31)]


class _AnyNode(TypedDict):
    id: int
    kind: Kind
    layer: Layer
    position: Layer
    value: Number
    feature: str | None
    label: str
    influence: Number
    effect: Number


class SavedNode(_AnyNode):
    """A node since format 2."""

    gradient_effect: Number


class SavedNode1(_AnyNode):
    """A node in format 1."""

    free_effect: Number


class SavedRow2(TypedDict):
    """A node whose sources were traced, in formats 1 and 2."""

    node: int
    scale: Number
    read: Number


class SavedRow(SavedRow2):
    """A node whose sources were traced, with the edges into it."""

    sources: list[int]
    """Ids of nodes."""
    weights: list[Number]
    invariants: list[Number | None]


class SavedEdge(TypedDict):
    """An edge by the ids of its nodes, in formats 1 and 2."""

    source: int
    target: int
    weight: Number
    factor: Number
    invariant: Number | None
    scale: Number


class SavedTranscoder(TypedDict):
    """A transcoder that the graph was computed with."""

    name: str
    hash: str


class SavedPruning(TypedDict):
    """Arguments of `Graph.prune`."""

    share: Number
    edges: Number
    kinds: list[Kind]


class SavedLikeliest(TypedDict):
    """The token that the model finds likeliest where the target is read."""

    token: TokenId
    text: str
    probability: Annotated[Number, Ge(0), Le(1)]


class SavedProvenance(TypedDict):
    """Model, transcoders and settings of a graph."""

    model: str
    model_hash: str
    transcoders: list[SavedTranscoder]
    target_tokens: list[TokenId]
    target_probabilities: NotRequired[list[Annotated[Number, Ge(0), Le(1)]]]
    likeliest: NotRequired[SavedLikeliest]
    mlps: Literal["linear", "frozen"]
    first: Natural
    max_latents: Natural
    rest: Annotated[Number, Ge(0), Lt(1)]
    pruned: NotRequired[SavedPruning]
    supernodes: NotRequired[dict[Annotated[str, Len(1, 200)], list[Natural]]]


class _AnyGraph(TypedDict):
    prompt: list[str]
    tokens: list[TokenId]
    shares: dict[str, Number]
    counts: dict[str, Natural]
    sha256: NotRequired[str]


class SavedGraph(_AnyGraph):
    """A graph in format 3."""

    format: Literal[3]
    nodes: list[SavedNode]
    rows: list[SavedRow]
    provenance: SavedProvenance


class SavedGraph2(_AnyGraph):
    """A graph in format 2."""

    format: Literal[2]
    nodes: list[SavedNode]
    rows: list[SavedRow2]
    edges: list[SavedEdge]
    provenance: SavedProvenance


class SavedGraph1(_AnyGraph):
    """A graph in format 1."""

    format: Literal[1]
    nodes: list[SavedNode1]
    rows: list[SavedRow2]
    edges: list[SavedEdge]
    made: SavedProvenance


_KEYS = SavedGraph2.__annotations__.keys() - {"sha256"}
FORMER = (
    SavedGraph.__annotations__.keys(),
    SavedGraph.__annotations__.keys() - {"sha256"},
    SavedGraph2.__annotations__.keys(),
    _KEYS,
    (_KEYS - {"provenance"}) | {"made"},
)
"""The outermost keys of files, in all formats, with and without a seal."""
