"""Cost curves: what was observed, in between, beyond, and under noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.speculative.step_cost import KEPT, CostCurve, StepCosts, isotonic

seconds = st.floats(1e-4, 10.0)


def at(curve: CostCurve, *tokens: float) -> list[float]:
    found: list[float] = curve(np.array(tokens)).tolist()
    return found


def test_a_curve_goes_through_what_it_saw_and_on_beyond() -> None:
    curve = CostCurve(slope=0.02)
    assert not curve.known
    with pytest.raises(ValueError, match="no pass"):
        curve(np.ones(1))
    curve.observe(1, 1.0)
    assert at(curve, 1, 11) == pytest.approx([1.0, 1.2])  # with one size alone, the slope is a guess
    for tokens, cost in ((4, 1.3), (8, 2.3)):
        curve.observe(tokens, cost)
    assert at(curve, 1, 2.5, 4, 6, 8, 10) == pytest.approx([1.0, 1.15, 1.3, 1.8, 2.3, 2.8])


def test_an_outlier_and_the_distant_past_do_not_count() -> None:
    curve = CostCurve()
    for cost in (1.0, 50.0, 1.1):
        curve.observe(3, cost)
    assert at(curve, 3) == [1.1]
    for _ in range(KEPT):
        curve.observe(3, 2.0)
    assert at(curve, 3) == [2.0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(passes=st.lists(st.tuples(st.integers(1, 300), seconds), min_size=1, max_size=30))
def test_a_larger_pass_never_costs_less(passes: list[tuple[int, float]]) -> None:
    curve = CostCurve()
    for tokens, cost in passes:
        curve.observe(tokens, cost)
    costs = curve(np.arange(1.0, 600.0))
    assert bool((np.diff(costs) >= -1e-12).all())
    known = [cost for _, cost in passes]
    assert min(known) - 1e-9 <= costs[0] <= max(known) + 1e-9


@settings(max_examples=200, deadline=None, derandomize=True)
@given(points=st.lists(st.tuples(seconds, st.integers(1, 9)), min_size=1, max_size=8))
def test_isotonic_regression_is_the_nearest_rising_sequence(points: list[tuple[float, int]]) -> None:
    """By the min-max formula: the value at i is the largest over starts of the smallest over ends of the mean."""
    values, weights = [value for value, _ in points], [weight for _, weight in points]

    def mean(start: int, stop: int) -> float:
        pairs = list(zip(values, weights, strict=True))[start:stop]
        return sum(v * w for v, w in pairs) / sum(w for _, w in pairs)

    count = len(points)
    expected = [max(min(mean(a, b) for b in range(i + 1, count + 1)) for a in range(i + 1)) for i in range(count)]
    assert isotonic(values, weights) == pytest.approx(expected)


def test_a_draft_is_guessed_until_it_is_measured() -> None:
    costs = StepCosts(drafts={"small": CostCurve()}, ratios={"small": 0.25})
    costs.target.observe(1, 2.0)
    assert costs.draft("small", np.array([0.0, 1.0])).tolist() == [0.0, 0.5]
    assert costs.draft("ngram", np.array([5.0])).tolist() == [0.0]
    assert costs.verification(np.array([3.0])).tolist() == [0.0]
    costs.drafts["small"].observe(1, 0.7)
    costs.verify.observe(2, 0.2)
    assert costs.draft("small", np.array([0.0, 1.0])).tolist() == [0.0, 0.7]
    assert costs.verification(np.array([0.0, 2.0])).tolist() == [0.0, 0.2]
