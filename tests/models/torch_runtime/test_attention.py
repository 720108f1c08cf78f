"""Attention through slots against the definition, a softmax row by row; batches, trees and groups too."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.torch_runtime import attention, native
from models.torch_runtime.attention import PADDING_LIMIT, KernelAttention, SlotAttention, plan_groups
from models.torch_runtime.batch import PackedBatch, Segment, tree_mask

CPU = torch.device("cpu")
Shape = tuple[int, int, list[int] | None]
"""(context length, new tokens, parents of a tree or None)."""


def make_batch(shapes: Sequence[Shape], seed: int, *, spare: int = 7) -> tuple[PackedBatch, int]:
    """A batch of segments whose slots lie scattered over a pool, and the pool's size. Slot 0 belongs to nobody."""
    random = np.random.RandomState(seed)
    size = 1 + spare + sum(context + new for context, new, _ in shapes)
    numbers = 1 + random.permutation(size - 1).astype(np.int64)
    segments, taken = [], 0
    for context, new, parents in shapes:
        own = numbers[taken : taken + context + new]
        taken += context + new
        tokens = random.randint(0, 50, new).astype(np.int64)
        if parents is None:
            segments.append(Segment.chain(tokens, own[context:], own[:context]))
        else:
            mask = tree_mask(parents)
            positions = context + mask.sum(1).astype(np.int64) - 1
            segments.append(Segment(tokens, positions, own[context:], own[:context], mask))
    return PackedBatch(segments, CPU), size


def by_definition(
    batch: PackedBatch, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int, softcap: float
) -> Tensor:
    """One query row and head at a time, in float64, over the keys it may see, gathered one by one."""
    share = query.shape[1] // keys.shape[1]
    out = torch.zeros(*query.shape[:2], values.shape[-1], dtype=torch.float64)
    row = 0
    for segment in batch.segments:
        for i in range(len(segment.tokens)):
            position = int(segment.positions[i])
            seen = [int(s) for p, s in enumerate(segment.context) if not window or position - p < window]
            for j in range(len(segment.tokens)):
                visible = j <= i if segment.tree is None else bool(segment.tree[i, j])
                if visible and (not window or position - int(segment.positions[j]) < window):
                    seen.append(int(segment.slots[j]))
            for head in range(query.shape[1]):
                q = query[row, head].double()
                scores = torch.tensor([float(q @ keys[s, head // share].double()) * scale for s in seen])
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                weights = torch.softmax(scores.double(), 0)
                for weight, s in zip(weights, seen, strict=True):
                    out[row, head] += weight * values[s, head // share].double()
            row += 1
    return out


def parents(length: int) -> st.SearchStrategy[list[int]]:
    return st.tuples(*(st.integers(-1, i - 1) for i in range(length))).map(list)


shapes = st.tuples(st.integers(0, 9), st.integers(1, 6)).flatmap(
    lambda pair: st.tuples(st.just(pair[0]), st.just(pair[1]), st.none() | parents(pair[1]))
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shapes=st.lists(shapes, min_size=1, max_size=6),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    window=st.sampled_from([0, 0, 1, 3, 5]),
    softcap=st.sampled_from([0.0, 0.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_slot_attention_by_definition(
    shapes: list[Shape], heads: tuple[int, int], window: int, softcap: float, seed: int
) -> None:
    batch, size = make_batch(shapes, seed)
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch.num_tokens, heads[0], 8, generator=generator) * 2
    keys = torch.randn(size, heads[1], 8, generator=generator)
    values = torch.randn(size, heads[1], 5, generator=generator)  # narrower than the keys, as in some architectures
    scale = 1 / math.sqrt(8)
    got = SlotAttention(batch).attend(query, keys, values, scale=scale, window=window, softcap=softcap)
    expected = by_definition(batch, query, keys, values, scale, window, softcap)
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_window_counts_depth_in_a_tree_and_not_place(window: int) -> None:
    batch, size = make_batch([(3, 8, [-1, -1, -1, 2, 2, 4, 5, 5])], 7)
    generator = torch.Generator().manual_seed(7)
    query = torch.randn(8, 4, 8, generator=generator)
    keys, values = torch.randn(size, 2, 8, generator=generator), torch.randn(size, 2, 8, generator=generator)
    got = SlotAttention(batch).attend(query, keys, values, scale=0.3, window=window)
    expected = by_definition(batch, query, keys, values, 0.3, window, 0.0)
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=0)


def test_many_decoding_segments_of_different_context_are_grouped_and_exact() -> None:
    batch, size = make_batch([(context, 1, None) for context in (30, 1, 29, 0, 28, 31, 2, 90)], 5)
    groups = plan_groups(batch, range(8))
    assert 2 <= len(groups) < 8
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(8, 4, 8, generator=generator)
    keys, values = torch.randn(size, 2, 8, generator=generator), torch.randn(size, 2, 8, generator=generator)
    got = SlotAttention(batch).attend(query, keys, values, scale=0.3)
    torch.testing.assert_close(got.double(), by_definition(batch, query, keys, values, 0.3, 0, 0.0), atol=2e-5, rtol=0)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 3)), min_size=1, max_size=30), st.integers(0, 9))
def test_groups_cover_each_row_once_and_pad_little(pairs: list[tuple[int, int]], seed: int) -> None:
    batch, _ = make_batch([(context, new, None) for context, new in pairs], seed)
    groups = plan_groups(batch, range(len(pairs)))
    assert sorted(row for group in groups for row in group.rows.tolist()) == list(range(batch.num_tokens))
    for group in groups:
        count, width = group.slots.shape
        if count > 1:
            needed = int(group.visible.sum())
            assert width * count <= PADDING_LIMIT * needed


def test_one_layer_plan_serves_layers_of_different_windows_and_dtypes() -> None:
    """The masks are cached per plan: a layer must not get another's."""
    batch, size = make_batch([(6, 1, None), (5, 1, None), (3, 4, None), (2, 3, [-1, -1, 0])], 3)
    generator = torch.Generator().manual_seed(3)
    plan = SlotAttention(batch)
    for heads, window, dtype in ((4, 0, torch.float32), (4, 2, torch.float32), (2, 2, torch.float32),
                                 (4, 3, torch.float64), (4, 0, torch.float32)):  # fmt: skip
        query = torch.randn(batch.num_tokens, heads, 8, generator=generator, dtype=dtype)
        keys = torch.randn(size, 2, 8, generator=generator, dtype=dtype)
        got = plan.attend(query, keys, keys, scale=0.5, window=window)
        assert got.dtype == dtype
        expected = by_definition(batch, query, keys, keys, 0.5, window, 0.0)
        torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=0)


def test_only_the_named_segments_rows_are_written() -> None:
    batch, size = make_batch([(3, 2, None), (4, 1, None), (0, 3, None)], 1)
    query, pool = torch.randn(6, 2, 4), torch.randn(size, 2, 4)
    out = torch.full((6, 2, 4), 7.0)
    SlotAttention(batch, [0, 2]).attend_into(out, query, pool, pool, scale=1.0)
    whole = SlotAttention(batch).attend(query, pool, pool, scale=1.0)
    assert (out[2] == 7.0).all()
    rest = [0, 1, 3, 4, 5]
    torch.testing.assert_close(out[rest], whole[rest])


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_a_slot_that_holds_nan_does_not_reach_who_does_not_see_it(softcap: float) -> None:
    """A request whose numbers overflowed leaves them in its slots; slot 0, which pads groups, is as good as any."""
    batch, size = make_batch([(5, 1, None), (6, 1, None), (4, 3, [-1, -1, 1])], 2)
    query = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(2))
    pool = torch.randn(size, 2, 4, generator=torch.Generator().manual_seed(3))
    expected = SlotAttention(batch).attend(query, pool, pool, scale=1.0, softcap=softcap)
    seen = {s for segment in batch.segments for s in (*segment.context.tolist(), *segment.slots.tolist())}
    pool[[s for s in range(size) if s not in seen]] = float("nan")
    got = SlotAttention(batch).attend(query, pool, pool, scale=1.0, softcap=softcap)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("window", [0, 4])
def test_the_kernels_and_the_reference_agree_on_a_mixed_batch(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONG_CHUNK", 6)
    monkeypatch.setattr(attention, "LONG_CONTEXT", 10)  # the third segment alone goes the reference's way
    batch, size = make_batch(
        [(20, 1, None), (9, 7, None), (10, 7, None), (9, 4, [-1, 0, 0, 2]), (3, 1, None), (12, 5, None)], 4
    )
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(batch.num_tokens, 4, 16, generator=generator)
    keys, values = torch.randn(size, 2, 16, generator=generator), torch.randn(size, 2, 16, generator=generator)
    kernels = native.load()
    if kernels is None:
        pytest.skip("no C compiler")
    plan = KernelAttention(batch, kernels)
    got = plan.attend(query, keys, values, scale=0.25, window=window)
    expected = by_definition(batch, query, keys, values, 0.25, window, 0.0)
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=0)


@given(st.integers(1, 9).flatmap(parents))
def test_tree_mask_is_the_ancestors_and_itself(tree: list[int]) -> None:
    mask = tree_mask(tree)
    for i in range(len(tree)):
        ancestors, node = set(), i
        while node >= 0:
            ancestors.add(node)
            node = tree[node]
        assert set(np.flatnonzero(mask[i]).tolist()) == ancestors


@pytest.mark.parametrize("tree", [[0], [-1, 1], [-1, 0, 3, 1]])
def test_a_parent_must_come_first(tree: list[int]) -> None:
    with pytest.raises(ValueError, match="comes before its parent"):
        tree_mask(tree)


def test_a_chain_continues_the_context() -> None:
    segment = Segment.chain([5, 6, 7], np.array([9, 8, 3]), np.array([1, 2]))
    assert segment.positions.tolist() == [2, 3, 4]
    assert segment.tokens.dtype == segment.positions.dtype == np.int64
    assert segment.tree is None


def test_a_packed_batch_lays_segments_end_to_end() -> None:
    batch, _ = make_batch([(2, 3, None), (0, 1, None), (5, 2, [-1, -1])], 6)
    assert (batch.lengths, batch.starts, batch.num_tokens) == ([3, 1, 2], [0, 3, 4], 6)
    assert batch.positions.tolist() == [2, 3, 4, 0, 5, 5] == batch.host_positions.tolist()
    assert (
        batch.slots.tolist() == batch.host_slots.tolist() == [s for seg in batch.segments for s in seg.slots.tolist()]
    )
    assert batch.token_ids.tolist() == [t for seg in batch.segments for t in seg.tokens.tolist()]
    assert batch.token_ids.dtype == batch.positions.dtype == batch.slots.dtype == torch.int64
