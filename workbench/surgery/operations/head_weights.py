"""The matrices of an attention by heads: joined, averaged, or with heads that hold the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.core.precision import float64_device, in_float64


@dataclass(frozen=True)
class HeadShape:
    """Numbers of heads, and their width."""

    queries: int
    old: int
    new: int
    width: int

    @property
    def joined(self) -> int:
        """Old key and value heads that become one."""
        return self.old // self.new


@dataclass(frozen=True)
class Alike:
    """How the heads of each group follow from the group's first.

    Attributes:
        turns: of keys, `[new, joined, width / 2]` complex.
        mixes: of values, `[new, joined, width, width]`.
    """

    turns: Tensor
    mixes: Tensor

    @classmethod
    def equal(cls, s: HeadShape) -> Alike:
        """All heads are the first."""
        eye = torch.eye(s.width, dtype=torch.float64).expand(s.new, s.joined, s.width, s.width)
        return cls(torch.ones(s.new, s.joined, s.width // 2, dtype=torch.complex128), eye)

    @classmethod
    def drawn(cls, s: HeadShape, chance: torch.Generator) -> Alike:
        """Each head is the first one, turned and lengthened in each plane of its keys, with values rotated."""
        size = (s.new, s.joined, s.width // 2)
        lengths = 0.5 + torch.rand(size, generator=chance, dtype=torch.float64)
        angles = 6.3 * torch.rand(size, generator=chance, dtype=torch.float64)
        normal = torch.randn(s.new, s.joined, s.width, s.width, generator=chance, dtype=torch.float64)
        return cls(torch.polar(lengths, angles), torch.linalg.qr(normal).Q)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Second moments of keys and values, as `_covariances` finds them."""
        keys = torch.einsum("gip,gjp->gpij", self.turns, self.turns.conj())
        stacked = self.mixes.flatten(1, 2)
        return keys, stacked @ stacked.transpose(1, 2)


class AttentionWeights:
    """The matrices of one layer's attention, before and after.

    Args:
        module: the plain model that the layer belongs to.
        path: of the attention among its modules.
        shape: of the heads.
    """

    def __init__(self, module: Any, path: str, shape: HeadShape):
        self.path, self.shape = path, shape
        attention = module.get_submodule(path)
        self.parts = {part: getattr(attention, f"{part}_proj") for part in "qkvo"}

    def _heads(self, part: str, name: str) -> Tensor | None:
        """Weights `[heads, width, d_model]` or biases `[heads, width, 1]` of queries, keys or values."""
        value = getattr(self.parts[part], name, None)
        if value is None:
            return None
        return in_float64(value.detach()).view(-1, self.shape.width, value[0].numel())

    def _stored(self, part: str, name: str, value: Tensor) -> dict[str, Tensor]:
        """In float32, whatever the model's type is."""
        flat = value.reshape(-1, value.shape[-1]) if name == "weight" else value.flatten()
        return {f"{self.path}.{part}_proj.{name}": flat.float().contiguous().to(self.parts[part].weight.device)}

    def alike(self, how: Alike, scale: float = 1.0) -> dict[str, Tensor]:
        """All matrices, with keys and values of each group made of the group's first and multiplied with `scale`.

        Queries and the output matrix are divided by it, so that the attention writes the same.
        """
        s, tensors = self.shape, {}
        for name in ("weight", "bias"):
            if (k := self._heads("k", name)) is not None:
                first = as_complex(k[:: s.joined].transpose(1, 2))  # [new, in, width / 2]
                turned = torch.einsum("gjp,gip->gjip", how.turns.to(first.device), first).flatten(0, 1)
                tensors |= self._stored("k", name, scale * _as_real(turned))
            if (q := self._heads("q", name)) is not None:
                tensors |= self._stored("q", name, q / scale)
            if (v := self._heads("v", name)) is not None:
                mixed = how.mixes.to(v.device) @ v[:: s.joined, None]  # [new, joined, width, in]
                tensors |= self._stored("v", name, scale * mixed.flatten(0, 1))
        return tensors | self._stored("o", "weight", in_float64(self.parts["o"].weight.detach()) / scale)

    def averaged(self) -> dict[str, Tensor]:
        """The mean of the keys' and values' weights over each group."""
        tensors = {}
        for part in "kv":
            for name in ("weight", "bias"):
                heads = self._heads(part, name)
                if heads is not None:
                    grouped = heads.unflatten(0, (self.shape.new, self.shape.joined))
                    tensors |= self._stored(part, name, grouped.mean(1))
        return tensors

    def joined(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """All matrices, with keys and values projected on the directions of most variance.

        Args:
            keys: second moments, `[new, width / 2, joined, joined]` complex.
            values: second moments, `[new, joined * width, joined * width]`.
        """
        s = self.shape
        keys, values = (one.to(float64_device(self.parts["o"].weight.device)) for one in (keys, values))
        plane = torch.linalg.eigh(keys).eigenvectors[..., -1]  # [new, width / 2, joined]
        basis = torch.linalg.eigh(values).eigenvectors[..., -s.width :]  # [new, joined * width, width]
        per_query = s.queries // s.old
        tensors = {}
        for name in ("weight", "bias"):
            if (k := self._heads("k", name)) is not None:
                z = as_complex(k.transpose(1, 2)).unflatten(0, (s.new, s.joined))  # [new, joined, in, width / 2]
                tensors |= self._stored("k", name, _as_real(torch.einsum("gpj,gjip->gip", plane.conj(), z)))
            if (q := self._heads("q", name)) is not None:
                z = as_complex(q.transpose(1, 2)).unflatten(0, (s.new, s.joined, per_query))
                turned = torch.einsum("gpj,gjqip->gjqip", plane.conj(), z).flatten(0, 2)
                tensors |= self._stored("q", name, _as_real(turned))
            if (v := self._heads("v", name)) is not None:
                stacked = v.view(s.new, s.joined * s.width, -1)
                tensors |= self._stored("v", name, basis.transpose(1, 2) @ stacked)
        out = in_float64(self.parts["o"].weight.detach())  # [d_model, queries * width]
        heads = out.view(-1, s.new, s.joined, per_query, s.width)
        parts = basis.view(s.new, s.joined, s.width, s.width)  # [new, joined, old width, new width]
        turned = torch.einsum("dgjqa,gjab->dgjqb", heads, parts)
        return tensors | self._stored("o", "weight", turned.reshape(out.shape))


def as_complex(x: Tensor) -> Tensor:
    """Vectors of a head `[..., width]` as complex numbers `[..., width / 2]`, one for each plane that positions rotate.

    Plane j has the coordinates j and j + width / 2.
    """
    real, imaginary = in_float64(x).chunk(2, -1)
    return torch.complex(real, imaginary)


def _as_real(z: Tensor) -> Tensor:
    """The inverse of `as_complex`, for weights: `[heads, in, width / 2]` to `[heads, width, in]`."""
    return torch.cat([z.real, z.imag], -1).transpose(1, 2)
