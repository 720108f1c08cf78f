"""Votes, best of n, agreement, early decision, and the error-compute frontier."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.search.compute_frontier import FrontierPoint, best_at_budget, binomial_standard_error, pareto_frontier
from strategies.search.voting import agreement, best_of_n, decided, ranked_answers, vote

SEARCHED = settings(max_examples=100, deadline=None, derandomize=True)
ANSWERS = st.lists(st.sampled_from(["1", "2", "3", None]), max_size=12)


@SEARCHED
@given(ANSWERS)
def test_equal_weights_are_a_majority_vote(answers: list[str | None]) -> None:
    majority, weighted = vote(answers), vote(answers, [0.25] * len(answers))
    assert (majority.answer, majority.representative) == (weighted.answer, weighted.representative)
    if majority.answer is not None:
        assert majority.weight == max(answers.count(answer) for answer in answers if answer is not None)


@SEARCHED
@given(ANSWERS, st.data())
def test_every_distinct_answer_is_ranked_once_with_its_votes(answers: list[str | None], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(-1, 1), min_size=len(answers), max_size=len(answers)))
    ranking = ranked_answers(answers, weights)
    assert {result.answer for result in ranking} == {answer for answer in answers if answer is not None}
    assert all(a.weight >= b.weight - 1e-9 for a, b in pairwise(ranking))
    for result in ranking:
        members = [i for i, answer in enumerate(answers) if answer == result.answer]
        assert result.weight == pytest.approx(sum(max(weights[i], 0) for i in members))
        assert result.representative in members
        assert max(weights[result.representative], 0) == pytest.approx(max(max(weights[i], 0) for i in members))


def test_ties_go_to_the_answer_seen_first_not_the_first_to_reach_the_maximum() -> None:
    assert vote(["a", "b", "b", "a"]).answer == "a"
    assert vote(["a", "b"], [0.1 + 0.2, 0.3]).answer == "a"
    assert vote(["a", "b"], [0.3, 0.1 + 0.2]).answer == "a"


def test_negative_weights_count_as_zero_and_not_a_number_is_refused() -> None:
    assert vote(["a", "b"], [-5.0, 0.0]).answer == "a"
    with pytest.raises(ValueError, match="not a number"):
        vote(["a"], [math.nan])


def test_best_of_n() -> None:
    assert best_of_n([0.3]) == 0
    assert best_of_n([]) is None
    assert best_of_n([0.3, 0.9, 0.9]) == 1
    assert best_of_n([0.3, 0.9], ["a", None]) == 0
    assert best_of_n([0.3, 0.9], [None, None]) is None
    with pytest.raises(ValueError, match="not a number"):
        best_of_n([math.nan, 1.0])
    with pytest.raises(ValueError, match="one answer"):
        best_of_n([1.0], [])


@SEARCHED
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_what_is_decided_never_changes(seed: int, n: int) -> None:
    noise = random.Random(seed)
    answers = [noise.choice(["1", "2", None]) for _ in range(n)]
    weights = [noise.random() for _ in range(n)]
    for given_so_far in range(n + 1):
        for votes in (None, weights):
            start = answers[:given_so_far]
            if decided(start, n - given_so_far, None if votes is None else votes[:given_so_far]):
                assert (
                    vote(start, None if votes is None else votes[:given_so_far]).answer == vote(answers, votes).answer
                )


def test_sampling_stops_once_the_lead_exceeds_what_is_to_come() -> None:
    assert decided(["a", "a", "a"], 2)
    assert not decided(["a", "a", "b"], 1)
    assert not decided([], 1)
    assert decided([], 0)


def test_agreement_is_smoothed() -> None:
    assert agreement(["a", "a", "b", None]) == pytest.approx([0.5, 0.5, 2 / 6, 1 / 6])


@SEARCHED
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12))
def test_errors_strictly_fall_along_the_frontier_and_nothing_beats_it(pairs: list[tuple[int, int]]) -> None:
    points = [FrontierPoint(float(cost), float(error), str(i)) for i, (cost, error) in enumerate(pairs)]
    frontier = pareto_frontier(points)
    assert all(a.flops < b.flops and a.error > b.error for a, b in pairwise(frontier))
    for point in points:
        best = best_at_budget(points, point.flops)
        assert best is not None
        assert any(f.error == best.error and f.flops <= point.flops for f in frontier)


def test_standard_error_of_gsm8k() -> None:
    assert binomial_standard_error(0.5, 1319) == pytest.approx(0.0138, abs=1e-4)
