"""The store of responses: bounded in entries and in bytes, least recently used first, by owner."""

import json

import pytest

from decoding_server.response_store import ENTRY_OVERHEAD, ResponseStore, StoredResponse, owner_of


def stored(number=0, size=0):
    return StoredResponse({"id": f"resp_{number}", "text": "x" * size}, [{"role": "user", "content": "caf\u00e9"}])


def size_of(entry):
    text = json.dumps([entry.response, entry.items], separators=(",", ":"), ensure_ascii=False)
    return len(text.encode()) + ENTRY_OVERHEAD


def fill(store, count, owner="ann", size=0):
    for number in range(count):
        assert store.put(owner, f"resp_{number}", stored(number, size))


def kept(store, count, owner="ann"):
    """Looks without touching the order."""
    return [number for number in range(count) if (owner, f"resp_{number}") in store._entries]


def test_what_was_put_comes_back_equal_and_apart():
    store = ResponseStore(2, 10_000)
    entry = StoredResponse({"id": "resp_0", "output": []}, [{"content": "a"}])
    store.put("ann", "resp_0", entry)
    entry.response["output"].append("changed later")
    first = store.get("ann", "resp_0")
    assert (first.response, first.items) == ({"id": "resp_0", "output": []}, [{"content": "a"}])
    first.items[0]["content"] = "changed by a reader"
    assert store.get("ann", "resp_0").items == [{"content": "a"}]


def test_the_oldest_goes_first():
    store = ResponseStore(3, 1_000_000)
    fill(store, 5)
    assert kept(store, 5) == [2, 3, 4]
    assert store.get("ann", "resp_0") is None


def test_reading_makes_young():
    store = ResponseStore(3, 1_000_000)
    fill(store, 3)
    store.get("ann", "resp_0")
    store.put("ann", "resp_3", stored(3))
    assert kept(store, 4) == [0, 2, 3]


def test_bytes_are_bounded_and_counted():
    one = size_of(stored(0, 100))
    store = ResponseStore(100, 3 * one)
    fill(store, 7, size=100)
    assert kept(store, 7) == [4, 5, 6]
    assert store.bytes == 3 * one
    big = stored(7, 100 + one)  # takes the place of two
    assert store.put("ann", "resp_7", big)
    assert kept(store, 8) == [6, 7]
    assert store.bytes == one + size_of(big) <= store.max_bytes


def test_one_that_is_larger_than_the_store_is_refused_and_evicts_nothing():
    store = ResponseStore(100, 2 * size_of(stored()))
    fill(store, 2)
    assert not store.put("ann", "resp_2", stored(2, 5000))
    assert kept(store, 3) == [0, 1]


def test_the_same_id_again_replaces():
    store = ResponseStore(2, 10_000)
    store.put("ann", "resp_0", stored(0, 100))
    store.put("ann", "resp_0", stored(0, 5))
    assert (len(store), store.bytes) == (1, size_of(stored(0, 5)))
    assert store.get("ann", "resp_0").response["text"] == "xxxxx"


def test_delete_frees():
    store = ResponseStore(2, 10_000)
    fill(store, 2)
    assert store.delete("ann", "resp_0")
    assert not store.delete("ann", "resp_0")
    assert (len(store), store.bytes) == (1, size_of(stored(1)))
    store.delete("ann", "resp_1")
    assert store.bytes == 0


def test_owners_do_not_see_each_other():
    store = ResponseStore(4, 10_000)
    fill(store, 1, owner="ann")
    assert store.get("bob", "resp_0") is None
    assert not store.delete("bob", "resp_0")
    fill(store, 1, owner="bob")
    assert len(store) == 2


def test_a_store_of_size_zero_keeps_nothing():
    store = ResponseStore(0, 10_000)
    assert not store.enabled
    assert not store.put("ann", "resp_0", stored())
    assert (len(store), store.bytes) == (0, 0)


@pytest.mark.parametrize("same", ["Bearer key", "bearer key", "BEARER  key "])
def test_owner_is_the_key_not_its_spelling(same):
    assert owner_of(same) == owner_of("Bearer key")
    assert "key" not in owner_of(same)


def test_owners_differ_by_key():
    headers = [None, "Bearer a", "Bearer b", "Bearer A", "Basic a"]
    assert len({owner_of(header) for header in headers}) == len(headers)
