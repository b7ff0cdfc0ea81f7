"""How a dictionary acts on a running model: as edits that read at its hook points and write at its others.

There are two ways. An intervention adds the difference between the decoded edited codes and the decoded codes. A splice
puts the reconstruction in the activation's place, so that the model runs through the dictionary. Both use the edits of
this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.dictionaries.codes import Change, Rewrite
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.sites import Actor, Sites, check_order, check_width, flattened, follow, reshaped, sites
from workbench.dictionaries.spreading import Spread
from workbench.model.edits import BoundEdit, Edit, Masks, Part, SharedEdit
from workbench.model.hookpoints import HookPoint
from workbench.model.plan import Plan


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

    return [*read, Edit(writes.name, lambda x: reshaped(x, writes, write), source=source)]


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
        return reshaped(x, writes, lambda flat: act(take(flat).to(device), flat.to(device), masks))

    return [*read, SharedEdit(writes.name, write, changes, source)]


def _reading(reads: HookPoint, writes: HookPoint, source: str) -> tuple[list[Edit], Callable[[Tensor], Tensor]]:
    """The edits that keep the activation at `reads`, and a function from the flat tensor at `writes` to it."""
    if reads.key == writes.key:
        return [], lambda flat: flat
    seen: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        seen[:] = [flattened(x, reads)]
        return x

    return [Edit(reads.name, remember, source=source, reads_only=True)], lambda _: seen.pop()


@dataclass(frozen=True, eq=False)
class Splice:
    """A dictionary in the place of an activation: the model goes on with the reconstruction.

    It acts before all interventions. Interventions on its own features add `decode(edited codes) - decode(codes)` to
    the reconstruction.

    Args:
        dictionary: what the model runs through. Its `reconstruct` is used, with the skip path where there is one.
        hook_point: where it writes; one of them where they are several. A dictionary without hook points reads
            there too.

    Raises:
        DictionaryError: the dictionary writes at another hook point.
    """

    dictionary: Actor
    hook_point: str

    def bind(self, model: Any, plan: Plan) -> list[BoundEdit]:
        """Fresh edits for one run, on all positions; interventions on the dictionary's features find them in `plan`."""
        dictionary, hook_points = self.dictionary, model.hook_points
        if dictionary.reads or dictionary.writes or dictionary.n_reads > 1:
            at = sites(dictionary, model)
            check_order(dictionary, at)
            if hook_points[self.hook_point].key not in [one.key for one in at.writes]:
                raise DictionaryError(
                    f"{dictionary.name} writes at {dictionary.writes} and can't be spliced in at {self.hook_point}."
                )
        else:
            point = hook_points[self.hook_point]
            at = Sites((point,), (point,), "")
            check_width(dictionary, "reads", dictionary.d_in, point)
            check_width(dictionary, "writes", dictionary.d_out, point)
            follow(dictionary, model)
        changes: list[Change | Rewrite] = []
        plan.splice(dictionary, changes)
        if at.several:
            return Spread(dictionary, at, changes, device=model.device, source=str(self), replaces=True).edits()

        def through(read: Tensor, written: Tensor, masks: Masks) -> Tensor:
            reconstruction = dictionary.reconstruct(read)
            return dictionary.intervene(read, reconstruction, changes, masks) if changes else reconstruction

        return changing(at.reads[0], at.writes[0], through, changes, device=model.device, source=str(self))

    def __str__(self) -> str:
        return f"Splice({self.dictionary.name} at {self.hook_point})"
