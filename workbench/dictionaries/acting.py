"""How a dictionary acts on a running model: as edits that read at one hook point and write at another.

There are two ways. An intervention adds the difference between the decoded edited codes and the decoded codes. A splice
puts the reconstruction in the activation's place, so that the model runs through the dictionary. Both use the edits of
this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench.dictionaries.codes import Change, Rewrite
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.origin import tell_origin
from workbench.model.edits import BoundEdit, Edit, Masks, Part, SharedEdit
from workbench.model.hookpoints import HookPoint, HookPoints
from workbench.model.plan import Plan


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


def places(dictionary: Actor, model: Any) -> tuple[HookPoint, HookPoint]:
    """The hook points at which a dictionary reads and writes on a `LanguageModel`, to whose device it moves.

    See `tell_origin` on another model than it was made for.

    Raises:
        DictionaryError: it has no hook points yet, another width than the model there, or writes before it reads.
        HookPointError: the model has no such hook point.
    """
    if not dictionary.reads or not dictionary.writes:
        raise DictionaryError(
            f"{dictionary.name} does not say where it reads and writes; set its .reads and .writes to hook points."
        )
    hook_points: HookPoints = model.hook_points
    reads, writes = hook_points[dictionary.reads], hook_points[dictionary.writes]
    _check_width(dictionary, "reads", dictionary.d_in, reads)
    _check_width(dictionary, "writes", dictionary.d_out, writes)
    if reads.key != writes.key:
        order = list(hook_points)
        if order.index(reads.key or reads.name) > order.index(writes.key or writes.name):
            raise DictionaryError(
                f"{dictionary.name} can't act: the model computes {writes.name}, where it writes, before "
                f"{reads.name}, where it reads."
            )
    follow(dictionary, model)
    tell_origin(dictionary, model)
    return reads, writes


def follow(dictionary: Any, model: Any) -> None:
    """Move a dictionary to the device of the model with which it is used, in place, unless it is there."""
    if any(tensor.device != model.device for tensor in dictionary.state_dict().values()):
        dictionary.to(model.device)


def acting(
    reads: HookPoint,
    writes: HookPoint,
    act: Callable[[Tensor, Tensor], Tensor],
    *,
    device: torch.device,
    source: str,
) -> list[Edit]:
    """The edits of one run that replace the activation at `writes` by `act(read, written)`, at all positions.

    Args:
        reads: a hook point of width `d_in`; heads are flattened.
        writes: a hook point of width `d_out`, the same or a later one.
        act: maps activations at the two hook points, `[..., d_in]` and `[..., d_out]`, to the new ones at `writes`,
            `[..., d_out]`. If both are one place, it gets the same tensor twice.
        device: where `act` computes: the dictionary's, whatever those of the layers are.
        source: what the edits belong to, for error messages.
    """
    read, take = _reading(reads, writes, source)

    def write(flat: Tensor) -> Tensor:
        return act(take(flat).to(device), flat.to(device))

    return [*read, Edit(writes.name, lambda x: _shaped(x, writes, write), source=source)]


def changing(
    reads: HookPoint,
    writes: HookPoint,
    act: Callable[[Tensor, Tensor, Masks], Tensor],
    changes: Sequence[Part],
    *,
    device: torch.device,
    source: str,
) -> list[BoundEdit]:
    """The edits of one run that carry out changes at positions of their own.

    Args:
        reads: a hook point of width `d_in`; heads are flattened.
        writes: a hook point of width `d_out`, the same or a later one.
        act: as in `acting`; it also gets the masks of the changes' positions.
        changes: what `act` carries out; the list may grow until all interventions of the run are bound.
        device: as in `acting`.
        source: what the edits belong to, for error messages.
    """
    read, take = _reading(reads, writes, source)

    def write(x: Tensor, masks: Masks) -> Tensor:
        return _shaped(x, writes, lambda flat: act(take(flat).to(device), flat.to(device), masks))

    return [*read, SharedEdit(writes.name, write, changes, source)]


def _reading(reads: HookPoint, writes: HookPoint, source: str) -> tuple[list[Edit], Callable[[Tensor], Tensor]]:
    """The edits that keep the activation at `reads`, and a function from the flat tensor at `writes` to it."""
    if reads.key == writes.key:
        return [], lambda flat: flat
    seen: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        seen[:] = [_flat(x, reads)]
        return x

    return [Edit(reads.name, remember, source=source, reads_only=True)], lambda _: seen.pop()


@dataclass(frozen=True, eq=False)
class Splice:
    """A dictionary in the place of an activation: the model goes on with the reconstruction.

    It acts before all interventions. Interventions on its own features add `decode(edited codes) - decode(codes)` to
    the reconstruction.

    Args:
        dictionary: what the model runs through. Its `reconstruct` is used, with the skip path where there is one.
        hook_point: where it writes. A dictionary without hook points reads there too.

    Raises:
        DictionaryError: the dictionary writes at another hook point.
    """

    dictionary: Actor
    hook_point: str

    def bind(self, model: Any, plan: Plan) -> list[BoundEdit]:
        """Fresh edits for one run, on all positions; interventions on the dictionary's features find them in `plan`."""
        dictionary, hook_points = self.dictionary, model.hook_points
        if dictionary.reads or dictionary.writes:
            reads, writes = places(dictionary, model)
            if writes.key != hook_points[self.hook_point].key:
                raise DictionaryError(
                    f"{dictionary.name} writes at {dictionary.writes} and can't be spliced in at {self.hook_point}."
                )
        else:
            reads = writes = hook_points[self.hook_point]
            _check_width(dictionary, "reads", dictionary.d_in, reads)
            _check_width(dictionary, "writes", dictionary.d_out, writes)
            follow(dictionary, model)
        changes: list[Change | Rewrite] = []
        plan.splice(dictionary, changes)

        def through(read: Tensor, written: Tensor, masks: Masks) -> Tensor:
            reconstruction = dictionary.reconstruct(read)
            return dictionary.intervene(read, reconstruction, changes, masks) if changes else reconstruction

        return changing(reads, writes, through, changes, device=model.device, source=str(self))

    def __str__(self) -> str:
        return f"Splice({self.dictionary.name} at {self.hook_point})"


def _check_width(dictionary: Actor, verb: str, width: int, point: HookPoint) -> None:
    if width != point.width:
        raise DictionaryError(
            f"{dictionary.name} {verb} activations of width {width:,}, but {point.name} is {point.width:,} wide."
        )


def _flat(x: Tensor, point: HookPoint) -> Tensor:
    """`[..., *shape]` as `[..., width]`."""
    return x if len(point.shape) == 1 else x.flatten(-len(point.shape))


def _shaped(x: Tensor, point: HookPoint, act: Callable[[Tensor], Tensor]) -> Tensor:
    """`act` on the flattened tensor, in the tensor's own shape and type; `x` itself if `act` returns its input."""
    flat = _flat(x, point)
    new = act(flat)
    return x if new is flat else new.to(x.device, x.dtype).reshape(x.shape)
