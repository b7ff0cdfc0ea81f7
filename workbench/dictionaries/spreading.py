"""The edits of a dictionary that reads and writes at several hook points of a running model.

A feature of a cross-layer transcoder reads at one layer and writes at that layer and all later ones; a later feature
reads what an earlier one changed. So there is no moment at which all codes are known: each `Stage` of the dictionary is
encoded once the run has reached the hook points where it reads, and writes from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workbench.dictionaries.codes import Change, Rewrite
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.sites import Actor, Sites, flattened, reshaped
from workbench.model.edits import BoundEdit, Edit, Masks, SharedEdit
from workbench.model.hookpoints import HookPoint


class Spread:
    """The edits of a dictionary at several hook points, for one run.

    A stage's codes are those of the activations that the run itself computes where the stage reads: everything that
    the dictionary wrote before has its effect on them. They are computed once, when the first of the stage's hook
    points to write at is reached, and kept until the last.

    Args:
        dictionary: what acts.
        at: its hook points on the model; each stage reads before it writes.
        changes: what it carries out; the list may grow until all interventions of the run are bound.
        device: where it computes.
        source: what the edits belong to, for error messages.
        replaces: whether the reconstruction takes the activations' place (a splice), or they keep it.
    """

    def __init__(
        self,
        dictionary: Actor,
        at: Sites,
        changes: list[Change | Rewrite],
        *,
        device: torch.device,
        source: str,
        replaces: bool,
    ):
        self.dictionary, self.at, self.changes = dictionary, at, changes
        self.device, self.source, self.replaces = device, source, replaces
        self.stages = dictionary.stages
        self.seen: dict[int, Tensor] = {}  # by the number of the hook point that is read
        self.made: dict[int, tuple[Tensor | None, dict[int, Tensor]]] = {}  # by the number of the stage

    def edits(self) -> list[BoundEdit]:
        """Those that read, then those that write."""
        reading = [
            Edit(point.name, self._reader(number, point), source=self.source, reads_only=True)
            for number, point in enumerate(self.at.reads)
        ]
        writing = [
            SharedEdit(point.name, self._writer(number, point), self.changes, self.source)
            for number, point in enumerate(self.at.writes)
        ]
        return [*reading, *writing]

    def _reader(self, number: int, point: HookPoint) -> Callable[[Tensor], Tensor]:
        stages = [place for place, stage in enumerate(self.stages) if number in stage.reads]

        def remember(x: Tensor) -> Tensor:
            self.seen[number] = flattened(x, point)
            for stage in stages:
                self.made.pop(stage, None)
            return x

        return remember

    def _writer(self, number: int, point: HookPoint) -> Callable[[Tensor, Masks], Tensor]:
        stages = [place for place, stage in enumerate(self.stages) if number in stage.writes]

        def write(x: Tensor, masks: Masks) -> Tensor:
            return reshaped(x, point, lambda flat: self._written(number, stages, flat, masks))

        return write

    def _written(self, number: int, stages: list[int], flat: Tensor, masks: Masks) -> Tensor:
        """The activation at a hook point after the reconstruction, in a splice, and after the changes."""
        width = self.dictionary.d_out // self.dictionary.n_writes
        made = {place: self._made(place, masks) for place in stages if self._is_read(place)}
        if self.replaces and made:
            shares = []
            for place, (share, _) in made.items():
                assert share is not None
                start = self.stages[place].writes.index(number) * width
                shares.append(share[..., start : start + width])
            flat = torch.stack(shares).sum(0) if len(shares) > 1 else shares[0]
        for place, (_, differences) in made.items():
            for index, difference in differences.items():
                # where nothing changed the activation keeps its bits
                direction = self.dictionary.direction(index)[number * width : (number + 1) * width].float()
                moved = flat.to(self.device) + difference * direction
                flat = torch.where(difference == 0, flat.to(self.device), moved)
            if number == self.stages[place].writes[-1]:
                self.made.pop(place)
        return flat

    def _is_read(self, place: int) -> bool:
        """Whether the run has what a stage reads, and is to do something with it; a run may leave out layers."""
        features = self.stages[place].features
        wanted = self.replaces or any(one.index in features for one in self.changes if isinstance(one, Change))
        return wanted and all(number in self.seen for number in self.stages[place].reads)

    def _made(self, place: int, masks: Masks) -> tuple[Tensor | None, dict[int, Tensor]]:
        """A stage's share of the reconstruction, in a splice, and the differences `[..., 1]` of changed values."""
        if place in self.made:
            return self.made[place]
        stage, dictionary = self.stages[place], self.dictionary
        x = torch.cat([self.seen[number].to(self.device) for number in stage.reads], -1)
        codes = dictionary.encode_stage(place, x)
        start: dict[int, Tensor] = {}
        now: dict[int, Tensor] = {}
        for change in self.changes:
            if not isinstance(change, Change):
                raise DictionaryError(f"{change.source} changes all codes together, which {dictionary.name} can't do.")
            if change.index not in stage.features:
                continue
            if change.index not in start:
                start[change.index] = now[change.index] = codes.value_of(change.index)
            now[change.index] = change.apply(now[change.index], masks)
        share = dictionary.reconstruct_stage(place, x, codes) if self.replaces else None
        self.made[place] = share, {index: (value - start[index]).unsqueeze(-1) for index, value in now.items()}
        return self.made[place]


def adding(dictionary: Actor, at: Sites, changes: Sequence[Change | Rewrite], *, source: str) -> list[BoundEdit]:
    """The edits of one run that add to features whatever their values are, without reading them.

    Args:
        dictionary: whose features.
        at: its hook points on the model.
        changes: each states what it `adds`; the list may grow until all interventions of the run are bound.
        source: what the edits belong to, for error messages.
    """
    width = dictionary.d_out // dictionary.n_writes

    def writer(number: int, point: HookPoint) -> Callable[[Tensor, Masks], Tensor]:
        def add(flat: Tensor, masks: Masks) -> Tensor:
            for change in changes:
                if not isinstance(change, Change) or change.adds is None:
                    raise DictionaryError(f"{change.source} needs values that {dictionary.name} does not read here.")
                direction = dictionary.direction(change.index)[number * width : (number + 1) * width]
                moved = flat + change.adds * direction.to(flat.device, torch.float32)
                mask = masks(change.positions)
                flat = moved if mask is None else torch.where(mask.to(flat.device)[..., None], moved, flat)
            return flat

        return lambda x, masks: reshaped(x, point, lambda flat: add(flat, masks))

    return [SharedEdit(point.name, writer(number, point), changes, source) for number, point in enumerate(at.writes)]
