"""Several processes that train one dictionary together, as `torchrun` starts them.

Each has the whole dictionary and a share of every batch. What they learn from it is averaged, so that their weights
stay the same. With one process everything here does nothing.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as dist

from workbench.harvest import process_shard
from workbench.model.language_model import LanguageModel
from workbench.model.placing import parted
from workbench.training.checkpoints import TrainingError


class Processes:
    """The processes, and what they have to say to each other.

    Where `torchrun` asks for a process group and none is open, one is opened; it stays open until Python ends.

    Args:
        device: where the dictionary is: gloo connects processors, nccl graphics cards.

    Attributes:
        rank: which of the processes this is.
        count: how many there are.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.rank, self.count = process_shard()
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(_close)

    def average(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace every tensor of floating-point numbers by its mean over the processes."""
        if self.count == 1:
            return
        for tensor in tensors:
            if tensor is not None and tensor.is_floating_point():
                dist.all_reduce(tensor)
                tensor.div_(self.count)

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.count > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def join(self, rows: Tensor) -> Tensor:
        """The rows `[n, width]` of all processes under each other, `[count * n, width]`, the same in every process."""
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def join_ragged(self, rows: Tensor) -> Tensor:
        """As `join`, where the processes have different numbers of rows: `[total, width]`."""
        if self.count == 1:
            return rows
        counts = self.join(torch.tensor([len(rows)], device=self.device)).tolist()
        padded = torch.nn.functional.pad(rows, (0, 0, 0, max(counts) - len(rows)))
        return torch.cat([part[:n] for part, n in zip(self.join(padded).chunk(self.count), counts, strict=True)])

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the tensors of the first."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def any(self, answer: bool) -> bool:
        """Whether one of the processes says yes."""
        return bool(self.add(torch.tensor(int(answer), device=self.device))) if self.count > 1 else answer

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


def check_whole(model: LanguageModel) -> None:
    """Refuse to train with a model that is sharded over the processes, which then share no work.

    Raises:
        TrainingError: it is sharded.
    """
    if model.network.processes is not None:
        raise TrainingError(
            f"{model.name} {parted(model.network.module)}, which share the work of a training otherwise; write its "
            "activations with a harvest (Store.write), and train on them as a source."
        )


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
