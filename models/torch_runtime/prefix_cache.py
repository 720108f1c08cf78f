"""The prefix cache: a radix tree over token ids whose nodes own KV slots.

Token granularity: two prompts share exactly their common prefix, if they have the same salt (a tenant's secret, by
default empty): each salt has a tree of its own. A node is referenced while a running sequence reads
its slots; the least recently used leaves that nobody references are evicted when slots run out.
"""

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.torch_runtime.kv_pool import SlotPool, Slots

Tokens = NDArray[np.int32]


class Node:
    """A run of tokens below its parent; `references` counts running sequences that read it (or something below it)."""

    __slots__ = ("children", "last_used", "parent", "references", "slots", "tokens")

    def __init__(self, tokens: Tokens, slots: Slots, parent: "Node | None") -> None:
        self.tokens = tokens
        self.slots = slots
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.references = 0
        self.last_used = 0


def _root() -> Node:
    return Node(np.empty(0, np.int32), np.empty(0, np.int64), None)


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Length of the longest common prefix of two token arrays."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    first = int(different.argmax()) if length else 0
    return first if length and different[first] else length


class PrefixCache:
    """Radix tree over the slots of one pool. `evictable` counts cached tokens that no running sequence references."""

    def __init__(self, pool: SlotPool) -> None:
        self._pool = pool
        self._roots = {"": _root()}
        self._clock = 0
        self.size = 0
        self.evictable = 0

    @property
    def root(self) -> Node:
        """The root of the unsalted tree."""
        return self._roots[""]

    def match(self, tokens: Tokens, salt: str = "") -> tuple[Node, Slots]:
        """The longest cached prefix of `tokens`: the node it ends at (split there if need be), and its slots."""
        self._clock += 1
        root = self._roots.get(salt)
        if root is None:
            root = _root()  # not kept before something lies below it: clients make up salts as they like
        node, found, slots = root, 0, [root.slots]
        while found < len(tokens):
            child = node.children.get(int(tokens[found]))
            if child is None:
                break
            shared = common_prefix(child.tokens, tokens[found:])
            if shared < len(child.tokens):
                child = self._split(child, shared)
            child.last_used = self._clock
            slots.append(child.slots)
            node, found = child, found + shared
            if shared == 0:
                break
        return node, np.concatenate(slots)

    def insert(self, tokens: Tokens, slots: Slots, salt: str = "") -> tuple[Node, int]:
        """Adds a computed prefix. Returns its end node and how many leading tokens the tree had already.

        The tree takes over slots[known:]; the caller keeps owning slots[:known], which duplicate the tree's.
        """
        node, cached = self.match(tokens, salt)
        known = len(cached)
        if known < len(tokens):
            leaf = Node(tokens[known:].copy(), slots[known:].copy(), node)
            leaf.last_used = self._clock
            node.children[int(tokens[known])] = leaf
            if node.parent is None:
                self._roots[salt] = node
            self.size += len(leaf.tokens)
            self.evictable += len(leaf.tokens)
            node = leaf
        return node, known

    def lock(self, node: Node) -> None:
        """Keeps the path from the root to `node` from eviction."""
        for ancestor in self._path(node):
            if ancestor.references == 0:
                self.evictable -= len(ancestor.tokens)
            ancestor.references += 1

    def unlock(self, node: Node) -> None:
        """Undoes one `lock` of the same node."""
        for ancestor in self._path(node):
            ancestor.references -= 1
            if ancestor.references == 0:
                self.evictable += len(ancestor.tokens)

    def evict(self, count: int) -> int:
        """Frees at least `count` slots, least recently used leaves first, from their ends. Returns how many it freed
        (fewer when everything else is referenced)."""
        leaves = [
            (node.last_used, id(node), node) for node in self._walk() if not node.children and not node.references
        ]
        heapq.heapify(leaves)
        freed = 0
        while leaves and freed < count:
            _, _, leaf = heapq.heappop(leaves)
            keep = max(0, len(leaf.tokens) - (count - freed))
            freed += len(leaf.tokens) - keep
            self._pool.free(leaf.slots[keep:])
            if keep:
                leaf.tokens, leaf.slots = leaf.tokens[:keep].copy(), leaf.slots[:keep].copy()
                continue
            parent = leaf.parent
            assert parent is not None
            del parent.children[int(leaf.tokens[0])]
            if parent.parent is not None and not parent.children and not parent.references:
                heapq.heappush(leaves, (parent.last_used, id(parent), parent))
        self.size -= freed
        self.evictable -= freed
        self._roots = {salt: root for salt, root in self._roots.items() if root.children or not salt}
        return freed

    def slots_held(self) -> Slots:
        """All slots the tree owns, for invariant checks."""
        return np.concatenate([self.root.slots, *(node.slots for node in self._walk())])

    def _split(self, node: Node, length: int) -> Node:
        """Cuts `node` after `length` tokens and returns the upper part; references and locks stay valid."""
        parent = node.parent
        assert parent is not None
        upper = Node(node.tokens[:length].copy(), node.slots[:length].copy(), parent)
        upper.references, upper.last_used = node.references, node.last_used
        upper.children[int(node.tokens[length])] = node
        parent.children[int(node.tokens[0])] = upper
        node.tokens, node.slots, node.parent = node.tokens[length:].copy(), node.slots[length:].copy(), upper
        return upper

    def _path(self, node: Node) -> Iterator[Node]:
        while node.parent is not None:
            yield node
            node = node.parent

    def _walk(self) -> Iterator[Node]:
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())
