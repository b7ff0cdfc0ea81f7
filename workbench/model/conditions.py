"""Conditions: edits that act only where the model's own activations say so.

A `Condition` stands among the edits of a run, changes nothing, and notes at which positions it holds. A `Gated` rule
takes the place of an edit's positions and selects those of them that the condition lets through. Whether it does at a
position depends on that position and earlier ones only, so that a run with the cache, one without, one in chunks and
one that goes back to an earlier position select the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from workbench.model.positions import EditError, Positions

Scope = Literal["token", "onwards", "prompt"]
"""Where a condition lets an edit act: `token`: where it holds; `onwards`: from the first position on at which it holds;
`prompt`: the same, but generated tokens don't count, so that the prompt decides."""


@dataclass(frozen=True)
class Condition:
    """What notes, in a run, where a condition holds; it stands in front of the edits that it lets through."""

    hook_point: str
    """Where it reads."""
    holds: Callable[[Tensor], Tensor] = field(repr=False)
    """From the tensor `[batch, pos, *shape]` to where it holds, bool `[batch, pos]`."""
    key: Hashable
    """What a run remembers it by; equal for the same condition of the same list of interventions."""
    scope: Scope
    source: str = ""
    """The intervention that it belongs to, for error messages."""
    standing: bool = False
    positions: ClassVar[Positions] = "all"
    reads_only: ClassVar[bool] = True

    @property
    def parts(self) -> Sequence[Condition]:
        """The condition itself."""
        return (self,)


@dataclass(frozen=True)
class Gated:
    """A rule of positions: those of `positions` that a condition lets through."""

    positions: Positions
    condition: Condition

    def __repr__(self) -> str:
        return f"{self.positions!r} when {self.condition.key!r}"


Rule = Positions | Gated
"""Where a part of an edit acts."""


def ungated(rule: Rule) -> Positions:
    """The positions of a rule, whatever its condition."""
    return rule.positions if isinstance(rule, Gated) else rule


class ConditionMemory:
    """What a run knows of its conditions: where each held, by row and absolute position."""

    def __init__(self) -> None:
        self.held: dict[Hashable, Tensor] = {}  # int8 [batch, positions]: 1 held, 0 did not, -1 not read
        self.now: dict[tuple[Hashable, int | None], Tensor] = {}  # of this pass, by key and first row: bool [rows, pos]

    def enter(self) -> None:
        """Forget what this pass has read; what earlier ones held stays."""
        if self.now:
            self.now = {}

    def continued(self, rows: list[int]) -> ConditionMemory:
        """The memory of a run whose row i continues row `rows[i]`."""
        twin = ConditionMemory()
        twin.held = {key: held[rows] for key, held in self.held.items()}
        return twin

    @torch.no_grad()
    def note(
        self, condition: Condition, value: Tensor, rows: slice, positions: Tensor, prompt_lengths: Tensor | None
    ) -> None:
        """Take in the tensor `[rows, pos, *shape]` at a condition's hook point.

        Args:
            condition: what reads it.
            value: the tensor of the condition's rows.
            rows: which of the batch.
            positions: absolute positions of the whole batch, `[batch, pos]`; -1 is padding.
            prompt_lengths: tokens before the first generated one, `[batch]`; None where all are of the prompt.

        Raises:
            EditError: earlier positions of the text were run before the condition was there.
        """
        here = positions[rows]
        holds = condition.holds(value).to(here.device) & (here >= 0)
        if condition.scope == "prompt" and prompt_lengths is not None:
            holds = holds & (here < prompt_lengths[rows][:, None])
        if condition.scope == "token":
            self.now[condition.key, rows.start] = holds
            return
        held = self._noted(condition, holds, rows, positions)
        first = torch.where((held == 1).any(1), (held == 1).int().argmax(1), 1 << 40)
        self.now[condition.key, rows.start] = (here >= first[:, None]) & (here >= 0)

    def _noted(self, condition: Condition, holds: Tensor, rows: slice, positions: Tensor) -> Tensor:
        """Where a condition has held in its rows up to the end of this pass, `[rows, positions]`."""
        here, needed = positions[rows], int(positions.max()) + 1
        held = self.held.get(condition.key)
        if held is None or held.shape[1] < needed:
            longer = positions.new_full((len(positions), needed), -1, dtype=torch.int8)
            if held is not None:
                longer[:, : held.shape[1]] = held
            held = self.held[condition.key] = longer
        own = held[rows]
        row, place = (here >= 0).nonzero(as_tuple=True)
        own[row, here[row, place]] = holds[row, place].to(torch.int8)
        start = torch.where(here >= 0, here, 1 << 40).amin(1)
        before = torch.arange(held.shape[1], device=here.device) < start[:, None]
        if bool(((own == -1) & before & (start < 1 << 40)[:, None]).any()):
            raise EditError(
                f"{condition.source} depends on earlier tokens, which were run without its condition; run the whole "
                "text under it."
            )
        return own

    def mask(self, rule: Gated, rows: slice) -> Tensor:
        """Where the condition of a rule lets an edit act in this pass, bool `[rows, pos]`.

        Raises:
            EditError: the model has not come to the condition's hook point yet.
        """
        found = self.now.get((rule.condition.key, rows.start))
        if found is None:
            raise EditError(
                f"{rule.condition.source} acts before its condition is known: the model computes "
                f"{rule.condition.hook_point}, where the condition reads, later; let it read at an earlier hook point."
            )
        return found
