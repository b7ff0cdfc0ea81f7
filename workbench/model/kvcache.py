"""A key-value cache with preallocated memory; Hugging Face's own copies the whole past at every token."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


def new_cache(config: Any, capacity: int) -> DynamicCache:
    """An empty cache for a model of this configuration, with memory for `capacity` positions.

    Layers other than plain attention (sliding windows, recurrent states) use Hugging Face's own cache.
    """
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def copy_rows(cache: DynamicCache, rows: list[int]) -> DynamicCache:
    """A copy of some rows of a cache: row i continues row `rows[i]`."""
    twin = copy.deepcopy(cache)
    twin.batch_select_indices(torch.tensor(rows))
    return twin


class PreallocatedLayer(DynamicLayer):
    """Keys and values `[batch, heads, capacity, d_head]`; `update` returns views of the part that is filled."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.key_room = key_states.new_empty(*key_states.shape[:2], max(self.capacity, end), key_states.shape[-1])
            self.value_room = value_states.new_empty(*self.key_room.shape[:3], value_states.shape[-1])
            self.is_initialized = True
        self.key_room[:, :, self.length : end] = key_states
        self.value_room[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.key_room[:, :, :end], self.value_room[:, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        self.key_room, self.value_room = self.key_room[indices], self.value_room[indices]
        self.keys, self.values = self.key_room[:, :, : self.length], self.value_room[:, :, : self.length]
