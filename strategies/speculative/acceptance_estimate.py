"""How likely a draft token is to be accepted, estimated while a sequence is decoded.

Two numbers describe a drafter: a_l, the probability that the first child tried at level l is accepted, given that the
level is reached, and r_k, that the k-th child is, given that those before it were refused. Every method whose first
draw comes from the draft's distribution has the same a_l, so that a chain says what a tree would accept, and the other
way round. A family of b children is accepted with probability 1 - (1 - a_l) (1 - r_2) ... (1 - r_b).

Counts fade, so that an estimate follows the text. A sequence's own counts are shrunk towards all sequences' of its
drafter, which are shrunk towards an optimistic start: a drafter is tried before it is judged. Everything here depends
on rounds that are over; that keeps whatever is chosen by it independent of the noise of the next round.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVELS, WIDTH = 16, 4
"""Deepest level and widest family that are told apart; deeper levels count as the last."""
START_FIRST, START_OTHER = 0.7, 0.3
"""What is believed of a drafter before its first round: of the first child, of each further one."""
OWN_WEIGHT, SHARED_WEIGHT = 5.0, 3.0
"""Observations that the belief counts for, in a sequence's estimate and in the drafter's."""
OWN_FADING, SHARED_FADING = 0.96, 0.998
"""What a round leaves of the counts before it."""

Numbers = NDArray[np.float64]


class Family(NamedTuple):
    """What became of one node's children: how many were tried at most, and which was accepted (-1: none)."""

    tries: int
    accepted: int


class Estimate(NamedTuple):
    """first: a_l, float64 [LEVELS]. others: r_k, float64 [WIDTH - 1], of the second child and so on."""

    first: Numbers
    others: Numbers


class AcceptanceCounts:
    """Fading counts of tries and acceptances, by level for first children and by rank for the others."""

    def __init__(self, fading: float) -> None:
        self._fading = fading
        self._tried, self._accepted = np.zeros(LEVELS), np.zeros(LEVELS)
        self._others_tried, self._others_accepted = np.zeros(WIDTH - 1), np.zeros(WIDTH - 1)

    def observe(self, families: Sequence[Family]) -> None:
        """A round: the families that verification came to, from the root down."""
        for counts in (self._tried, self._accepted, self._others_tried, self._others_accepted):
            counts *= self._fading
        for level, family in enumerate(families):
            at = min(level, LEVELS - 1)
            self._tried[at] += 1
            self._accepted[at] += family.accepted == 0
            last = family.accepted if family.accepted >= 0 else family.tries - 1
            for rank in range(1, min(last, WIDTH - 1) + 1):
                self._others_tried[rank - 1] += 1
                self._others_accepted[rank - 1] += rank == family.accepted

    def estimate(self, belief: Estimate, weight: float) -> Estimate:
        """Counts shrunk towards `belief`. Levels that are hardly reached follow the level above: where that is
        accepted more or less often than believed, so are they."""
        first = np.empty(LEVELS)
        ratio = 1.0
        for level in range(LEVELS):
            expected = min(float(belief.first[level]) * ratio, 0.995)
            first[level] = (self._accepted[level] + weight * expected) / (self._tried[level] + weight)
            ratio = float(first[level] / belief.first[level]) if belief.first[level] > 0 else 1.0
        others = (self._others_accepted + weight * belief.others) / (self._others_tried + weight)
        return Estimate(first, others)


START = Estimate(np.full(LEVELS, START_FIRST), np.full(WIDTH - 1, START_OTHER))


def shared_counts() -> AcceptanceCounts:
    """Counts of all sequences that a drafter drafts for."""
    return AcceptanceCounts(SHARED_FADING)


def own_counts() -> AcceptanceCounts:
    """Counts of one sequence."""
    return AcceptanceCounts(OWN_FADING)


def estimate(own: AcceptanceCounts, shared: AcceptanceCounts) -> Estimate:
    """What is believed of a drafter for one sequence."""
    return own.estimate(shared.estimate(START, SHARED_WEIGHT), OWN_WEIGHT)
