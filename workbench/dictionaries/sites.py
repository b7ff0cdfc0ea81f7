"""The hook points of a dictionary on a model: one to read at and one to write at, or several of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench.dictionaries.codes import Change, Codes, Rewrite
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.origin import tell_origin
from workbench.model.edits import Masks
from workbench.model.hookpoints import HookPoint


class Actor(Protocol):
    """What a dictionary has to offer so that it can act; see `Dictionary`."""

    @property
    def name(self) -> str:
        """What it is called in error messages."""
        ...

    @property
    def reads(self) -> str:
        """Hook point of the activations that it encodes; empty until it is known."""
        ...

    @property
    def writes(self) -> str:
        """Hook point of the activations that it reconstructs; empty until it is known."""
        ...

    @property
    def read_points(self) -> tuple[str, ...]:
        """The hook points of `reads`, one by one."""
        ...

    @property
    def write_points(self) -> tuple[str, ...]:
        """The hook points of `writes`, one by one."""
        ...

    @property
    def n_reads(self) -> int:
        """At how many hook points it reads."""
        ...

    @property
    def n_writes(self) -> int:
        """At how many hook points it writes."""
        ...

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its features by where they read and write; see `Stage`."""
        ...

    @property
    def d_in(self) -> int:
        """Width of the activations at `reads`."""
        ...

    @property
    def d_out(self) -> int:
        """Width of the activations at `writes`."""
        ...

    def reconstruct(self, x: Tensor) -> Tensor:
        """Activations at `writes` `[..., d_out]` from those at `reads` `[..., d_in]`."""
        ...

    def intervene(
        self, read: Tensor, written: Tensor, changes: Sequence[Change | Rewrite], masks: Masks = ...
    ) -> Tensor:
        """Activations at `writes` `[..., d_out]` after changes of the codes."""
        ...

    def encode_stage(self, number: int, x: Tensor) -> Codes:
        """The codes of a stage's features, from the activations where the stage reads."""
        ...

    def reconstruct_stage(self, number: int, x: Tensor, codes: Codes) -> Tensor:
        """A stage's share of the reconstruction where the stage writes."""
        ...

    def direction(self, index: int) -> Tensor:
        """The change at `writes` per unit of the feature: `[d_out]`."""
        ...


@dataclass(frozen=True)
class Stage:
    """Features that read at the same hook points of a dictionary, and write at the same."""

    features: range
    """Their indices."""
    reads: tuple[int, ...]
    """Which of the dictionary's `read_points`."""
    writes: tuple[int, ...]
    """Which of its `write_points`."""


@dataclass(frozen=True)
class Sites:
    """The hook points of a dictionary on a model."""

    reads: tuple[HookPoint, ...]
    writes: tuple[HookPoint, ...]
    late: str
    """Why it can't encode in a run that it changes: the model computes a hook point where a feature writes before one
    where it reads. Empty where it can."""

    @property
    def several(self) -> bool:
        """Whether there are several to read at, or several to write at."""
        return len(self.reads) + len(self.writes) > 2


def sites(dictionary: Actor, model: Any) -> Sites:
    """The hook points at which a dictionary reads and writes on a `LanguageModel`, to whose device it moves.

    See `tell_origin` on another model than it was made for.

    Raises:
        DictionaryError: it has no hook points yet, or another number or width of them than the model there.
        HookPointError: the model has no such hook point.
    """
    if not dictionary.reads or not dictionary.writes:
        raise DictionaryError(
            f"{dictionary.name} does not say where it reads and writes; set its .reads and .writes to hook points."
        )
    sides = []
    for verb, names, count, width in (
        ("reads", dictionary.read_points, dictionary.n_reads, dictionary.d_in),
        ("writes", dictionary.write_points, dictionary.n_writes, dictionary.d_out),
    ):
        sides.append(tuple(model.hook_points[name] for name in check_count(dictionary.name, verb, names, count)))
        for point in sides[-1]:
            check_width(dictionary, verb, width // count, point)
    follow(dictionary, model)
    tell_origin(dictionary, model)
    return Sites(sides[0], sides[1], _late(dictionary, list(model.hook_points), *sides))


def places(dictionary: Actor, model: Any) -> tuple[HookPoint, HookPoint]:
    """The one hook point at which a dictionary reads and the one at which it writes, for what needs one of each.

    Raises:
        DictionaryError: as `sites` does; or it reads or writes at several, or writes before it reads.
        HookPointError: the model has no such hook point.
    """
    at = sites(dictionary, model)
    if at.several:
        raise DictionaryError(
            f"{dictionary.name} reads at {len(at.reads)} hook points and writes at {len(at.writes)}, and this is for "
            "dictionaries of one each."
        )
    check_order(dictionary, at)
    return at.reads[0], at.writes[0]


def check_order(dictionary: Actor, at: Sites) -> None:
    """Raise `DictionaryError` where the model computes a hook point where a feature writes before one that it reads."""
    if at.late:
        raise DictionaryError(f"{dictionary.name} can't act: {at.late}.")


def check_count(name: str, verb: str, points: Sequence[str], count: int) -> Sequence[str]:
    """The hook points; raises `DictionaryError` unless they are as many as the dictionary has, each another."""
    if len(points) != count or len(set(points)) < count:
        raise DictionaryError(
            f"{name} {verb} at {count} hook point{'s' * (count > 1)}, each another, and "
            f"{' + '.join(points) or 'nothing'} names {len(set(points))}; join their names with ' + ' in order."
        )
    return points


def _late(dictionary: Actor, order: list[str], reads: Sequence[HookPoint], writes: Sequence[HookPoint]) -> str:
    """See `Sites.late`."""
    for stage in dictionary.stages:
        last = max((reads[number] for number in stage.reads), key=lambda one: order.index(one.key or one.name))
        first = min((writes[number] for number in stage.writes), key=lambda one: order.index(one.key or one.name))
        if last.key != first.key and order.index(last.key or last.name) > order.index(first.key or first.name):
            return f"the model computes {first.name}, where it writes, before {last.name}, where it reads"
    return ""


def gather(values: Mapping[str, Tensor], points: Sequence[str]) -> Tensor:
    """Activations at several hook points, each `[..., width]`, one behind the other on the last axis."""
    return values[points[0]] if len(points) == 1 else torch.cat([values[name] for name in points], -1)


def follow(dictionary: Any, model: Any) -> None:
    """Move a dictionary to the device of the model with which it is used, in place, unless it is there."""
    if any(tensor.device != model.device for tensor in dictionary.state_dict().values()):
        dictionary.to(model.device)


def check_width(dictionary: Actor, verb: str, width: int, point: HookPoint) -> None:
    """Raise `DictionaryError` unless a hook point has the width that a dictionary reads or writes there."""
    if width != point.width:
        raise DictionaryError(
            f"{dictionary.name} {verb} activations of width {width:,}, but {point.name} is {point.width:,} wide."
        )


def flattened(x: Tensor, point: HookPoint) -> Tensor:
    """`[..., *shape]` as `[..., width]`."""
    return x if len(point.shape) == 1 else x.flatten(-len(point.shape))


def reshaped(x: Tensor, point: HookPoint, act: Callable[[Tensor], Tensor]) -> Tensor:
    """`act` on the flattened tensor, in the tensor's own shape and type; `x` itself if `act` returns its input."""
    flat = flattened(x, point)
    new = act(flat)
    return x if new is flat else new.to(x.device, x.dtype).reshape(x.shape)
