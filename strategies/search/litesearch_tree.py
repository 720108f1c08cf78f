"""LiteSearch's tree (arXiv 2407.00320; AAAI 2025): which node to expand, by how many children, and when to stop.

    s' = argmax over expandable s of v(s) + lambda p(s)       selection
    s' gets one child (incremental) or all it has left (batch)
    stop once a finished solution is worth more than theta, or nothing is left

A value is never backed up: a node keeps the value of its own state, and a solution has that of its last. The "released"
rules are those of the authors' code, which stops for more reasons and has no progress term.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from strategies.search.litesearch_budget import LiteSearchRule, child_budget, progress

Expansion = Literal["incremental", "batch"]
StopReason = Literal["threshold", "iterations", "max_finished", "no_candidate"]

VALUE_DIGITS = 6
"""Values are compared after rounding, since their last bits depend on the batch they were computed in."""
LEAST_VALUE = 1e-6
RELEASED_MARGIN = 0.01
"""The released threshold is no lower than the greedy solution's value less this."""


@dataclass(frozen=True, slots=True)
class LiteSearchOptions:
    """Parameters of the search, with the paper's defaults.

    cap: B, most children of a node. epsilon: expected accuracy, of the budget. theta: the value that ends the search;
    None where values are no probabilities. progress_weight: lambda ("paper" only). min_value: a best node below it ends
    the search ("released" only, as max_finished). value_range: values are clipped to it where a budget is made of them
    (ranking keeps their order). greedy_value_cap: most that the greedy solution's value counts in calibration (a
    confident wrong one starves the search).
    static_budget, depth_penalty, calibrate: the paper's ablations (B for every node; no 1/d; v' = v).
    """

    rule: LiteSearchRule = "released"
    expansion: Expansion = "batch"
    cap: int = 10
    epsilon: float = 0.9
    theta: float | None = 0.8
    progress_weight: float = 0.0
    max_iterations: int = 100
    max_finished: int = 5
    min_value: float = 0.01
    value_range: tuple[float, float] = (0.0, 1.0)
    greedy_value_cap: float = 1.0
    static_budget: bool = False
    depth_penalty: bool = True
    calibrate: bool = True

    def __post_init__(self) -> None:
        if self.cap < 1 or self.max_iterations < 0 or self.max_finished < 1:
            raise ValueError("cap and max_finished are at least 1, max_iterations is not negative")
        if not 0.0 < self.epsilon < 1.0:
            raise ValueError("epsilon lies in (0, 1)")


@dataclass(slots=True, eq=False)
class LiteSearchNode:
    """A state: the question and `steps` steps. number: order of creation, which decides ties.

    budget: children it may have; spent: those it had, merged duplicates included (else it would be sampled for ever).
    """

    number: int
    parent: "LiteSearchNode | None"
    steps: int
    value: float
    budget: int
    terminal: bool = False
    spent: int = 0

    @property
    def left(self) -> int:
        """Children that may still be made."""
        return 0 if self.terminal else max(self.budget - self.spent, 0)


def select(nodes: Sequence[LiteSearchNode], options: LiteSearchOptions, greedy_steps: int) -> LiteSearchNode | None:
    """The node to expand; None if there is none, or if the released rules give up. nodes: in order of creation.

    Released: finished solutions stand in the pool too, and one on top means stop; so does a best node worth less than
    `min_value`, unless it is the root.
    """
    released = options.rule == "released"
    pool = [node for node in nodes if node.left > 0 or (released and node.terminal)]

    def priority(node: LiteSearchNode) -> float:
        weight = 0.0 if released else options.progress_weight
        return round(node.value + weight * progress(node.steps, greedy_steps), VALUE_DIGITS)

    best = max(pool, key=priority, default=None)  # the first of equals
    if best is None or not released:
        return best
    hopeless = best.parent is not None and best.value < options.min_value
    return None if best.terminal or hopeless else best


def best_finished(nodes: Sequence[LiteSearchNode]) -> LiteSearchNode | None:
    """The finished solution of highest value, the first among equals."""
    finished = [node for node in nodes if node.terminal]
    return max(finished, key=lambda node: round(node.value, VALUE_DIGITS), default=None)


def threshold(options: LiteSearchOptions, greedy_value: float | None) -> float:
    """The value that a finished solution must exceed to end the search; infinite where theta is off."""
    if options.theta is None:
        return math.inf
    if options.rule == "paper" or greedy_value is None:
        return options.theta
    return max(options.theta, greedy_value - RELEASED_MARGIN)


def stop_reason(
    nodes: Sequence[LiteSearchNode],
    options: LiteSearchOptions,
    iteration: int,
    greedy_value: float | None,
    greedy_steps: int,
) -> StopReason | None:
    """Why to stop before iteration number `iteration` (from 0), or None. nodes: in order of creation."""
    best = best_finished(nodes)
    if best is not None and round(best.value, VALUE_DIGITS) > round(threshold(options, greedy_value), VALUE_DIGITS):
        return "threshold"
    if iteration >= options.max_iterations:
        return "iterations"
    if options.rule == "released" and sum(node.terminal for node in nodes) >= options.max_finished:
        return "max_finished"
    return "no_candidate" if select(nodes, options, greedy_steps) is None else None


def affordable(children: int, tokens_left: int | None, mean_step_tokens: float) -> int:
    """How many of a batch's children the token budget still pays for: at least 1. None is no limit."""
    if tokens_left is None or mean_step_tokens <= 0:
        return children
    return max(min(children, math.ceil(tokens_left / mean_step_tokens)), 1)


@dataclass(slots=True)
class LiteSearchTree:
    """The search's state: nodes in order of creation, and how many iterations have been spent.

    greedy_value, greedy_steps: v_hat and d_hat of the greedy solution, made before the search.
    """

    options: LiteSearchOptions
    greedy_value: float | None
    greedy_steps: int
    root_value: float
    iteration: int = 0
    nodes: list[LiteSearchNode] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        value = clipped(self.root_value)
        # First values are the least reliable, and this one bounds the whole tree: two children at least, if B allows.
        budget = max(self._budget(value, 0), min(2, self.options.cap))
        self.nodes.append(LiteSearchNode(0, None, 0, value, budget))

    @property
    def root(self) -> LiteSearchNode:
        return self.nodes[0]

    @property
    def finished(self) -> list[LiteSearchNode]:
        """The finished solutions, in order of creation."""
        return [node for node in self.nodes if node.terminal]

    def stop_reason(self) -> StopReason | None:
        """Why to stop now, or None; then `select` has a node."""
        return stop_reason(self.nodes, self.options, self.iteration, self.greedy_value, self.greedy_steps)

    def select(self) -> LiteSearchNode | None:
        """The node to expand next."""
        return select(self.nodes, self.options, self.greedy_steps)

    def begin_expansion(
        self, node: LiteSearchNode, tokens_left: int | None = None, mean_step_tokens: float = 0.0
    ) -> list[bool]:
        """Starts an iteration and says which children to sample: per child, whether it is the greedy one.

        The first child that a node ever has is greedy. Batch: the whole budget left, cut to what tokens_left pays for.
        Raises ValueError for a node that is closed.
        """
        if node.left == 0:
            raise ValueError("the node has no budget left")
        self.iteration += 1
        children = 1
        if self.options.expansion == "batch":
            children = affordable(node.left, tokens_left, mean_step_tokens)
        return [node.spent + index == 0 for index in range(children)]

    def add(self, parent: LiteSearchNode, value: float, *, terminal: bool, bad: bool = False) -> LiteSearchNode:
        """Appends a child, which spends one of its parent's budget.

        bad: see `bad_step`; its value becomes 0, after its budget is set, so it keeps one but is never on top.
        """
        self.spend(parent)
        value = clipped(value)
        steps = parent.steps + 1
        budget = 0 if terminal else self._budget(value, steps)
        child = LiteSearchNode(len(self.nodes), parent, steps, 0.0 if bad else value, budget, terminal)
        self.nodes.append(child)
        return child

    def spend(self, parent: LiteSearchNode) -> None:
        """A child that was merged with an equal sibling: it makes no node, but spends budget all the same."""
        if parent.left == 0:
            raise ValueError("the node has no budget left")
        parent.spent += 1

    def _budget(self, value: float, steps: int) -> int:
        options = self.options
        if options.static_budget:
            return options.cap
        greedy = self.greedy_value if options.calibrate else None
        if greedy is not None:
            greedy = min(clipped(greedy, options.value_range), options.greedy_value_cap)
        return child_budget(
            options.rule,
            clipped(value, options.value_range),
            steps + 1,
            options.epsilon,
            options.cap,
            greedy,
            depth_penalty=options.depth_penalty,
        )


def clipped(value: float, bounds: tuple[float, float] = (0.0, 1.0)) -> float:
    """The value within the bounds. Raises ValueError for one that is not a number."""
    if math.isnan(value):
        raise ValueError("a value is not a number")
    return min(max(value, bounds[0]), bounds[1])


def uncalibrated(options: LiteSearchOptions) -> LiteSearchOptions:
    """The options for values that are no probabilities: no stop at theta, budgets from values clipped to 0.05..0.95,
    and only what is worth nothing at all is hopeless. Vote in the end (`litesearch_answer`)."""
    return replace(options, theta=None, value_range=(0.05, 0.95), min_value=LEAST_VALUE)
