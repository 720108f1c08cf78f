"""What one forward pass computes: new tokens of many sequences, packed end to end, each sequence's part a tree."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.torch_runtime.kv_pool import Slots

TreeMask = NDArray[np.bool_]
"""bool [n, n]: entry (i, j) says that new token i sees new token j (an ancestor, or itself)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The new tokens of one sequence.

    tokens, positions, slots: [n]. A token's position is its depth: context length plus the number of its ancestors
    among the new tokens. context: slots of the computed tokens before them, position 0 first. tree: visibility among
    the new tokens; None is a chain (each sees those before it), as in prefill and plain decoding.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: Slots
    context: Slots
    tree: TreeMask | None = None

    @staticmethod
    def chain(tokens: Sequence[int] | NDArray[np.int64], slots: Slots, context: Slots) -> "Segment":
        """Consecutive tokens that follow the context."""
        start = len(context)
        return Segment(
            np.asarray(tokens, np.int64), np.arange(start, start + len(tokens), dtype=np.int64), slots, context
        )


def tree_mask(parents: Sequence[int]) -> TreeMask:
    """Visibility matrix of a tree of new tokens: parents[i] < i is the parent's index, -1 below the context."""
    mask = np.eye(len(parents), dtype=np.bool_)
    for i, parent in enumerate(parents):
        if parent >= i:
            raise ValueError(f"token {i} comes before its parent {parent}")
        if parent >= 0:
            mask[i] |= mask[parent]
    return mask


class PackedBatch:
    """Segments end to end: token_ids, positions, slots int64 [T] on the device, and starts[s] of each segment."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.segments = list(segments)
        self.lengths = [len(segment.tokens) for segment in segments]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])[:-1].tolist()
        self.host_positions = np.concatenate([segment.positions for segment in segments])
        self.host_slots = np.concatenate([segment.slots for segment in segments])
        self.token_ids = self._tensor(np.concatenate([segment.tokens for segment in segments]), device)
        self.positions = self._tensor(self.host_positions, device)
        self.slots = self._tensor(self.host_slots, device)
        self.device = device

    @property
    def num_tokens(self) -> int:
        return len(self.host_slots)

    @staticmethod
    def _tensor(values: NDArray[np.int64], device: torch.device) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)
