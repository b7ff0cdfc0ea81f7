"""Models that transformers shards over several processes (`tp_plan`, under `torchrun`).

Each process holds a part of every large weight, as a `DTensor`. The residual stream is whole in every process; between
two matrices a process has the neurons or heads of its own. Every process makes the same calls, since a pass of the
model is a pass of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from workbench.model.edits import Run
from workbench.model.grad_mode import gradients_are_taken
from workbench.model.modules import sharing_copy
from workbench.model.weights import ModelError, is_sharded, whole

WHOLE = 'load it in one process, over several devices with device_map="auto"'


class Group:
    """The processes that hold one model.

    Args:
        group: of `torch.distributed`.
        device: where their tensors are.
    """

    def __init__(self, group: Any, device: torch.device):
        self.group, self.device = group, device
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        return self

    def collect(self, value: Tensor) -> list[Tensor]:
        """The tensors of all processes, of one shape, by rank."""
        parts = [torch.empty_like(value) for _ in range(self.count)]
        dist.all_gather(parts, value.contiguous(), group=self.group)
        return parts

    def numbers(self, value: int) -> list[int]:
        """A whole number of each process, by rank."""
        return [int(one) for one in self.collect(torch.tensor([value], device=self.device))]

    def joined(self, value: Tensor, widths: tuple[int, ...]) -> Tensor:
        """The processes' parts `[..., widths[rank]]` beside each other, `[..., sum(widths)]`."""
        wide = nn.functional.pad(value, (0, max(widths) - value.shape[-1]))
        return torch.cat([part[..., :width] for part, width in zip(self.collect(wide), widths, strict=True)], -1)

    def agree(self, tokens: Tensor, mask: Tensor | None, run: Run | None, past: int, last: int) -> None:
        """Refuse a pass that is not the same one in every process, before their tensors meet.

        Raises:
            ModelError: other tokens, another mask, or edits of another name or place.
        """
        edits = {} if run is None else run.at
        at = [(name, [(rows, edit.positions, edit.source) for rows, edit in edits[name]]) for name in sorted(edits)]
        said = hashlib.sha256(repr((tuple(tokens.shape), past, last, at)).encode())
        for one in (tokens, mask):
            said.update(b"" if one is None else one.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        if len(set(self.numbers(int.from_bytes(said.digest()[:7])))) > 1:
            raise ModelError(
                "The processes that hold this sharded model were given different tokens, masks or edits; make the same "
                "calls with the same values in each of them."
            )

    @contextmanager
    def passing(self) -> Iterator[None]:
        """A pass, through which no gradients can be taken.

        Raises:
            ModelError: gradients are asked for.
        """
        if gradients_are_taken():
            raise ModelError(f"Gradients can't be taken through a model that is sharded over processes; {WHOLE}.")
        with torch.no_grad():
            yield


def group_of(module: nn.Module) -> Group | None:
    """The processes over which a model's weights are sharded; None where they are all here.

    Raises:
        ModelError: they are sharded in more than one way.
    """
    sharded: list[Any] = [one for one in module.parameters() if is_sharded(one)]
    if not sharded:
        return None
    meshes = {one.device_mesh for one in sharded}
    if len(meshes) != 1 or sharded[0].device_mesh.ndim != 1:
        raise ModelError(f"This model is sharded over processes in several ways at once; {WHOLE}.")
    return Group(sharded[0].device_mesh.get_group(), sharded[0].to_local().device)


def make_whole(module: nn.Module) -> None:
    """Give modules of a sharded model their whole weights, and the computation of one process."""
    gathered: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for inner in module.modules():
        vars(inner).pop("forward", None)  # what transformers puts there passes parts on
        for name, one in inner.named_parameters(recurse=False):
            if is_sharded(one):
                if id(one) not in gathered:
                    gathered[id(one)] = nn.Parameter(whole(one), requires_grad=False)
                inner._parameters[name] = gathered[id(one)]


def in_one_piece(module: nn.Module) -> nn.Module:
    """The module itself; where its weights are sharded, a copy with whole ones, which all processes make together."""
    if not any(map(is_sharded, module.parameters())):
        return module
    twin = sharing_copy(module)
    make_whole(twin)
    return twin


@dataclass(frozen=True)
class Pieces:
    """How the processes share the values of a hook point.

    Args:
        group: the processes.
        widths: number of values per position that each holds, by rank; empty where every process holds all of them,
            so that there is nothing to put together.
    """

    group: Group
    widths: tuple[int, ...] = ()

    def whole(self, value: Tensor, lead: torch.Size) -> Tensor:
        """The values of all processes, `[*lead, sum(widths)]`.

        Args:
            value: those of this process, in the module's own shape.
            lead: batch and position.

        Raises:
            ModelError: this process holds another number of values than it did when the model was opened.
        """
        own = value.reshape(*lead, -1)
        if own.shape[-1] != self.widths[self.group.rank]:
            raise ModelError(
                f"This process holds {own.shape[-1]:,} values of a hook point where it held "
                f"{self.widths[self.group.rank]:,} when the model was opened; open it again."
            )
        return self.group.joined(own, self.widths)

    def own(self, values: Tensor, like: Tensor) -> Tensor:
        """This process's part of the values of all, in the shape of `like`."""
        begin = sum(self.widths[: self.group.rank])
        return values[..., begin : begin + self.widths[self.group.rank]].reshape(like.shape).contiguous()


def shared_as(group: Group, value: Tensor | None, wanted: Tensor) -> Pieces | None:
    """How the processes share a tensor, by the tensor that one process computes alone; None where they do otherwise.

    Args:
        group: the processes.
        value: this process's tensor; None if it has none.
        wanted: `[batch, pos, ...]`, the whole one.
    """
    wanted = wanted.flatten(2)
    lead, width = wanted.shape[:2], wanted.shape[-1]
    fits = value is not None and value.numel() % (lead[0] * lead[1]) == 0
    own = value.reshape(*lead, -1).float() if fits and value is not None else wanted.new_zeros(*lead, 0)
    widths = tuple(group.numbers(own.shape[-1]))
    if set(widths) == {width}:
        same = all(_near(one, wanted, value) for one in group.collect(own))
        return Pieces(group) if same else None
    if sum(widths) != width or not min(widths):
        return None
    return Pieces(group, widths) if _near(group.joined(own, widths), wanted, value) else None


def _near(found: Tensor, wanted: Tensor, kind: Tensor | None) -> bool:
    """Whether two tensors are equal but for the rounding of a type: a part at another place is as far as its length."""
    rounding = 1e-4 if kind is None or kind.dtype == torch.float32 else 16 * torch.finfo(kind.dtype).eps
    apart = torch.linalg.vector_norm(found - wanted)
    return bool(apart <= rounding * torch.linalg.vector_norm(wanted))
