"""What a comparison of two models returns: findings, and the measures behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.core.display import Shown, Tabular

if TYPE_CHECKING:
    import pandas as pd

    from workbench.figures.common import Figure


@dataclass(frozen=True)
class Difference(Shown):
    """One difference of two models."""

    kind: str
    """One of "texts", "stream", "graft", "weights", "rank", "head", "neuron", "decoding", "latent", "dictionary" and
    "edit"."""
    sentence: str
    """What differs, with its number."""
    number: float
    call: str
    """Python that measures it, where `a` and `b` are the models and `wb` the package."""
    feature: str = ""
    """The feature that it is about; empty for other findings."""

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain data."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"<Difference: {self.sentence}>"


@dataclass(frozen=True)
class Passage(Shown):
    """Where two models part, in context."""

    before: str
    """The text in front of the predicted token."""
    token: str
    """The token that stands there."""
    likeliest: tuple[str, str]
    """The likeliest token of either model."""
    kl: float
    """KL(a ‖ b) of the prediction, in nats."""
    losses: tuple[float, float]
    """The loss of either model on the token, in nats."""


@dataclass(frozen=True)
class TextDifferences(Shown):
    """How the predictions of two models differ on texts."""

    kl: float
    """KL(a ‖ b) by token, in nats."""
    kl_interval: tuple[float, float]
    """Its 95% interval over texts."""
    losses: tuple[float, float]
    """Cross-entropy by token of a and of b, in nats."""
    same_top: float
    """Share of the tokens for which both have the same likeliest one."""
    predictions: int
    passages: list[Passage]
    """Where they part most, one of a window."""


@dataclass(frozen=True)
class LayerDifference(Shown):
    """How the residual stream behind a layer differs."""

    layer: int
    cosine: float
    """Mean over tokens."""
    distance: float
    """Norm of the difference over the norm in a, mean over tokens."""


@dataclass(frozen=True)
class Graft(Shown):
    """What a part of b does in a."""

    part: str
    """Such as "layer 3", "attention of layer 3", "mlp of layer 3" or "embeddings and head"."""
    layer: int | None
    closed: float
    """By what share KL(b ‖ a) falls where a computes with this part of b."""


@dataclass(frozen=True)
class TensorDifference(Shown):
    """How one tensor of the weights changed."""

    name: str
    relative: float
    """Norm of the change over the norm in a."""
    rank: int | None = None
    """Directions of the change above rounding; None for a vector."""
    directions: int | None = None
    """The fewest directions with 90% of its squared norm."""
    full: int | None = None
    """The smaller side of the matrix."""


@dataclass(frozen=True)
class UnitDifference(Shown):
    """How the weights of a head or a neuron changed."""

    name: str
    """`layer.head`, or a feature such as `neurons.3.up:17`."""
    layer: int
    relative: float
    """Norm of the change over the norm in a."""


@dataclass(frozen=True)
class WeightDifferences(Shown):
    """How the weights of two models of one shape differ."""

    tensors: list[TensorDifference]
    """Those that differ, the most changed first."""
    equal: int
    """Number of those that do not."""
    heads: list[UnitDifference]
    neurons: list[UnitDifference]


@dataclass(frozen=True)
class DecodingDifference(Shown):
    """How far neurons keep the top token that the LM head reads in them."""

    kept: float
    """Share of the changed neurons with the same top token in b."""
    kept_control: float
    """The same share under a random change of each neuron's vector of the same norm."""
    neurons: int
    changed: list[tuple[str, str, str]]
    """Neurons with another top token: feature, top token in a, in b."""


@dataclass(frozen=True)
class LatentDifference(Shown):
    """A latent that fires more or less often in b."""

    feature: str
    rate: float
    """Share of tokens on which it fires in a."""
    rate_b: float
    z: float
    """The difference over its standard error, if tokens were independent."""


@dataclass(frozen=True)
class DictionaryDifference(Shown):
    """How a dictionary of a does on b."""

    name: str
    unexplained: float
    """Share of the variance of a's activations that it does not explain."""
    unexplained_b: float
    latents: list[LatentDifference]


@dataclass(frozen=True)
class EditDifference(Shown):
    """What an intervention does in both models."""

    name: str
    effect: float
    """KL(plain ‖ edited) by token in a, in nats."""
    effect_b: float


@dataclass(eq=False, repr=False)
class ModelDifferences(Tabular):
    """How two models differ; `wb.differences.compare_models` returns one. A sequence of findings."""

    a: str
    b: str
    findings: list[Difference]
    texts: TextDifferences | None = None
    stream: list[LayerDifference] = field(default_factory=list)
    grafts: list[Graft] = field(default_factory=list)
    weights: WeightDifferences | None = None
    decoding: DecodingDifference | None = None
    dictionaries: list[DictionaryDifference] = field(default_factory=list)
    edits: list[EditDifference] = field(default_factory=list)
    answers: list[tuple[str, str, str]] = field(default_factory=list)
    """Prompt, what a writes, what b writes."""
    notes: list[str] = field(default_factory=list)
    """What could not be compared, a sentence each."""

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each finding."""
        for one in self.findings:
            yield {"kind": one.kind, "sentence": one.sentence, "number": one.number, "call": one.call}

    def to_pandas(self) -> pd.DataFrame:
        """A row for each finding; without findings a table without rows."""
        import pandas as pd

        return pd.DataFrame(list(self.records()), columns=["kind", "sentence", "number", "call"])

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, place: int) -> Difference:
        return self.findings[place]

    def figure(self) -> Figure:
        """The distance of the streams behind each layer, and what grafts close."""
        from workbench.figures.differences import layers_figure

        grafts = [(one.part, one.layer, one.closed) for one in self.grafts if one.layer is not None]
        return layers_figure([(one.layer, one.distance) for one in self.stream], grafts)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data."""
        lists = ("stream", "grafts", "dictionaries", "edits", "findings")
        single = ("texts", "weights", "decoding")
        return (
            {"a": self.a, "b": self.b, "answers": self.answers, "notes": self.notes}
            | {name: [asdict(one) for one in getattr(self, name)] for name in lists}
            | {name: None if getattr(self, name) is None else asdict(getattr(self, name)) for name in single}
        )

    def __repr__(self) -> str:
        return f"<ModelDifferences of {self.a[:80]} and {self.b[:80]}: {len(self.findings)} findings>"
