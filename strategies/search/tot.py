"""Depth-first tree of thoughts, as a baseline of LiteSearch (arXiv 2407.00320): prune below a threshold.

A node's children are sampled one at a time, at most `max_children`; the first that is worth at least `threshold` is
gone into at once. A node that has had all its children gives way to its parent. The first finished solution that is
not pruned ends the search (or, where several are wanted, the last of so many).
"""

import math
from dataclasses import dataclass, field

VALUE_DIGITS = 6


@dataclass(slots=True, eq=False)
class DepthFirstNode:
    """A state; number: order of creation. spent: children sampled so far, pruned ones included."""

    number: int
    parent: "DepthFirstNode | None"
    depth: int
    value: float
    terminal: bool = False
    pruned: bool = False
    spent: int = 0


@dataclass(slots=True)
class DepthFirstTree:
    """The search's state: `current` is the node to give a child next, None once the search has ended.

    max_depth: deeper than that is not gone into; None is no limit. max_nodes: cap on the nodes sampled.
    solutions_wanted: so many solutions end the search.
    """

    threshold: float = 0.5
    max_children: int = 5
    max_depth: int | None = None
    max_nodes: int | None = None
    solutions_wanted: int = 1
    nodes: list[DepthFirstNode] = field(default_factory=lambda: [DepthFirstNode(0, None, 0, 1.0)], init=False)
    solutions: list[DepthFirstNode] = field(default_factory=list, init=False)
    current: DepthFirstNode | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.max_children < 1:
            raise ValueError("a node has at least one child")
        self.current = self.nodes[0]

    def add(self, value: float, *, terminal: bool) -> DepthFirstNode:
        """The next child of `current`. Raises ValueError when the search has ended, or for a value not a number."""
        parent = self.current
        if parent is None:
            raise ValueError("the search has ended")
        if math.isnan(value):
            raise ValueError("a value is not a number")
        pruned = round(value, VALUE_DIGITS) < round(self.threshold, VALUE_DIGITS)
        child = DepthFirstNode(len(self.nodes), parent, parent.depth + 1, value, terminal, pruned)
        self.nodes.append(child)
        parent.spent += 1
        if terminal and not pruned:
            self.solutions.append(child)
            if len(self.solutions) >= self.solutions_wanted:
                self.current = None
                return child
        deeper = not terminal and not pruned and (self.max_depth is None or child.depth < self.max_depth)
        self.current = self._open(child if deeper else parent)
        if self.max_nodes is not None and len(self.nodes) - 1 >= self.max_nodes:
            self.current = None
        return child

    def best(self) -> DepthFirstNode | None:
        """The first solution; else the pruned finished node of highest value; else the deepest node that was not pruned
        (of higher value, then the earlier, among equals). None: only the root. What a search out of budget answers
        with."""
        if self.solutions:
            return self.solutions[0]
        sampled = self.nodes[1:]
        finished = [node for node in sampled if node.terminal]
        if finished:
            return max(finished, key=lambda node: round(node.value, VALUE_DIGITS))
        return max(
            sampled, key=lambda node: (not node.pruned, node.depth, round(node.value, VALUE_DIGITS)), default=None
        )

    def _open(self, node: DepthFirstNode) -> DepthFirstNode | None:
        """The nearest of the node and its ancestors that may have another child."""
        current: DepthFirstNode | None = node
        while current is not None and current.spent >= self.max_children:
            current = current.parent
        return current
