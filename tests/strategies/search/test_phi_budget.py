"""Rounds of phi-decoding under a token budget."""

from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.search.phi_budget import (
    MIN_FORESIGHT,
    MIN_STEP,
    Round,
    affordable_completions,
    affordable_foresight,
    affordable_round,
)

SEARCHED = settings(max_examples=200, deadline=None, derandomize=True)
ROUND = Round(4, 100, 400)
LONG = 10_000  # room in the answer


@SEARCHED
@given(left=st.integers(0, 12_000), beams=st.integers(1, 4), reserve=st.integers(0, 4000), room=st.integers(1, 600))
def test_a_round_leaves_the_reserve_and_is_monotone_in_the_budget(
    left: int, beams: int, reserve: int, room: int
) -> None:
    round_, more = (affordable_round(ROUND, beams, room, tokens, reserve) for tokens in (left, left + 500))
    if round_ is None:
        assert left - reserve < beams * min(room, MIN_STEP + MIN_FORESIGHT)
        return
    assert round_.worst(beams, room) + reserve <= left
    assert 1 <= round_.rollouts <= 4
    assert MIN_FORESIGHT <= round_.foresight_cap <= 400
    assert MIN_STEP <= round_.step_cap <= 100
    assert more is not None
    assert more.rollouts >= round_.rollouts


def test_foresight_gets_shorter_then_steps_then_rollouts_get_fewer() -> None:
    assert affordable_round(ROUND, 4, LONG, None, 0) is ROUND
    assert affordable_round(ROUND, 4, LONG, 8000, 0) == ROUND
    assert affordable_round(ROUND, 4, LONG, 4000, 0) == Round(4, 100, 150)
    assert affordable_round(ROUND, 4, LONG, 2200, 0) == Round(4, 73, 64)
    assert affordable_round(ROUND, 4, LONG, 2000, 0) == Round(3, 100, 66)
    assert affordable_round(ROUND, 4, LONG, 500, 0) is None


def test_a_step_and_its_foresight_share_the_room_of_the_answer() -> None:
    assert affordable_round(ROUND, 4, 60, 16 * 60, 0) == ROUND
    assert affordable_round(ROUND, 4, 60, 16 * 60 - 1, 0) == Round(3, 100, 400)


def test_foresight_gets_what_the_steps_left() -> None:
    assert affordable_foresight(10, 400, None, 0) == 400
    assert affordable_foresight(10, 400, 5000, 100) == 400
    assert affordable_foresight(10, 400, 1009, 0) == 100
    assert affordable_foresight(10, 400, 50, 100) == 0
    assert affordable_foresight(0, 400, 0, 0) == 400


def test_completions_are_all_or_the_best() -> None:
    assert affordable_completions(4, 1000, None) == (4, 1000)
    assert affordable_completions(4, 1000, 4000) == (4, 1000)
    assert affordable_completions(4, 1000, 3999) == (1, 1000)
    assert affordable_completions(4, 1000, 30) == (1, 30)
    assert affordable_completions(4, 1000, 0) == (0, 0)
    assert affordable_completions(0, 1000, 10) == (0, 0)
