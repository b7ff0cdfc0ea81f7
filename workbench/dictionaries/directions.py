"""Directions: vectors at one hook point, each of which is a feature; its value is how much of the vector is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from workbench.core.checks import Floats, checked
from workbench.core.precision import in_float64
from workbench.dictionaries.codes import Codes, check_activations, check_codes
from workbench.dictionaries.folder import OWN, DictionaryError, check_fit
from workbench.dictionaries.protocol import Dictionary

SHORTEST = 1e-15
"""Lengths of directions lie above it, and below its inverse."""


class Directions(Dictionary):
    """Vectors at a hook point, such as a steering vector found from examples.

    A feature's value is the projection onto its vector in units of the vector's length, `x @ v / |v|²`: adding one unit
    of the feature adds the vector. Vectors that are not orthogonal share what they have in common.

    Args:
        vectors: `[n, d]`, none of them zero.
        hook_point: where they are read and written.
        name: the name in feature ids.

    Raises:
        DictionaryError: vectors of another shape, or one that is zero, far too short or long, or not finite.
    """

    kind = "directions"
    noun = "direction"

    @checked(DictionaryError)
    def __init__(self, vectors: Floats, hook_point: str = "", name: str = ""):
        super().__init__(name)
        if vectors.ndim != 2 or not len(vectors):
            raise DictionaryError(f"Directions are vectors in the rows of [n, d], not a tensor {list(vectors.shape)}.")
        if not bool(vectors.isfinite().all() and vectors.any(1).all()):
            raise DictionaryError("A direction is zero or holds values that are not finite, so nothing lies along it.")
        lengths = in_float64(vectors.detach()).norm(dim=1)
        if not bool(((lengths > SHORTEST) & (lengths < 1 / SHORTEST)).all()):
            raise DictionaryError(
                f"A direction is shorter than {SHORTEST:g} or longer than {1 / SHORTEST:g}, so that float32 can't hold "
                "its squared length; scale it."
            )
        self.n_features, self.d_in = vectors.shape
        self.d_out = self.d_in
        self.reads = self.writes = hook_point
        self.vectors = nn.Parameter(vectors.detach().clone().float(), requires_grad=False)

    @classmethod
    def example(cls) -> Self:
        """Four vectors of eight values."""
        return cls(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), "blocks.0.hook_resid_post")

    def encode(self, x: Tensor) -> Codes:
        """Every direction with its value, of either sign: `[..., n]`."""
        check_activations(x, self.d_in, self.name, self.vectors.device)
        scaled = self.vectors / self.vectors.square().sum(1, keepdim=True)
        values = x.to(scaled.dtype) @ scaled.T
        return Codes(values, torch.arange(self.n_features, device=x.device).expand(values.shape), self.n_features)

    def decode(self, codes: Codes) -> Tensor:
        """The sum of the vectors times their values: `[..., d]`."""
        check_codes(codes, self.n_features, self.name, self.vectors.device)
        return codes.dense() @ self.vectors

    def direction(self, index: int) -> Tensor:
        """The vector: `[d]`."""
        self.check(index)
        return self.vectors[index]

    def config(self) -> dict[str, Any]:
        """Sizes and hook point."""
        return {
            "architecture": self.kind,
            "d_in": self.d_in,
            "d_sae": self.n_features,
            "metadata": {"hook_name": self.reads},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `config()` and `tensors()`."""
        size = (config.get("d_sae"), config.get("d_in"))
        if not all(type(one) is int and one > 0 for one in size):
            raise DictionaryError("its cfg.json states no sizes d_in and d_sae")
        check_fit({"vectors": torch.empty(size, device="meta")}, tensors)  # type: ignore[arg-type]
        own = config.get(OWN) or {}
        made = cls(tensors["vectors"], str(own.get("reads", "")))
        if tensors["vectors"].dtype == made.vectors.dtype:  # mapped, as the file has them
            made.vectors = nn.Parameter(tensors["vectors"], requires_grad=False)
        return made
