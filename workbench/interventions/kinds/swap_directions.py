"""SwapDirections: the coordinates of the stream along two directions change places.

Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models",
transformer-circuits.pub/2026/workspace: patching in lens coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from workbench.core.arguments import Argument
from workbench.core.precision import float64_device, in_float64
from workbench.interventions.affine import AffineChange, NotAffineError
from workbench.interventions.protocol import InterventionKind
from workbench.model.edits import BoundEdit, Edit, EditError, Positions
from workbench.model.hookpoints import HookPoint
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan
from workbench.model.positions import as_positions

PARALLEL = 1e-6
"""The least sine of the angle between two directions that have coordinates of their own."""


@dataclass(frozen=True)
class SwapDirections(InterventionKind):
    """Exchange the coordinates along two directions: `x + amount V (swapped(c) - c)`.

    The directions are the columns of V, and `c = pinv(V) x` are the coordinates of the point of their plane that is
    nearest to x. What lies outside of the plane stays. An amount of 1 twice changes nothing.
    """

    title: ClassVar[str] = "Swap two directions"
    about: ClassVar[str] = "The coordinates along two directions change places."
    arguments: ClassVar[tuple[Argument, ...]] = (
        Argument("hook_point", "Hook point", "blocks.0.hook_resid_post", "text"),
        Argument("first", "First direction", (), "direction"),
        Argument("second", "Second direction", (), "direction"),
        Argument("amount", "Amount", 1.0, neutral=0.0, reach=4.0, step=0.25),
    )

    hook_point: str
    first: tuple[float, ...] = field(repr=False)
    """As wide as the hook point, heads one after another."""
    second: tuple[float, ...] = field(repr=False)
    amount: float = 1.0
    positions: Positions = field(default="all", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", as_positions(self.positions))
        super().__post_init__()
        if len(self.first) != len(self.second):
            raise EditError(
                f"The directions to swap have {len(self.first):,} and {len(self.second):,} values; both are as wide as "
                "the hook point."
            )
        lengths = torch.linalg.svdvals(_units(self.first, self.second, "cpu"))
        if not float(lengths.min()) > PARALLEL:
            raise EditError("The directions to swap lie along one line, or one is zero, so they have no coordinates.")

    @classmethod
    def example(cls, model: LanguageModel) -> Self:
        """Of two fixed directions in what an MLP writes."""
        angles = torch.arange(1.0, model.network.d_model + 1)
        return cls("blocks.0.hook_mlp_out", angles.sin(), angles.cos())  # type: ignore[arg-type]

    def edits(self, model: LanguageModel, plan: Plan) -> Sequence[BoundEdit]:
        """Fresh edits for one run: one, or none for an amount of 0."""
        point = self._point(model)
        plan.close(point.key)
        if self.amount == 0:
            return []
        across, reader = self._rank_one(float64_device(model.device))

        def swap(x: Tensor) -> Tensor:
            exact = in_float64(x).flatten(x.ndim - len(point.shape))
            change = (exact @ reader.to(exact))[..., None] * across.to(exact)
            return (exact + change).to(x.dtype).to(x.device).view_as(x)

        return [Edit(point.name, swap, self.positions, str(self))]

    def affine_changes(self, model: LanguageModel) -> list[tuple[str, AffineChange]]:
        """One addition of rank one."""
        if self.positions != "all":
            raise NotAffineError("it acts at some positions only, which weights can't tell apart")
        return [(self._point(model).name, RankOne(*self._rank_one("cpu")))] if self.amount else []

    def _rank_one(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """u and r, `[d]` in float64, of the change `u (r · x)`."""
        columns = torch.tensor([self.first, self.second], dtype=torch.float64, device=device).T
        lengths = columns.norm(dim=0)  # pinv takes a column for 0 beside one that is far longer
        readers = torch.linalg.pinv(columns / lengths) / lengths[:, None]  # [2, d]
        return self.amount * (columns[:, 0] - columns[:, 1]), readers[1] - readers[0]

    def _point(self, model: LanguageModel) -> HookPoint:
        """The hook point; raises `EditError` where it has another width than the directions."""
        point = model.hook_points[self.hook_point]
        if point.width != len(self.first):
            raise EditError(
                f"The directions have {len(self.first):,} values, but {point.name} is {point.width:,} wide."
            )
        return point

    def settings(self) -> dict[str, Any]:
        """The values of its arguments and its positions, ready for JSON."""
        positions = self.positions if isinstance(self.positions, str) else list(self.positions)
        return super().settings() | {"positions": positions}

    def to_python(self, *first: str, when: str = "") -> str:
        """The call that makes it."""
        call = super().to_python(*first, when=when)
        return call if self.positions == "all" else f"{call[:-1]}, positions={self.positions!r})"

    def __str__(self) -> str:
        return f"SwapDirections(at {self.hook_point}, {self.amount:g})"


@dataclass(frozen=True, eq=False)
class RankOne:
    """`x + across (reader · x)`."""

    across: Tensor = field(repr=False)
    """In float64."""
    reader: Tensor = field(repr=False)
    shifts: bool = field(default=False, init=False)

    def behind(self, weight: Tensor, bias: Tensor) -> None:
        """Every column, and the bias."""
        weight.addr_(self.across, self.reader @ weight)
        bias += self.across * (self.reader @ bias)

    def before(self, weight: Tensor, bias: Tensor) -> None:
        """Every row."""
        weight.addr_(weight @ self.across, self.reader)


def _units(first: Sequence[float], second: Sequence[float], device: torch.device | str) -> Tensor:
    """Two vectors of length 1, or 0, as columns `[d, 2]` in float64."""
    return torch.nn.functional.normalize(torch.tensor([first, second], dtype=torch.float64, device=device), dim=1).T
