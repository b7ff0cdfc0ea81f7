"""Edits: at this hook point, at these absolute positions, the tensor becomes f(tensor).

Edits know nothing of features or dictionaries; an intervention (`workbench/interventions/`) names features and binds
itself into fresh edits for one run. The edits of a run live in a context variable, never on the model, so that many
threads can steer one shared model at once.

Positions are absolute: position 0 is the first token of the sequence, whether or not the tokens before the current one
come from the KV cache, and padding has no position. There is no "last position": it differs between a cached and an
uncached run of the same text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from workbench.model.conditions import Condition, ConditionMemory, Gated, Rule, ungated
from workbench.model.plan import Plan
from workbench.model.positions import EditError, Positions


class Masks(Protocol):
    """Which positions of an edit's tensor a rule selects."""

    def __call__(self, rule: Rule) -> Tensor | None:
        """Bool, of the leading shape of the edit's tensor, `[batch, pos]` or `[n]`; None for all of them."""
        ...


class Part(Protocol):
    """What acts at positions of its own: an edit, or one of several changes that share an edit."""

    @property
    def positions(self) -> Rule:
        """Where it acts."""
        ...

    @property
    def source(self) -> str:
        """What it came from, for error messages."""
        ...


@dataclass(frozen=True)
class Edit:
    """One change at one hook point."""

    hook_point: str
    change: Callable[[Tensor], Tensor]
    """Takes the selected part of the tensor, `[..., *shape]`, and returns a tensor of the same size; it must not write
    into its input. To observe only, return the input unchanged (the same object)."""
    positions: Rule = "all"
    source: str = ""
    """The intervention that it comes from, for error messages."""
    standing: bool = False
    """Whether it belongs to the model and not to a call; `Run.watch` sees the input of such an edit."""
    reads_only: bool = False
    """Whether it returns its input always, so that it may stand where nothing can be changed."""

    @property
    def parts(self) -> Sequence[Part]:
        """The edit itself."""
        return (self,)

    def act(self, x: Tensor, masks: Masks) -> Tensor:
        """The changed tensor."""
        return self.change(x)


@dataclass(frozen=True)
class SharedEdit:
    """Several changes at one hook point, each at positions of its own; the edit itself is at all positions."""

    hook_point: str
    change: Callable[[Tensor, Masks], Tensor]
    """Gets the tensor, as that of `Edit` does, and the masks of the positions in it."""
    parts: Sequence[Part]
    """The changes that it carries out. The list may grow until all interventions of the run are bound."""
    source: str = ""
    standing: bool = False
    positions: ClassVar[Positions] = "all"
    reads_only: ClassVar[bool] = False

    def act(self, x: Tensor, masks: Masks) -> Tensor:
        """The changed tensor."""
        return self.change(x, masks)


BoundEdit = Edit | SharedEdit | Condition


class Intervention(Protocol):
    """An object that binds itself into edits; `model.generate(interventions=...)` takes a list of them."""

    def bind(self, model: Any, plan: Plan) -> Sequence[BoundEdit]:
        """Fresh edits for one run; `plan` is shared by all that binds itself for that run, and then thrown away."""
        ...


class Spliceable(Protocol):
    """An object that can replace an activation, such as a dictionary; `model.spliced` takes them by hook point."""

    def splice(self, hook_point: str) -> Intervention:
        """The intervention that replaces the activation at a hook point."""
        ...


@dataclass
class Group:
    """Edits for some rows of the batch."""

    edits: Sequence[BoundEdit]
    rows: slice = field(default_factory=lambda: slice(None))


class Run:
    """The edits of one run through the model, and the positions of the current forward pass.

    Args:
        groups: edits with the batch rows that they apply to, in order.
        prompt_lengths: tokens before the first generated one, `[batch]`; None where nothing is generated.
        watch: a function for each watched hook point, called with its tensor after the edits; before them where one is
            standing. It gets the tensor on the device of the tokens, wherever the hook point is.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        prompt_lengths: Tensor | None = None,
        watch: Mapping[str, Callable[[Tensor], None]] | None = None,
    ):
        self.at: dict[str, list[tuple[slice, BoundEdit]]] = {name: [] for name in watch or ()}
        for group in groups:
            for edit in group.edits:
                self.at.setdefault(edit.hook_point, []).append((group.rows, edit))
        self.watch = watch or {}
        self.prompt_lengths = prompt_lengths
        self.positions: Tensor = torch.zeros(1, 0, dtype=torch.long)  # [batch, pos], -1 is padding
        self.plain = True
        self.conditions = ConditionMemory()
        self._masks: dict[Positions, Tensor | None] = {}

    def enter(self, positions: Tensor) -> None:
        """Set the absolute positions of the next forward pass: `[batch, pos]`, -1 where there is padding."""
        self.positions = positions
        self.plain = bool((positions >= 0).all())
        self._masks = {}
        self.conditions.enter()

    def apply(self, hook_point: str, value: Tensor) -> Tensor:
        """The tensor `[batch, pos, ...]` of a hook point after its edits; the same object where they change nothing."""
        watch = self.watch.get(hook_point)
        if watch is not None and any(edit.standing for _, edit in self.at[hook_point]):
            watch(value.to(self.positions.device))
            watch = None
        for rows, edit in self.at[hook_point]:
            everywhere = rows == slice(None)
            part = value if everywhere else value[rows]
            if isinstance(edit, Condition):
                self.conditions.note(edit, part, rows, self.positions, self.prompt_lengths)
                continue
            mask = self._mask(edit.positions, rows)
            masks = functools.partial(self._inside, rows, mask)
            if mask is None:
                changed = edit.act(part, masks)
                if changed is part:
                    continue
                if everywhere:
                    value = changed
                    continue
                value = value.clone()
                value[rows] = changed
                continue
            if not bool(mask.any()):
                continue
            at = mask.to(part.device)  # a hook point of another device than that of the tokens
            selected = part[at]
            changed = edit.act(selected, masks)
            if changed is selected:
                continue
            value = value.clone()
            target = value if everywhere else value[rows]
            target[at] = changed
        if watch is not None:
            watch(value.to(self.positions.device))
        return value

    def _inside(self, rows: slice, selected: Tensor | None, rule: Rule) -> Tensor | None:
        """Which of the positions that an edit was given a rule selects; None for all of them.

        Args:
            rows: the batch rows of the edit.
            selected: which positions of these rows the edit was given, `[batch, pos]`; None for all of them.
            rule: of a part of the edit.

        Returns:
            Bool, of the leading shape of the edit's tensor: `[batch, pos]`, or `[n]` where only some were selected.
        """
        mask = self._mask(rule, rows)
        return mask if mask is None or selected is None else mask[selected]

    def _mask(self, rule: Rule, rows: slice) -> Tensor | None:
        """Which of the current positions of some rows a rule selects: `[rows, pos]`, or None for all of them."""
        if isinstance(rule, Gated):
            mask, let_through = self._mask(rule.positions, rows), self.conditions.mask(rule, rows)
            return let_through if mask is None else mask & let_through
        if rule not in self._masks:
            self._masks[rule] = self._make_mask(rule)
        mask = self._masks[rule]
        return mask if mask is None or rows == slice(None) else mask[rows]

    def _make_mask(self, rule: Positions) -> Tensor | None:
        here = self.positions
        if rule == "all":
            return None if self.plain else here >= 0
        if isinstance(rule, tuple):
            return torch.isin(here, torch.tensor(rule, device=here.device))
        first = here.new_full((len(here),), 1 << 40) if self.prompt_lengths is None else self.prompt_lengths
        inside = here < first[:, None] if rule == "prompt" else here >= first[:, None]
        return inside & (here >= 0)


def check_edits(edits: Sequence[BoundEdit], computed: int, prompt_length: int | None) -> None:
    """Refuse edits that can never act.

    Args:
        edits: bound edits.
        computed: number of positions that the run computes at most, 0 … computed - 1.
        prompt_length: where the generated tokens begin; None if the run generates nothing.

    Raises:
        EditError: an edit at positions that the run does not compute.
    """
    for edit in edits:
        for part in edit.parts:
            _check_part(part, part.source or f"the edit at {edit.hook_point}", computed, prompt_length)


def _check_part(part: Part | Condition, who: str, computed: int, prompt_length: int | None) -> None:
    rule = ungated(part.positions)
    if isinstance(rule, tuple):
        beyond = [position for position in rule if position >= computed]
        if beyond:
            raise EditError(
                f"{who} can't act at position {beyond[0]}: this run computes only positions 0 to {computed - 1}."
            )
    elif rule == "generated" and (prompt_length is None or prompt_length >= computed):
        raise EditError(
            f"{who} acts on generated tokens only, and this run feeds none back into the model; "
            "use positions='all', or generate at least two tokens."
        )


_current: ContextVar[Run | None] = ContextVar("workbench_run", default=None)


def current_run() -> Run | None:
    """The run whose edits apply to forward passes in this context; None if there is none."""
    return _current.get()


@contextmanager
def running(run: Run | None) -> Iterator[None]:
    """Make `run` the current one for the forward passes inside."""
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)
