"""phi-decoding's step value and draws without replacement: the invariants of its specification."""

import math
from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.search.boltzmann import log_softmax, softmax
from strategies.search.phi_value import advantage, alignment, eligible, joint
from strategies.search.plackett_luce import (
    draw_without_replacement,
    gumbel_keys,
    inclusion_probabilities,
    sequence_probability,
)

SEARCHED = settings(max_examples=50, deadline=None, derandomize=True)
ADVANTAGES = st.lists(st.floats(-3, 3), min_size=1, max_size=12)
TAUS = st.floats(0.05, 2)


def logarithms(p: list[float]) -> list[float]:
    return [math.log(value) if value > 0 else -math.inf for value in p]


@SEARCHED
@given(ADVANTAGES, st.data(), TAUS, TAUS)
def test_mean_is_half_of_r_and_keeps_the_floor_of_both_parts(
    A: list[float], data: st.DataObject, tau1: float, tau2: float
) -> None:
    labels = data.draw(st.lists(st.integers(0, 3), min_size=len(A), max_size=len(A)))
    pa, pc = softmax(A, tau1), softmax(alignment(labels), tau2)
    p = joint(pa, pc, "mean", 0.6)
    assert sum(p) == pytest.approx(1)
    for probability, a, c in zip(p, pa, pc, strict=True):
        assert probability == pytest.approx((a + c) / 2)
        assert probability >= max(a, c) / 2 - 1e-15


@SEARCHED
@given(ADVANTAGES, TAUS, TAUS)
def test_boltzmann_is_a_flatter_distribution_in_the_same_order(A: list[float], tau1: float, tau: float) -> None:
    pa, pc = softmax(A, tau1), [1 / len(A)] * len(A)
    p = joint(pa, pc, "boltzmann", tau)
    assert sum(p) == pytest.approx(1)
    assert max(p) / min(p) <= math.exp(1 / tau) * (1 + 1e-9)  # R spans at most 1 while pc is uniform
    order = sorted(range(len(A)), key=lambda i: pa[i])
    assert all(p[i] <= p[j] + 1e-12 for i, j in pairwise(order))


@SEARCHED
@given(ADVANTAGES, st.floats(-5, 5), TAUS)
def test_a_constant_added_to_all_advantages_changes_nothing(A: list[float], constant: float, tau: float) -> None:
    assert softmax([a + constant for a in A], tau) == pytest.approx(softmax(A, tau), abs=1e-9)


@SEARCHED
@given(st.lists(st.floats(-3, 0), min_size=1, max_size=8), st.floats(-2, 0))
def test_with_one_beam_foresight_and_advantage_weigh_alike(F: list[float], previous: float) -> None:
    A = advantage(F, [0] * len(F), [previous])
    assert softmax([a for a in A if a is not None], 0.1) == pytest.approx(softmax(F, 0.1), abs=1e-9)


@SEARCHED
@given(st.lists(st.integers(0, 4), min_size=1, max_size=16), st.permutations(range(5)))
def test_alignment_is_a_share_of_what_was_clustered(labels: list[int], renamed: list[int]) -> None:
    C = alignment(labels)
    n = len(labels)
    assert all(1 / n <= c <= 1 for c in C)
    assert sum(C) == pytest.approx(sum(labels.count(k) ** 2 for k in set(labels)) / n)
    assert alignment([renamed[label] for label in labels]) == C


@SEARCHED
@given(st.integers(1, 9), TAUS)
def test_equal_shares_weigh_uniformly(n: int, tau: float) -> None:
    assert softmax([0.3] * n, tau) == pytest.approx([1 / n] * n)


@pytest.mark.parametrize("scores", [[math.nan], [0.0, math.inf], [-math.inf]])
def test_softmax_refuses_scores_that_are_not_finite(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        softmax(scores, 1.0)


def test_softmax_refuses_a_temperature_of_zero_and_is_empty_for_nothing() -> None:
    with pytest.raises(ValueError, match="temperature"):
        softmax([1.0], 0.0)
    assert softmax([], 1.0) == []


def test_eligibility_of_each_rule() -> None:
    A = [0.1, -0.1, 0.2, None, math.nan, 0.0]
    texts = ["text", "text", " \n", "text", "text", "text"]
    assert eligible("all", A, texts) == [0, 1, 2, 5]
    assert eligible("nonblank", A, texts) == [0, 1, 5]
    assert eligible("positive", A, texts) == [0]


def test_nothing_is_positive_at_the_first_step() -> None:
    A = advantage([-0.3, -0.1, 0.0], [0, 0, 1], [0.0, 0.0])
    assert eligible("positive", A, ["text"] * 3) == []


@SEARCHED
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 0.999)), max_size=10), st.integers(0, 12))
def test_draws_are_distinct_and_impossible_items_come_last(items: list[tuple[float, float]], count: int) -> None:
    p, u = [item[0] for item in items], [item[1] for item in items]
    drawn = draw_without_replacement(logarithms(p), u, count)
    assert len(set(drawn)) == len(drawn) == min(count, len(p))
    possible = [p[i] > 0 for i in drawn]
    assert possible == sorted(possible, reverse=True)
    assert sum(possible) == min(count, sum(value > 0 for value in p))


@SEARCHED
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.001, 0.999)), min_size=2, max_size=8, unique=True), st.data())
def test_permuting_candidates_and_their_uniforms_permutes_the_draw(
    items: list[tuple[float, float]], data: st.DataObject
) -> None:
    keys = gumbel_keys(logarithms([p for p, _ in items]), [u for _, u in items])
    if len(set(keys)) < len(keys):
        return  # an exact tie is decided by position
    order = data.draw(st.permutations(range(len(items))))
    drawn = draw_without_replacement(logarithms([p for p, _ in items]), [u for _, u in items], 3)
    moved = [items[i] for i in order]
    again = draw_without_replacement(logarithms([p for p, _ in moved]), [u for _, u in moved], 3)
    assert [order[i] for i in again] == drawn


@SEARCHED
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.integers(0, 5))
def test_inclusion_is_the_sum_over_all_orders_of_draws(p: list[float], count: int) -> None:
    count = min(count, len(p))
    by_orders = [0.0] * len(p)
    for order in permutations(range(len(p)), count):
        for i in order:
            by_orders[i] += sequence_probability(p, order)
    assert inclusion_probabilities(p, count) == pytest.approx(by_orders)
    assert sum(by_orders) == pytest.approx(count)


def test_inclusion_of_an_impossible_item() -> None:
    assert inclusion_probabilities([0.0, 0.5, 0.5], 3) == [0.0, 1.0, 1.0]
    assert sequence_probability([0.0, 1.0], [0]) == 0.0
    assert sequence_probability([0.5, 0.5], [0, 0]) == 0.0


@pytest.mark.parametrize(
    ("logprobs", "u"), [([0.0], [0.0]), ([0.0], [1.0]), ([math.inf], [0.5]), ([math.nan], [0.5]), ([0.0], [])]
)
def test_draws_refuse_what_is_no_probability_or_no_uniform(logprobs: list[float], u: list[float]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        draw_without_replacement(logprobs, u, 1)


def test_items_keep_their_order_where_probabilities_underflow() -> None:
    logprobs = log_softmax([0.1, 0.4, 0.3, 0.2], 1e-4)
    assert softmax([0.1, 0.4, 0.3, 0.2], 1e-4) == [0, 1, 0, 0]
    assert draw_without_replacement(logprobs, [0.9, 0.1, 0.5, 0.9], 3) == [1, 2, 3]
