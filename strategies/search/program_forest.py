"""The tree of Scattered Forest Search (arXiv 2411.05010): programs, and directions in which each is changed.

    UCT(j)  = value_j + c sqrt(ln(visits_i) / visits_j)                           child j of i
    PUCT(j) = value_j + beta p_j sqrt(ln(visits_i) / (1 + visits_j)),  beta = ln((1 + visits_i + c_base) / c_base) + c
    p       = softmax over siblings of the log-probability of their directions
    backup    value <- max(value, child's score), up to the root

A virtual root, whose score is -1, has the seeds as children, so which tree is next is decided by the same rule. A pass
stops at a node with an open direction, or without a child that is strictly better: such a node gets new directions, one
program for each pass. Visits count passes and start at 1. Where the paper leaves something open, this follows its
released code (commit 9185737). A child that is its parent over again is closed: what could be tried there is what can
be tried at the parent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from strategies.search.uct import SelectionRule, uct

C_BASE = 10.0
State = Literal["open", "pending", "done"]


def reward(results: Sequence[bool]) -> float:
    """The share of tests passed; 0 without tests."""
    return sum(results) / len(results) if results else 0.0


def priors(logprobs: Sequence[float]) -> list[float]:
    """The softmax of the siblings' log-probabilities."""
    most = max(logprobs)
    weights = [math.exp(logprob - most) for logprob in logprobs]
    return [weight / sum(weights) for weight in weights]


def forest_puct(
    value: float, prior: float, parent_visits: int, visits: int, c: float = 2.0, c_base: float = C_BASE
) -> float:
    """PUCT as the released code has it, which is not AlphaZero's."""
    beta = math.log((1 + parent_visits + c_base) / c_base) + c
    return value + beta * prior * math.sqrt(math.log(parent_visits) / (1 + visits))


def first_best(scores: Sequence[float]) -> int:
    """The first index of the largest score."""
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def no_better_child(score: float, children: Sequence[float]) -> bool:
    """Whether no child is strictly better: an equal one is not."""
    return all(child <= score for child in children)


def backed_up(path: Sequence[float], score: float) -> list[float]:
    """The values of a path after a child of that score."""
    return [max(value, score) for value in path]


@dataclass(slots=True, eq=False)
class Direction:
    """One way to change a program. text: None until the model has proposed it. logprob: of its text, for PUCT."""

    text: str | None = None
    logprob: float = 0.0
    state: State = "open"


@dataclass(slots=True, eq=False)
class ProgramNode:
    """One program. number: order of creation, -1 for the virtual root. score: its reward; value: the best below it.
    closed: never expanded."""

    number: int
    parent: "ProgramNode | None"
    score: float
    value: float
    visits: int = 1
    depth: int = 0
    solved: bool = False
    closed: bool = False
    direction: Direction | None = None
    directions: list[Direction] = field(default_factory=list)
    children: list["ProgramNode"] = field(default_factory=list)

    @property
    def open(self) -> Direction | None:
        """The first direction that nobody took."""
        return next((direction for direction in self.directions if direction.state == "open"), None)


@dataclass(frozen=True, slots=True)
class Expansion:
    """What to do next: carry out a direction at a node. new: it has to be proposed first, and others with it."""

    node: ProgramNode
    direction: Direction
    new: bool
    path: tuple[ProgramNode, ...]


@dataclass(slots=True)
class ProgramForest:
    """The state of the search. m: directions proposed at once; slots: instead of directions, a fixed number of children
    for each node, which all have to be there before a pass goes below it (the baseline `tree`). flat: no tree, but
    every direction is one of the best seed's, whatever becomes of it."""

    m: int = 2
    c: float = math.sqrt(2)
    rule: SelectionRule = "uct"
    slots: int | None = None
    flat: bool = False
    root: ProgramNode = field(default_factory=lambda: ProgramNode(-1, None, -1.0, 0.0), init=False)
    nodes: list[ProgramNode] = field(default_factory=list, init=False)

    def seed(self, score: float, *, solved: bool = False) -> ProgramNode:
        """A new tree. Its score is not backed up."""
        return self._add(self.root, None, score, solved)

    def add(self, expansion: Expansion, score: float, *, solved: bool = False, closed: bool = False) -> ProgramNode:
        """The program that a direction led to; its score is backed up. closed: it is the node's own program again, with
        the same score therefore."""
        expansion.direction.state = "done"
        child = self._add(expansion.node, expansion.direction, score, solved)
        child.closed = closed
        node: ProgramNode | None = expansion.node
        while node is not None:
            node.value = max(node.value, score)
            node = node.parent
        return child

    def rescore(self, scores: Sequence[float], solved: Sequence[bool]) -> None:
        """New scores of all nodes, in order of creation, and the values that follow from them: tests have gone."""
        for node, score, done in zip(self.nodes, scores, solved, strict=True):
            node.score, node.value, node.solved = score, score, done
        self.root.value = max([0.0, *(node.score for node in self.nodes if node.parent is not self.root)])
        for node in reversed(self.nodes):
            if node.parent is not None and node.parent is not self.root:
                node.parent.value = max(node.parent.value, node.value)

    def pick(self, batch: int = 1, *, stop_at_solved: bool = False) -> list[Expansion] | None:
        """Up to `batch` expansions by repeated passes, at least one; None if a pass ends at a solved node and that
        stops the search.

        Passes count as visits at once, which spreads a batch over the trees. A direction is picked once; a node all of
        whose directions are being carried out is passed by until they are done.
        """
        picked: list[Expansion] = []
        while len(picked) < batch:
            path = self._descend()
            if path is None:
                break
            node = path[-1]
            for passed in path:
                passed.visits += 1
            if stop_at_solved and node.solved:
                return picked or None
            new = node.open is None
            if new:
                node.directions += [Direction() for _ in range(self.m if self.slots is None else self.slots)]
            direction = node.open
            assert direction is not None
            direction.state = "pending"
            picked.append(Expansion(node, direction, new, tuple(path)))
        return picked

    def _add(self, parent: ProgramNode, direction: Direction | None, score: float, solved: bool) -> ProgramNode:
        node = ProgramNode(
            len(self.nodes), parent, score, score, depth=parent.depth + 1, solved=solved, direction=direction
        )
        parent.children.append(node)
        self.nodes.append(node)
        return node

    def _descend(self) -> list[ProgramNode] | None:
        """The nodes from the root to the one to expand; None if all that could be is being expanded."""
        if self.flat:
            free = [seed for seed in self.root.children if not self._waits(seed)]
            return [self.root, free[first_best([seed.score for seed in free])]] if free else None
        blocked: set[ProgramNode] = set()
        while self.root not in blocked:
            path = [self.root]
            while not self._stops(path[-1]):
                node = path[-1]
                left = [child for child in node.children if child not in blocked and not child.closed]
                if not left:
                    break
                path.append(left[first_best(self.scores(node, left))])
            node = path[-1]
            if node is not self.root and self._stops(node) and not self._waits(node):
                return path
            blocked.add(node)
        return None

    def scores(self, node: ProgramNode, children: Sequence[ProgramNode]) -> list[float]:
        """What the rule finds of each of these children. A pass through the node counts already."""
        visits = node.visits + 1
        if self.rule == "uct":
            return [uct(child.value, visits, child.visits, self.c) for child in children]
        shares = priors([child.direction.logprob if child.direction else 0.0 for child in children])
        return [
            forest_puct(child.value, share, visits, child.visits, self.c)
            for child, share in zip(children, shares, strict=True)
        ]

    def _stops(self, node: ProgramNode) -> bool:
        if node is self.root:
            return False
        if self.slots is not None:
            return len(node.children) < self.slots
        return node.open is not None or no_better_child(node.score, [child.score for child in node.children])

    def _waits(self, node: ProgramNode) -> bool:
        return node.open is None and any(direction.state == "pending" for direction in node.directions)
