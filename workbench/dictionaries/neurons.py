"""MLP neurons: the dictionary that every model has, whose features are the coordinates of a hook point themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from workbench.dictionaries.codes import Change, Codes, Rewrite, everywhere
from workbench.dictionaries.protocol import Dictionary
from workbench.model.edits import Masks

SITES = ("gate", "up", "post")
"""The sites at which a model can have neurons; it has no `gate` where its MLP is not gated."""
_NAME = re.compile(r"neurons\.(0|[1-9][0-9]{0,8})\.([^.]+)")


def layer_and_site(name: str) -> tuple[int, str] | None:
    """What the name of a layer's neurons states, `neurons.29.gate`; None for another name."""
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[1]), match[2])


class Neurons(Dictionary):
    """The neurons of one layer at one site of its MLP: `gate` or `up` (a projection's output) or `post`.

    Args:
        name: `neurons.{layer}.{site}`.
        hook_point: where the values live; reads and writes are the same place.
        width: number of neurons, d_mlp.
    """

    kind = "neurons"
    noun = "neuron"
    of_model = True
    dense = True

    def __init__(self, name: str, hook_point: str, width: int):
        super().__init__(name)
        self.reads = self.writes = hook_point
        self.d_in = self.d_out = self.n_features = width

    @property
    def mlp_site(self) -> tuple[int, str]:
        """Layer and site, from the name."""
        found = layer_and_site(self.name)
        assert found is not None
        return found

    @classmethod
    def example(cls) -> Self:
        """Eight neurons."""
        return cls("neurons.0.post", "blocks.0.mlp.hook_post", 8)

    def encode(self, x: Tensor) -> Codes:
        """Every neuron with its value: `[..., width]`."""
        return Codes(x, torch.arange(self.n_features, device=x.device).expand(x.shape), self.n_features)

    def decode(self, codes: Codes) -> Tensor:
        """The values at their places: `[..., width]`."""
        return codes.dense()

    def direction(self, index: int) -> Tensor:
        """The unit vector of the coordinate: `[width]`."""
        self.check(index)
        return torch.nn.functional.one_hot(torch.tensor(index), self.n_features).float()

    def intervene(
        self, read: Tensor, written: Tensor, changes: Sequence[Change | Rewrite], masks: Masks = everywhere
    ) -> Tensor:
        """Plain assignment, exact to the bit: `[..., width]`."""
        written = written.clone()
        for change in changes:
            assert isinstance(change, Change)  # neurons have no codes to rewrite: `force` refuses
            written[..., change.index] = change.apply(written[..., change.index], masks)
        return written
