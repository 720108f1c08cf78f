"""Rounds of phi-decoding under a token budget."""

from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.search.phi_budget import (
    MIN_FORESIGHT,
    Round,
    affordable_completions,
    affordable_round,
    within_answer,
)

SEARCHED = settings(max_examples=100, deadline=None, derandomize=True)
ROUND = Round(4, 100, 400, 1000)


@SEARCHED
@given(left=st.integers(0, 12_000), beams=st.integers(1, 4), reserve=st.integers(0, 4000))
def test_a_round_leaves_the_reserve_and_is_monotone_in_the_budget(left: int, beams: int, reserve: int) -> None:
    round_, more = (affordable_round(ROUND, beams, tokens, reserve) for tokens in (left, left + 500))
    if round_ is None:
        assert left - reserve < beams * (ROUND.step_cap + MIN_FORESIGHT)
        return
    assert round_.worst(beams) + reserve <= left
    assert 1 <= round_.rollouts <= 4
    assert MIN_FORESIGHT <= round_.foresight_cap <= 400
    assert more is not None
    assert more.rollouts >= round_.rollouts


def test_foresight_gets_shorter_before_rollouts_get_fewer() -> None:
    assert affordable_round(ROUND, 4, None, 0) is ROUND
    assert affordable_round(ROUND, 4, 8000, 0) == ROUND
    assert affordable_round(ROUND, 4, 4000, 0) == Round(4, 100, 150, 1000)
    assert affordable_round(ROUND, 4, 2000, 0) == Round(3, 100, 66, 1000)
    assert affordable_round(ROUND, 4, 600, 0) is None


def test_texts_never_outgrow_the_answer() -> None:
    assert within_answer(ROUND, 5000) == ROUND
    assert within_answer(ROUND, 300) == Round(4, 100, 200, 300)
    assert within_answer(ROUND, 60) == Round(4, 60, 0, 60)
    assert within_answer(ROUND, 0) == Round(4, 0, 0, 0)


def test_completions_are_all_or_the_best() -> None:
    assert affordable_completions(4, 1000, None) == (4, 1000)
    assert affordable_completions(4, 1000, 4000) == (4, 1000)
    assert affordable_completions(4, 1000, 3999) == (1, 1000)
    assert affordable_completions(4, 1000, 30) == (1, 30)
    assert affordable_completions(4, 1000, 0) == (0, 0)
    assert affordable_completions(0, 1000, 10) == (0, 0)
