"""Attention through KV slots: the reference backend on any device, and the CPU's.

`SlotAttention` runs torch's scaled_dot_product_attention per group of segments of similar shape: a group gathers its
keys and values by slot, pads to its longest member, and masks. `KernelAttention` reads slots in place, for decoding,
draft trees and short chunks, and leaves long chunks on long contexts, which are matrix products, to the former. A plan
(indices and masks) is built once per forward pass and shared by all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from models.torch_runtime import native
from models.torch_runtime.batch import PackedBatch, Segment

LONG_CHUNK, LONG_CONTEXT = 128, 1024
"""A segment of so many new tokens on so long a context is faster gathered and multiplied (measured on AVX2)."""

PADDING_LIMIT = 1.25
"""A decode group may gather at most this many times the slots that its members need."""


@dataclass(frozen=True, slots=True)
class Group:
    """B segments of n new tokens each.

    rows: int64 [B * n], their place in the packed batch. slots: int64 [B, N], context and new tokens, padded.
    distance: int64 [B, n, N], query position minus key position. visible: bool [B, n, N].
    """

    rows: Tensor
    slots: Tensor
    distance: Tensor
    visible: Tensor


def plan_groups(batch: PackedBatch, members: Sequence[int]) -> list[Group]:
    """Groups single tokens (plain decoding) of similar context; anything longer is a group of its own.

    members: numbers of the batch's segments to plan for.
    """
    single = [i for i in members if batch.lengths[i] == 1]
    single.sort(key=lambda i: len(batch.segments[i].context))
    groups: list[list[int]] = []
    total = 0
    for i in single:
        needed = len(batch.segments[i].context) + 1
        if groups and needed * (len(groups[-1]) + 1) <= PADDING_LIMIT * (total + needed):
            groups[-1].append(i)
            total += needed
        else:
            groups.append([i])
            total = needed
    groups += [[i] for i in members if batch.lengths[i] > 1]
    return [_group(batch, group) for group in groups]


def _group(batch: PackedBatch, members: Sequence[int]) -> Group:
    segments = [batch.segments[i] for i in members]
    length = len(segments[0].tokens)
    width = max(len(s.context) for s in segments) + length
    # Padding has weight 0, but 0 * NaN is NaN: it must repeat a slot of the same sequence, never read a neighbour's.
    slots = np.repeat(np.array([[segment.slots[0]] for segment in segments], np.int64), width, axis=1)
    key_positions = np.zeros((len(members), width), np.int64)
    visible = np.zeros((len(members), length, width), np.bool_)
    for b, segment in enumerate(segments):
        context = len(segment.context)
        slots[b, :context] = segment.context
        slots[b, context : context + length] = segment.slots
        key_positions[b, :context] = np.arange(context)
        key_positions[b, context : context + length] = segment.positions
        visible[b, :, :context] = True
        visible[b, :, context : context + length] = _among_new(segment)
    query_positions = np.stack([s.positions for s in segments])
    rows = np.concatenate([np.arange(batch.starts[i], batch.starts[i] + length) for i in members])
    device = batch.device

    def tensor(values: NDArray[np.int64] | NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Group(
        tensor(rows), tensor(slots), tensor(query_positions[:, :, None] - key_positions[:, None, :]), tensor(visible)
    )


def _among_new(segment: Segment) -> NDArray[np.bool_]:
    length = len(segment.tokens)
    return np.tri(length, dtype=np.bool_) if segment.tree is None else segment.tree


class SlotAttention:
    """Attention of one packed batch, or of some of its segments; `attend` is called once per layer."""

    def __init__(self, batch: PackedBatch, members: Sequence[int] | None = None) -> None:
        self.groups = plan_groups(batch, range(len(batch.segments)) if members is None else members)
        self._masks: dict[tuple[int, int, int, torch.dtype], Tensor] = {}

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, scale: float, window: int = 0, softcap: float = 0.0
    ) -> Tensor:
        """query [T, heads, head_dim], pools [slots, kv_heads, head_dim] -> [T, heads, head_dim].

        window > 0: a key is visible only if it is fewer than `window` positions back. softcap > 0: scores become
        softcap * tanh(scores / softcap) before masking (Gemma 2).
        """
        out = torch.empty((*query.shape[:2], values.shape[-1]), dtype=query.dtype, device=query.device)
        self.attend_into(out, query, keys, values, scale=scale, window=window, softcap=softcap)
        return out

    def attend_into(
        self,
        out: Tensor,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
    ) -> None:
        """As `attend`, writing the planned segments' rows of `out` only."""
        for i, group in enumerate(self.groups):
            mask = self._mask(i, query.shape[1] // keys.shape[1], window, query.dtype)
            out[group.rows] = _attend_group(query, keys, values, group, mask, scale, softcap)

    def _mask(self, i: int, share: int, window: int, dtype: torch.dtype) -> Tensor:
        """Additive mask [B, 1, share * n, N] of group i; `share` query heads read one kv head."""
        key = (i, share, window, dtype)
        if key not in self._masks:
            group = self.groups[i]
            visible = group.visible & (group.distance < window) if window else group.visible
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
            self._masks[key] = mask.repeat(1, share, 1)[:, None]
        return self._masks[key]


def _attend_group(
    query: Tensor, keys: Tensor, values: Tensor, group: Group, mask: Tensor, scale: float, softcap: float
) -> Tensor:
    """The group's rows of the output, [B * n, heads, head_dim]. Query heads of one kv head are folded into its rows."""
    count, width = group.slots.shape
    length = len(group.rows) // count
    heads, kv_heads = query.shape[1], keys.shape[1]
    share = heads // kv_heads
    # [B*n, H, D] -> [B, n, G, share, D] -> [B, G, share, n, D] -> [B, G, share * n, D]
    q = query[group.rows].view(count, length, kv_heads, share, -1).permute(0, 2, 3, 1, 4)
    q = q.reshape(count, kv_heads, share * length, -1)
    flat = group.slots.view(-1)
    k = keys.index_select(0, flat).view(count, width, kv_heads, -1).transpose(1, 2).to(q.dtype)
    v = values.index_select(0, flat).view(count, width, kv_heads, -1).transpose(1, 2).to(q.dtype)
    if softcap:
        scores = softcap * torch.tanh((q @ k.transpose(-1, -2)) * (scale / softcap))
        o = torch.softmax((scores + mask).float(), dim=-1).to(q.dtype) @ v
    else:
        o = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    o = o.view(count, kv_heads, share, length, -1).permute(0, 3, 1, 2, 4)
    return o.reshape(count * length, heads, -1)


class KernelAttention:
    """Attention of one packed batch by the C kernel where it is faster, by `SlotAttention` elsewhere."""

    def __init__(self, batch: PackedBatch, kernels: native.Kernels) -> None:
        gathered = [
            kernels.name != "native" or (length >= LONG_CHUNK and len(segment.context) >= LONG_CONTEXT)
            for length, segment in zip(batch.lengths, batch.segments, strict=True)
        ]
        short = [i for i, gather in enumerate(gathered) if not gather]
        long = [i for i, gather in enumerate(gathered) if gather]
        self._kernels = kernels
        self._long = SlotAttention(batch, long) if long else None
        self._short: native.AttentionPlan | None = None
        if short:
            segments = [
                native.Segment(batch.starts[i], batch.lengths[i], batch.segments[i].context, batch.segments[i].tree)
                for i in short
            ]
            self._short = native.AttentionPlan.build(segments, batch.host_slots, batch.host_positions)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, *, scale: float, window: int = 0) -> Tensor:
        """query [T, heads, head_dim], pools [slots, kv_heads, head_dim] -> [T, heads, head_dim]."""
        out = torch.empty_like(query)
        if self._short is not None:
            self._kernels.tree_attention(query, keys, values, self._short, out, scale, window)
        if self._long is not None:
            self._long.attend_into(out, query, keys, values, scale=scale, window=window)
        return out
