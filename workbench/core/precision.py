"""Numbers in float64, on devices that have none too."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def float64_device(device: torch.device) -> torch.device:
    """A device itself where it computes in float64; the processor where it does not, as MPS."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device


def in_float64(tensor: Tensor) -> Tensor:
    """A tensor in float64, on its own device, or on the processor where its device has no float64."""
    return tensor.to(float64_device(tensor.device)).double()
