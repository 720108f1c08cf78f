"""Acceptance estimates: beliefs, what observations make of them, and how fast they follow a change."""

import random

import numpy as np
import pytest

from strategies.speculative.acceptance_estimate import (
    LEVELS,
    START,
    START_FIRST,
    START_OTHER,
    AcceptanceCounts,
    Family,
    estimate,
    own_counts,
    shared_counts,
)


def rounds(
    first: float, other: float, count: int, length: int = 4, width: int = 3, seed: int = 1
) -> list[list[Family]]:
    """Rounds of a drafter whose children are accepted with these probabilities."""
    draw = random.Random(1)
    made = []
    for _ in range(count):
        families: list[Family] = []
        while len(families) < length and (not families or families[-1].accepted >= 0):
            chances = [first] + [other] * (width - 1)
            families.append(Family(width, next((k for k, p in enumerate(chances) if draw.random() < p), -1)))
        made.append(families)
    return made


def test_nothing_known_is_the_optimistic_start() -> None:
    found = estimate(own_counts(), shared_counts())
    assert found.first == pytest.approx([START_FIRST] * LEVELS)
    assert found.others == pytest.approx([START_OTHER] * 3)


@pytest.mark.parametrize(("first", "other"), [(0.9, 0.5), (0.2, 0.1), (0.6, 0.0)])
def test_many_rounds_give_the_truth(first: float, other: float) -> None:
    """Means of about 500 Bernoulli observations, the fading's memory: 5 sigma is 0.11 at most."""
    counts = AcceptanceCounts(0.998)
    for families in rounds(first, other, 3000):
        counts.observe(families)
    found = counts.estimate(START, 3.0)
    assert found.first[0] == pytest.approx(first, abs=0.11)
    assert found.others[:2] == pytest.approx([other] * 2, abs=0.11)
    assert found.others[2] == START_OTHER  # no family had a fourth child


def test_refusals_at_the_root_lower_the_levels_that_were_never_reached() -> None:
    own, shared = own_counts(), shared_counts()
    for _ in range(60):
        own.observe([Family(1, -1)])
        shared.observe([Family(1, -1)])
    found = estimate(own, shared)
    assert found.first[0] < 0.02
    assert bool((found.first < 0.05).all())
    assert bool((np.diff(found.first) <= 1e-12).all())


def test_a_new_sequence_begins_with_what_others_found() -> None:
    shared = shared_counts()
    for families in rounds(0.1, 0.1, 300):
        shared.observe(families)
    assert estimate(own_counts(), shared).first[0] < 0.2


def test_a_sequence_differs_from_the_others_and_may_change() -> None:
    own, shared = own_counts(), shared_counts()
    for families in rounds(0.2, 0.1, 500):
        shared.observe(families)
    for _ in range(40):
        own.observe([Family(1, 0)] * 4)
    assert estimate(own, shared).first[0] > 0.8
    for _ in range(60):
        own.observe([Family(1, -1)])
    assert estimate(own, shared).first[0] < 0.25
