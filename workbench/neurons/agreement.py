"""How far the neurons of two models have the same top tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from workbench.core.checks import checked
from workbench.core.display import Tabular, columns
from workbench.neurons.table import NeuronError, NeuronTable


@dataclass(frozen=True)
class Agreement(Tabular):
    """The agreement of two models' neurons in their top tokens."""

    top_token: float
    """Share of neurons whose top token is the same in both."""
    overlap: float
    """Mean share of the top-k tokens that both have."""
    by_layer: list[float]
    """`top_token` within each layer."""

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each layer."""
        return columns(layer=range(len(self.by_layer)), top_token=self.by_layer)

    def _facts(self) -> Mapping[str, object]:
        return {"top_token": self.top_token, "overlap": self.overlap}

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@checked(NeuronError)
def compare_decodings(one: NeuronTable, other: NeuronTable) -> Agreement:
    """The agreement of two models' neurons; Davies (2025) finds the same top token in 75.4% of base and instruct.

    Raises:
        NeuronError: the tables have different sizes or vocabularies.
    """
    if one.tokens.shape[1] != other.tokens.shape[1] or one.d_mlp != other.d_mlp:
        raise NeuronError("The two models have different numbers of neurons; only models of one architecture compare.")
    if one.vocabulary != other.vocabulary:
        raise NeuronError("The two models have different vocabularies, so their neurons' tokens can't be compared.")
    same = one.tokens[0, :, 0] == other.tokens[0, :, 0]
    k = min(one.top_k, other.top_k)
    both = (one.tokens[0, :, :k, None] == other.tokens[0, :, None, :k]).any(-1)
    return Agreement(float(same.mean()), float(both.mean()), same.reshape(-1, one.d_mlp).mean(1).tolist())
