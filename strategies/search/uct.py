"""Monte Carlo tree search over steps with a value function (arXiv 2408.00724, appendices B and C).

    UCT(s)  = Q(s) + c sqrt(ln N(parent) / N(s))                       descend to the largest
    PUCT(s) = Q(s) + c P(s) sqrt(N(parent)) / (1 + N(s))               with a prior P, as AlphaZero does
    N <- N + 1,  Q <- ((N - 1) Q + V) / N                              for every node from the root to the child

There are no rollouts: V is the child's own value. What the paper leaves open: a new child starts at Q = V, N = 1; every
child's V is backed up through its ancestors; finished nodes, and nodes below which all is finished, are passed by.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

SelectionRule = Literal["uct", "puct"]
SCORE_DIGITS = 9


def uct(q: float, parent_visits: int, visits: int, c: float = 1.0) -> float:
    """Q + c sqrt(ln N_parent / N); infinite for an unvisited node, which therefore goes first."""
    if visits == 0:
        return math.inf
    return q + c * math.sqrt(math.log(max(parent_visits, 1)) / visits)


def puct(q: float, prior: float, parent_visits: int, visits: int, c: float = 1.0) -> float:
    """Q + c P sqrt(N_parent) / (1 + N)."""
    return q + c * prior * math.sqrt(parent_visits) / (1 + visits)


def backup(q: float, visits: int, value: float) -> tuple[float, int]:
    """(Q, N) of a node after one more value: the mean over all so far."""
    visits += 1
    return ((visits - 1) * q + value) / visits, visits


@dataclass(slots=True, eq=False)
class MctsNode:
    """A state. number: order of creation, which decides ties. value: V, its own; q and visits: see `uct`.

    closed: finished, or everything below it is; selection passes it by.
    """

    number: int
    parent: "MctsNode | None"
    depth: int
    value: float
    prior: float = 1.0
    terminal: bool = False
    q: float = 0.0
    visits: int = 0
    closed: bool = False
    children: list["MctsNode"] = field(default_factory=list)


@dataclass(slots=True)
class MctsTree:
    """The search's state. root_children: children of the root; children: of any other node; expansions: their cap.

    The paper pairs root widths 4, 8, 16 with 32, 64, 128 expansions, and 2 children elsewhere.
    """

    root_children: int = 4
    children: int = 2
    expansions: int = 32
    c: float = 1.0
    rule: SelectionRule = "uct"
    expanded: int = field(default=0, init=False)
    nodes: list[MctsNode] = field(default_factory=lambda: [MctsNode(0, None, 0, 0.0)], init=False)

    def __post_init__(self) -> None:
        if self.root_children < 1 or self.children < 1:
            raise ValueError("a node is expanded by at least one child")

    @property
    def root(self) -> MctsNode:
        return self.nodes[0]

    def select(self) -> MctsNode | None:
        """The unexpanded node that the rule descends to; None if everything is finished or the cap is reached."""
        if self.root.closed or self.expanded >= self.expansions:
            return None
        node = self.root
        while node.children:
            parent = node
            node = max(
                (child for child in parent.children if not child.closed),
                key=lambda child: round(self._score(child, parent), SCORE_DIGITS),
            )
        return node

    def width(self, node: MctsNode) -> int:
        """How many children to sample for a node."""
        return self.root_children if node.parent is None else self.children

    def expand(
        self, node: MctsNode, values: list[float], terminal: list[bool], priors: list[float] | None = None
    ) -> list[MctsNode]:
        """Appends a child per value, then backs each value up, in order. No values: the node is a dead end and closes.

        Raises ValueError for a node that is expanded or closed already, or a value that is not a number.
        """
        if node.children or node.closed:
            raise ValueError("the node can't be expanded again")
        if any(math.isnan(value) for value in values):
            raise ValueError("a value is not a number")
        self.expanded += 1
        shares = [1.0 / len(values) for _ in values] if priors is None else priors
        for value, ends, prior in zip(values, terminal, shares, strict=True):
            child = MctsNode(len(self.nodes), node, node.depth + 1, value, prior, ends, q=value, visits=1, closed=ends)
            self.nodes.append(child)
            node.children.append(child)
        for value in values:
            ancestor: MctsNode | None = node
            while ancestor is not None:
                ancestor.q, ancestor.visits = backup(ancestor.q, ancestor.visits, value)
                ancestor = ancestor.parent
        self._close(node)
        return node.children

    @property
    def finished(self) -> list[MctsNode]:
        """Every finished node, in order of creation: all are candidates for the vote."""
        return [node for node in self.nodes if node.terminal]

    def _score(self, child: MctsNode, parent: MctsNode) -> float:
        if self.rule == "uct":
            return uct(child.q, parent.visits, child.visits, self.c)
        return puct(child.q, child.prior, parent.visits, child.visits, self.c)

    def _close(self, node: MctsNode) -> None:
        current: MctsNode | None = node
        while current is not None and all(child.closed for child in current.children):
            current.closed = True
            current = current.parent
