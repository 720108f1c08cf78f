"""Slot pools: every slot is given out once, and comes back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.torch_runtime.kv_pool import SlotPool, slot_bytes


def pool(num_slots: int) -> SlotPool:
    return SlotPool(
        num_layers=2, num_slots=num_slots, kv_heads=3, head_dim=4, dtype=torch.float16, device=torch.device("cpu")
    )


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(0, 99)), max_size=40))
def test_slots_are_handed_out_once_and_conserved(operations: list[tuple[bool, int, int]]) -> None:
    slots, allocated = pool(20), list[int]()
    for take, count, pick in operations:
        if take and count <= slots.num_free:
            got = slots.allocate(count)
            assert got.dtype == np.int64
            assert len(got) == count
            assert not set(got.tolist()) & set(allocated)
            allocated += got.tolist()
        elif take:
            with pytest.raises(MemoryError, match=f"{count} KV slots asked for, {slots.num_free} free"):
                slots.allocate(count)
        else:
            start = pick % (len(allocated) + 1)
            back, allocated = allocated[start : start + count], allocated[:start] + allocated[start + count :]
            slots.free(np.array(back, np.int64))
        assert slots.num_free == 20 - len(allocated)
        assert len(set(allocated)) == len(allocated)
    assert sorted(allocated + slots.allocate(slots.num_free).tolist()) == list(range(20))


def test_what_was_allocated_stays_valid_while_others_come_and_go() -> None:
    slots = pool(8)
    first, second = slots.allocate(4), slots.allocate(4)
    kept = second.copy()
    slots.free(first)
    assert second.tolist() == kept.tolist()


def test_fresh_slots_ascend() -> None:
    slots = pool(10)
    assert slots.allocate(3).tolist() == [0, 1, 2]
    assert slots.allocate(4).tolist() == [3, 4, 5, 6]


def test_a_freed_run_is_given_out_in_the_same_order() -> None:
    slots = pool(10)
    slots.allocate(2)
    run = slots.allocate(5)
    slots.free(run)
    assert slots.allocate(5).tolist() == run.tolist()


def test_freeing_more_than_was_allocated_is_a_bug() -> None:
    slots = pool(4)
    taken = slots.allocate(2)
    slots.free(taken)
    with pytest.raises(AssertionError, match="more KV slots freed"):
        slots.free(taken)


def test_pools_are_zeros_per_layer() -> None:
    slots = pool(6)
    for tensors in (slots.keys, slots.values):
        assert [tuple(t.shape) for t in tensors] == [(6, 3, 4)] * 2
        assert all(t.dtype == torch.float16 and not t.any() for t in tensors)
    slots.keys[0][5] = 1.0
    assert not slots.keys[1].any()
    assert not slots.values[0].any()


def test_slot_bytes_is_what_the_pools_take() -> None:
    slots = pool(6)
    total = sum(t.nbytes for t in slots.keys + slots.values)
    assert total == 6 * slot_bytes(num_layers=2, kv_heads=3, head_dim=4, dtype=torch.float16)
