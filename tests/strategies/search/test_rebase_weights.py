"""REBASE: properties of the allocations, and the budget over a simulated search."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.search.rebase_weights import (
    affordable_budget,
    allocate,
    effective_parents,
    remaining,
    round_half_up,
    shares,
    transformed,
)

SEARCHED = settings(max_examples=150, deadline=None, derandomize=True)
REWARDS = st.lists(st.floats(0, 1).map(lambda r: round(r, 3)), min_size=1, max_size=32)
TEMPERATURE = st.floats(0.005, 2)
EXACT = pytest.mark.parametrize("rule", ["seq_ceil", "largest_remainder"])


@EXACT
@SEARCHED
@given(rewards=REWARDS, budget=st.integers(0, 40), temperature=TEMPERATURE)
def test_exactly_the_budget_is_spent_and_better_rewards_get_no_less(
    rule: str, rewards: list[float], budget: int, temperature: float
) -> None:
    children = allocate(rewards, budget, temperature, rule)  # type: ignore[arg-type]
    assert sum(children) == budget
    assert min(children) >= 0
    for reward, count in zip(rewards, children, strict=True):
        for other, fewer in zip(rewards, children, strict=True):
            if reward > other:
                assert count >= fewer
            elif reward == other:
                assert abs(count - fewer) <= 1


@SEARCHED
@given(rewards=REWARDS, budget=st.integers(1, 40), temperature=TEMPERATURE)
def test_an_allocation_lies_near_the_share(rewards: list[float], budget: int, temperature: float) -> None:
    exact = shares(rewards, budget, temperature)
    assert sum(exact) == pytest.approx(budget)
    for count, share in zip(allocate(rewards, budget, temperature, "largest_remainder"), exact, strict=True):
        assert abs(count - share) < 1 + 1e-6
    rounded = allocate(rewards, budget, temperature, "round_half_up")
    assert sum(rounded) > 0  # the search can't die
    if any(round_half_up(rewards, budget, temperature)):
        assert rounded == round_half_up(rewards, budget, temperature)


@SEARCHED
@given(rewards=REWARDS, budget=st.integers(1, 40))
def test_extreme_temperatures_are_plain_sampling_and_greedy(rewards: list[float], budget: int) -> None:
    for count in allocate(rewards, budget, 1e6, "largest_remainder"):
        assert abs(count - budget / len(rewards)) < 1
    cold = allocate(rewards, budget, 1e-6)
    assert all(count == 0 or reward == max(rewards) for count, reward in zip(cold, rewards, strict=True))


def test_rewards_that_differ_in_noise_alone_tie_by_order() -> None:
    assert allocate([0.5, 0.5 + 1e-9, 0.5 - 1e-9], 4, 0.1) == [2, 1, 1]


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_node_without_a_score_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        allocate([0.5, reward], 4, 0.1)


@EXACT
@SEARCHED
@given(seed=st.integers(0, 10**6), width=st.integers(1, 16))
def test_over_a_search_the_budget_is_the_number_of_open_nodes(rule: str, seed: int, width: int) -> None:
    noise = random.Random(seed)
    budget, frontier, finished, dead = width, [width], 0, 0
    for _ in range(25):
        assert sum(frontier) == budget
        kids = [noise.random() for count in frontier for _ in range(count)]
        ended = [kid for kid in kids if kid < 0.15]
        lost = [kid for kid in kids if 0.15 <= kid < 0.2]
        open_nodes = [kid for kid in kids if kid >= 0.2]
        finished, dead = finished + len(ended), dead + len(lost)
        budget = remaining(budget, len(ended), len(lost))
        assert budget == len(open_nodes)
        if not open_nodes:
            break
        frontier = allocate(open_nodes, budget, 0.2, rule)  # type: ignore[arg-type]
        if width == 1:
            assert frontier == [1]
    assert finished + dead + budget == width


def test_the_budget_is_lowered_to_what_the_tokens_pay_for() -> None:
    assert affordable_budget(16, None, 30.0) == 16
    assert affordable_budget(16, 100, 30.0) == 3
    assert affordable_budget(16, 20, 30.0) == 0
    assert affordable_budget(2, 1000, 30.0) == 2


@SEARCHED
@given(REWARDS)
def test_transforms_keep_the_order(rewards: list[float]) -> None:
    for transform in ("none", "logit", "rank"):
        values = transformed(rewards, transform)  # type: ignore[arg-type]
        for i, j in ((i, j) for i in range(len(rewards)) for j in range(len(rewards)) if rewards[i] <= rewards[j]):
            assert values[i] <= values[j]


def test_transforms() -> None:
    assert transformed([0.0, 0.5, 1.0], "logit") == [-6.0, 0.0, 6.0]
    assert transformed([0.9, 0.99, 0.9, 0.1], "rank") == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert transformed([0.3], "rank") == [0.5]


def test_effective_parents_counts_those_that_go_on() -> None:
    assert effective_parents([4, 4, 4, 4]) == 4
    assert effective_parents([16, 0, 0, 0]) == 1
    assert effective_parents([0, 0]) == 0
