"""The radix tree against a naive model: a dict from every cached prefix to the slot of its last token."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stepped_engine import check_counts, nodes, path

from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.prefix_cache import Node, PrefixCache, Tokens, common_prefix

SLOTS = 60
prompts = st.lists(st.integers(0, 2), max_size=9).map(tuple)
Prompt = tuple[int, ...]


def make_pool(num_slots: int = SLOTS) -> SlotPool:
    return SlotPool(
        num_layers=1, num_slots=num_slots, kv_heads=1, head_dim=1, dtype=torch.float32, device=torch.device("cpu")
    )


def ids(tokens: Prompt | str) -> Tokens:
    return np.array([ord(c) for c in tokens] if isinstance(tokens, str) else tokens, np.int32)


def add(cache: PrefixCache, pool: SlotPool, text: str) -> Node:
    """Inserts a text with fresh slots, as a sequence that computed all of it would."""
    slots = pool.allocate(len(text))
    node, known = cache.insert(ids(text), slots)
    pool.free(slots[:known].copy())
    return node


def cached(cache: PrefixCache) -> set[str]:
    """The texts from the root to each leaf."""
    return {
        "".join(chr(t) for step in path(cache, node) for t in step.tokens.tolist())
        for node in nodes(cache)
        if not node.children
    }


class CacheMachine(RuleBasedStateMachine):
    """Random inserts, matches, locks and evictions, in step with the naive model."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool()
        self.cache = PrefixCache(self.pool)
        self.model: dict[Prompt, int] = {}  # cached prefix -> slot of its last token
        self.used: dict[Prompt, int] = {}  # cached prefix -> time of the last operation that went through it
        self.locks: list[tuple[Prompt, Node]] = []
        self.clock = 0

    def known(self, tokens: Prompt) -> int:
        return next(n for n in range(len(tokens), -1, -1) if n == 0 or tokens[:n] in self.model)

    def touch(self, tokens: Prompt) -> None:
        self.clock += 1
        for n in range(1, self.known(tokens) + 1):
            self.used[tokens[:n]] = self.clock

    def referenced(self) -> set[Prompt]:
        return {tokens[:n] for tokens, _ in self.locks for n in range(1, len(tokens) + 1)}

    @rule(tokens=prompts)
    def match(self, tokens: Prompt) -> None:
        node, slots = self.cache.match(ids(tokens))
        length = self.known(tokens)
        assert slots.tolist() == [self.model[tokens[:n]] for n in range(1, length + 1)]
        assert self.spelled(node) == tokens[:length]
        self.touch(tokens)

    @rule(tokens=prompts)
    def insert(self, tokens: Prompt) -> None:
        if self.pool.num_free < len(tokens):
            return
        slots, before = self.pool.allocate(len(tokens)), self.known(tokens)
        node, known = self.cache.insert(ids(tokens), slots)
        assert known == before
        assert self.spelled(node) == tokens
        self.pool.free(slots[:known].copy())
        for n in range(known + 1, len(tokens) + 1):
            self.model[tokens[:n]] = int(slots[n - 1])
        slots[:] = -1  # the tree keeps its own copy
        self.touch(tokens)

    @rule(tokens=prompts)
    def lock(self, tokens: Prompt) -> None:
        node, _ = self.cache.match(ids(tokens))
        self.cache.lock(node)
        self.locks.append((tokens[: self.known(tokens)], node))
        self.touch(tokens)

    @precondition(lambda self: self.locks)
    @rule(pick=st.integers(0, 99))
    def unlock(self, pick: int) -> None:
        _, node = self.locks.pop(pick % len(self.locks))
        self.cache.unlock(node)

    @rule(count=st.integers(0, 14))
    def evict(self, count: int) -> None:
        free = self.pool.num_free
        freed = self.cache.evict(count)
        expected = 0
        while expected < count:
            # The naive rule, token by token: of the leaves that nobody references, cut the least recently used.
            referenced = self.referenced()
            inner = {tokens[:-1] for tokens in self.model}
            leaves = [tokens for tokens in self.model if tokens not in inner and tokens not in referenced]
            if not leaves:
                break
            # Within a node all tokens go before another leaf's turn; the node's own time is that of its last use.
            victim = min(leaves, key=lambda tokens: self.used[tokens])
            del self.model[victim], self.used[victim]
            expected += 1
        assert freed == expected
        assert self.pool.num_free == free + freed

    def spelled(self, node: Node) -> Prompt:
        return tuple(t for step in path(self.cache, node) for t in step.tokens.tolist())

    @invariant()
    def agrees(self) -> None:
        tree: dict[Prompt, int] = {}
        for node in nodes(self.cache):
            before = self.spelled(node)[: -len(node.tokens)]
            for n, slot in enumerate(node.slots.tolist(), 1):
                tree[before + tuple(node.tokens[:n].tolist())] = slot
        assert tree == self.model
        free = self.pool._free[: self.pool.num_free].tolist()
        assert sorted(free + list(self.model.values())) == list(range(SLOTS))
        assert sorted(self.cache.slots_held().tolist()) == sorted(self.model.values())

    @invariant()
    def locks_hold(self) -> None:
        for tokens, node in self.locks:
            assert self.spelled(node) == tokens
        check_counts(self.cache, [path(self.cache, node) for _, node in self.locks])
        assert self.cache.size - self.cache.evictable == len(self.referenced())


CacheMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TestAgainstNaiveModel = CacheMachine.TestCase


@given(st.lists(st.integers(0, 1), max_size=8), st.lists(st.integers(0, 1), max_size=8))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_prefix(np.array(a, np.int32), np.array(b, np.int32)) == expected


def test_two_prompts_share_exactly_their_common_prefix() -> None:
    pool = make_pool()
    cache = PrefixCache(pool)
    add(cache, pool, "abcdef")
    add(cache, pool, "abcxyz")
    assert cache.size == 9
    assert pool.num_free == SLOTS - 9
    for text, length in (("abcdef!", 6), ("abcxy", 5), ("abcq", 3), ("ab", 2), ("q", 0), ("", 0)):
        node, slots = cache.match(ids(text))
        assert len(slots) == length
        assert [t for step in path(cache, node) for t in step.tokens.tolist()] == ids(text)[:length].tolist()


def test_the_least_recently_used_leaf_goes_first_and_from_its_end() -> None:
    pool = make_pool()
    cache = PrefixCache(pool)
    for text in ("aaaa", "bbbb", "cccc"):
        add(cache, pool, text)
    cache.match(ids("aaaa"))
    assert cache.evict(2) == 2
    assert cached(cache) == {"aaaa", "bb", "cccc"}
    assert cache.evict(3) == 3
    assert cached(cache) == {"aaaa", "ccc"}
    assert cache.evict(99) == 7
    assert (cache.size, cache.evictable, pool.num_free) == (0, 0, SLOTS)


def test_a_parent_follows_its_last_child_in_its_own_turn() -> None:
    pool = make_pool()
    cache = PrefixCache(pool)
    add(cache, pool, "aax")
    add(cache, pool, "aay")
    add(cache, pool, "bbbb")
    cache.match(ids("aa"))  # now the stem is the most recently used of all
    assert cache.evict(2) == 2
    assert cached(cache) == {"aa", "bbbb"}
    assert cache.evict(4) == 4
    assert cached(cache) == {"aa"}


def test_nothing_referenced_is_evicted_and_a_second_lock_counts() -> None:
    pool = make_pool()
    cache = PrefixCache(pool)
    node = add(cache, pool, "aaaa")
    add(cache, pool, "aaaabb")
    cache.lock(node)
    cache.lock(node)
    assert cache.evictable == 2
    assert cache.evict(99) == 2
    cache.unlock(node)
    assert (cache.evictable, cache.evict(99)) == (0, 0)
    cache.unlock(node)
    assert (cache.evictable, cache.evict(99)) == (4, 4)
    assert pool.num_free == SLOTS


def test_a_lock_survives_a_split_above_it() -> None:
    pool = make_pool()
    cache = PrefixCache(pool)
    node = add(cache, pool, "abcdef")
    cache.lock(node)
    upper, _ = cache.match(ids("abc"))
    assert upper is not node
    assert (upper.references, node.references, cache.evictable) == (1, 1, 0)
    cache.unlock(node)
    assert (upper.references, node.references, cache.evictable) == (0, 0, 6)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_evict_frees_no_more_than_asked(count: int) -> None:
    pool = make_pool()
    cache = PrefixCache(pool)
    add(cache, pool, "aaaa")
    add(cache, pool, "bbbb")
    assert cache.evict(count) == count
    assert cache.size == 8 - count


def test_salts_have_trees_of_their_own_which_go_with_their_last_token() -> None:
    pool = make_pool()
    cache = PrefixCache(pool)
    for salt in ("", "a", "b"):
        cache.insert(ids("abc"), pool.allocate(3), salt)
    assert cache.size == 9
    found = [cache.match(ids("abcd"), salt)[1].tolist() for salt in ("", "a", "b", "c")]
    assert [len(slots) for slots in found] == [3, 3, 3, 0]
    assert len({slot for slots in found for slot in slots}) == 9
    for i in range(100):  # looked up, never filled: nothing may stay of them
        cache.match(ids("abc"), f"made up {i}")
    assert set(cache._roots) == {"", "a", "b"}
    assert cache.evict(9) == 9
    assert set(cache._roots) == {""}
    assert pool.num_free == SLOTS
