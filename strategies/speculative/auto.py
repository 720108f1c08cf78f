"""The adaptive tree: which draft tree, if any, makes a step emit most tokens per second.

A step emits, of each sequence, 1 + A_1 + A_1 A_2 + ... expected tokens, A_l being the probability that a family of its
tree's level l has a child accepted, and takes the draft's forwards, the target's, and the verification. A tree that
pays alone need not pay in a batch: every sequence waits for the step, so what counts is the step's throughput. Pure
functions of numbers: acceptance of past rounds and past timings, nothing that the next round draws.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.speculative.acceptance_estimate import LEVELS, WIDTH, Estimate
from strategies.speculative.step_cost import Numbers, StepCosts

NGRAM = "ngram"
"""Name of the drafter that looks up the context: no forward, and chains only."""
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
HEADS = ((1,), (2,), (3,), (4,), (2, 2), (3, 2), (2, 2, 2))
"""How trees branch at their top; below, every node has one child."""
LARGEST = 64
"""Most nodes of a tree that is considered."""
MARGIN = 0.05
"""Speculation must promise this much more than plain decoding: estimates are noisy, and plain decoding is certain."""
FARTHEST = 2
"""A step may be this many times as large as the largest one that was timed: beyond, its cost is a mere guess."""
OFF = -1


class Shape(NamedTuple):
    """A draft tree: children of each node, level by level, and who drafts."""

    drafter: str
    branching: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Nodes of each level."""
        return tuple(accumulate(self.branching, mul))

    @property
    def nodes(self) -> int:
        return sum(self.widths)

    def __str__(self) -> str:
        """As usage reports it: `early-exit 2x1x1`."""
        return f"{self.drafter} {'x'.join(map(str, self.branching))}"


def shapes_of(drafters: Iterable[str], max_nodes: int) -> list[Shape]:
    """All candidates of at most `max_nodes` nodes."""
    found = []
    for drafter in drafters:
        heads = HEADS[:1] if drafter == NGRAM else HEADS
        for head in heads:
            for length in LENGTHS:
                shape = Shape(drafter, (*head[:length], *(1,) * (length - len(head))))
                if shape.nodes <= max_nodes and len(head) <= length:
                    found.append(shape)
    return found


class Menu:
    """Candidate shapes as arrays: branching, widths [C, LEVELS] (0 below the last level), nodes [C]."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = list(shapes)
        self.branching = np.zeros((len(shapes), LEVELS), np.int64)
        self.widths = np.zeros((len(shapes), LEVELS))
        for i, shape in enumerate(shapes):
            self.branching[i, : len(shape.branching)] = shape.branching
            self.widths[i, : len(shape.widths)] = shape.widths
        self.nodes = self.widths.sum(-1)
        # What each draft forward computes: the root, then every level but the last.
        self.forwards = np.concatenate([np.ones((len(shapes), 1)), self.widths[:, :-1]], -1) * (self.widths > 0)
        self.drafters = sorted({shape.drafter for shape in shapes})
        self.of_drafter = {
            name: np.array([i for i, shape in enumerate(shapes) if shape.drafter == name], np.int64)
            for name in self.drafters
        }

    def __len__(self) -> int:
        return len(self.shapes)

    def expected_tokens(self, which: NDArray[np.int64], estimate: Estimate, levels: int) -> Numbers:
        """Tokens that each of the shapes `which` yields in a round of at most `levels` levels, float64 [len(which)]."""
        refused = np.concatenate([[1.0], np.cumprod(1.0 - estimate.others)])  # by number of children, from 1
        branching = self.branching[which]
        accepted = 1.0 - (1.0 - estimate.first) * refused[np.clip(branching, 1, WIDTH) - 1]
        accepted = np.where((branching > 0) & (np.arange(LEVELS) < levels), accepted, 0.0)
        return np.asarray(1.0 + np.cumprod(accepted, -1).sum(-1))


class Load(NamedTuple):
    """The step without speculation: tokens of the target's forward, sequences that emit one, trees that others have."""

    tokens: int
    outputs: int
    trees: int = 0


class Choice(NamedTuple):
    """chosen: for each sequence the index of its shape, or OFF. rate, plain: tokens per second with it and without."""

    chosen: list[int]
    rate: float
    plain: float


def choose(
    menu: Menu, expected: Numbers, behind: Numbers, load: Load, costs: StepCosts, deciding: float = 0.0
) -> Choice:
    """The shapes that maximise the step's tokens per second.

    expected: float64 [C, B], tokens that sequence b yields with shape c; 1 where it can't have that shape. behind:
    float64 [C, B], tokens of its history that the shape's drafter must compute first. load: of the step, one token of
    each of the B sequences included. deciding: seconds that choosing takes in every step with trees, which plain
    decoding is spared. Per shape, those sequences that gain most are taken, as many as pay; then the rest is offered
    what is left over of the shapes. All stay off while the target's cost is unknown.
    """
    shapes, sequences = expected.shape
    chosen = [OFF] * sequences
    if not costs.target.known or not shapes:
        return Choice(chosen, 0.0, 0.0)
    plain = load.outputs / float(_seconds(costs, np.array(float(load.tokens)), np.array(float(load.trees))))
    rate, tokens, outputs, trees, drafting = plain, float(load.tokens), float(load.outputs), float(load.trees), 0.0
    left = np.arange(sequences)
    reach = max(load.tokens, FARTHEST * costs.target.largest) + FARTHEST
    for needed in (1.0 + MARGIN, 1.0 + MARGIN / 3):
        if not len(left):
            break
        counts = _counts(len(left))
        gains = expected[:, left] - 1.0
        order = np.argsort(-gains, axis=-1, kind="stable")
        gained = np.cumsum(np.take_along_axis(gains, order, -1), -1)[:, counts - 1]
        history = np.cumsum(np.take_along_axis(behind[:, left], order, -1), -1)[:, counts - 1]
        draft = _draft_seconds(menu, history, counts, costs)
        total = tokens + menu.nodes[:, None] * counts
        seconds = _seconds(costs, total, trees + counts.astype(np.float64))
        seconds = seconds + draft + drafting + deciding
        rates = np.where(total <= reach, (outputs + gained) / seconds, 0.0)
        best = int(rates.argmax())
        shape, count = best // len(counts), int(counts[best % len(counts)])
        if float(rates.flat[best]) < needed * rate:
            break
        taken = order[shape, :count]
        for place in taken:
            chosen[left[place]] = shape
        rate = float(rates.flat[best])
        tokens, trees = tokens + float(menu.nodes[shape]) * count, trees + count
        outputs, drafting = outputs + float(gained.flat[best]), drafting + float(draft.flat[best])
        left = np.delete(left, taken)
    return Choice(chosen, rate, plain)


def extra_seconds(menu: Menu, shape: int, behind: float, load: Load, costs: StepCosts) -> float:
    """What a step costs more if one sequence takes this shape."""
    one = np.array([1])
    draft = _draft_seconds(menu, np.full((len(menu), 1), behind), one, costs)[shape, 0]
    tokens, trees = np.array([load.tokens, load.tokens + menu.nodes[shape]]), np.array([load.trees, load.trees + 1.0])
    plain, more = _seconds(costs, tokens, trees)
    return float(draft + more - plain)


def _seconds(costs: StepCosts, tokens: Numbers, trees: Numbers) -> Numbers:
    return costs.target(tokens) + costs.verification(trees)


def _draft_seconds(menu: Menu, history: Numbers, counts: NDArray[np.int64], costs: StepCosts) -> Numbers:
    """Seconds of all draft forwards, float64 [C, K], for counts[k] sequences that lack history[c, k] tokens."""
    tokens = menu.forwards[:, None, :] * counts[:, None].astype(np.float64)
    tokens[:, :, 0] = tokens[:, :, 0] + history
    seconds = np.zeros(tokens.shape[:2])
    for drafter, which in menu.of_drafter.items():
        if drafter != NGRAM:
            seconds[which] = costs.draft(drafter, tokens[which]).sum(-1)
    return seconds


def _counts(most: int) -> NDArray[np.int64]:
    """Numbers of sequences to consider: all small ones, then some, then all."""
    grid = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    return np.array([count for count in grid if count < most] + [most])
