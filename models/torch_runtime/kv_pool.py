"""Key and value memory: one slot per token, in per-layer pools."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Slots = NDArray[np.int64]
"""Slot numbers of consecutive tokens, int64 [n]."""


class SlotPool:
    """Keys and values of `num_slots` tokens: per layer [slots, kv_heads, head_dim].

    A slot is a number that means the same in every layer (and, later, in a draft model's own pools). Which token lies
    in which slot is known to sequences and the prefix cache only, so accepting, forking or freeing moves no memory.
    The pools start as zeros and never hold NaN in a free slot: masked attention would spread it.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, num_slots, kv_heads, head_dim)
        self.keys: list[Tensor] = list(_zeros(shape, dtype, device).unbind(0))
        self.values: list[Tensor] = list(_zeros(shape, dtype, device).unbind(0))
        self.num_slots = num_slots
        self.uses = np.zeros(num_slots, np.int64)  # how often each slot was allocated: tells its tokens apart
        self._free = np.arange(num_slots - 1, -1, -1, dtype=np.int64)  # a stack: its top is at index num_free - 1
        self.num_free = num_slots

    def allocate(self, count: int) -> Slots:
        """`count` free slots, in ascending runs where possible. Raises MemoryError when there are fewer."""
        if count > self.num_free:
            raise MemoryError(f"{count} KV slots asked for, {self.num_free} free")
        taken = self._free[self.num_free - count : self.num_free][::-1].copy()
        self.num_free -= count
        self.uses[taken] += 1
        return taken

    def free(self, slots: Slots) -> None:
        """Gives slots back; each must be allocated exactly once."""
        count = len(slots)
        if self.num_free + count > self.num_slots:
            raise AssertionError("more KV slots freed than were allocated")
        self._free[self.num_free : self.num_free + count] = slots[::-1]
        self.num_free += count


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on CPU they take memory only where they are written (torch's own would be written at once)."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def slot_bytes(*, num_layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values over all layers."""
    return 2 * num_layers * kv_heads * head_dim * dtype.itemsize
