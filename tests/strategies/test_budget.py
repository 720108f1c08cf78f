"""Meter: what a request may spend, what it has spent, and in which unit it ran out."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.budget import Budget, Meter, Spend


def meter(spend: Spend | None = None, **limits: float) -> Meter:
    return Meter(Budget(**limits), spend if spend is not None else Spend())  # type: ignore[arg-type]


def test_no_limit_refuses_nothing() -> None:
    unlimited = meter(Spend(target_tokens=10**12, output_tokens=10**12, flops=1e30))
    unlimited.started -= 1e9
    assert unlimited.refuses(tokens=10**12, flops=1e30, outputs=10**12) is None
    assert unlimited.exhausted is None


@pytest.mark.parametrize(
    ("unit", "limit", "spent", "more", "refused"),
    [
        ("forward_tokens", 10, Spend(target_tokens=7), {"tokens": 3}, False),  # exactly up to the limit is allowed
        ("forward_tokens", 10, Spend(target_tokens=7), {"tokens": 4}, True),
        ("forward_tokens", 10, Spend(target_tokens=10), {"tokens": 0}, False),
        ("forward_tokens", 10, Spend(cached_tokens=99, output_tokens=99, flops=99), {"tokens": 10}, False),
        ("forward_tokens", 10, Spend(), {"outputs": 99, "flops": 99.0}, False),
        ("forward_tokens", 0, Spend(), {"tokens": 1}, True),
        ("output_tokens", 5, Spend(output_tokens=4), {"outputs": 1}, False),
        ("output_tokens", 5, Spend(output_tokens=4), {"outputs": 2}, True),
        ("output_tokens", 5, Spend(target_tokens=99, flops=99), {"tokens": 99, "flops": 99.0, "outputs": 5}, False),
        ("output_tokens", 0, Spend(), {"outputs": 1}, True),
        ("flops", 1e13, Spend(flops=9e12), {"flops": 1e12}, False),
        ("flops", 1e13, Spend(flops=9e12), {"flops": 1.1e12}, True),
        ("flops", 1e13, Spend(target_tokens=99, output_tokens=99), {"tokens": 99, "outputs": 99}, False),
    ],
)
def test_each_unit_is_refused_beyond_its_limit_only(
    unit: str, limit: float, spent: Spend, more: dict[str, float], refused: bool
) -> None:
    limited = meter(spent, **{unit: limit})
    expected = unit if refused else None
    assert limited.refuses(**more) == expected  # type: ignore[arg-type]
    assert limited.exhausted == expected


def test_seconds_run_from_the_start() -> None:
    limited = meter(seconds=30.0)
    assert limited.refuses(tokens=10**9) is None
    limited.started -= 29.0
    assert limited.refuses() is None
    limited.started -= 1.0
    assert limited.refuses() == "seconds"
    assert limited.exhausted == "seconds"


def test_zero_seconds_are_spent_at_once() -> None:
    assert meter(seconds=0.0).refuses() == "seconds"


def test_asking_costs_nothing_and_the_answer_is_remembered() -> None:
    limited = meter(forward_tokens=5)
    assert limited.refuses(tokens=6) == "forward_tokens"
    assert limited.spend == Spend()
    assert limited.refuses(tokens=5) is None
    assert limited.exhausted == "forward_tokens"


def test_charge_adds_tokens_and_flops_and_is_what_refuses_sees() -> None:
    limited = meter(forward_tokens=10, flops=100.0)
    limited.charge(tokens=4, flops=30.0, step=0)
    limited.charge(tokens=3, flops=20.5, step=1)
    assert limited.spend == Spend(target_tokens=7, flops=50.5, forward_passes=2)
    assert limited.refuses(tokens=3, flops=49.5) is None
    assert limited.refuses(tokens=4) == "forward_tokens"
    assert limited.refuses(flops=49.6) == "flops"


def test_sequences_that_share_a_step_share_a_pass() -> None:
    shared = Meter()
    for step in (0, 0, 0, 1, 1, 7):
        shared.charge(tokens=2, flops=1.0, step=step)
    assert shared.spend == Spend(target_tokens=12, flops=6.0, forward_passes=3)


def test_finish_stops_the_clock_and_the_last_one_decides() -> None:
    timed = Meter()
    timed.started -= 10.0
    assert timed.seconds >= 10.0
    timed.finish()
    first = timed.seconds
    assert first >= 10.0
    time.sleep(0.002)
    assert timed.seconds == first
    timed.finish()
    assert timed.seconds > first


def test_meters_and_spends_are_not_shared_by_default() -> None:
    one, other = Meter(), Meter()
    one.charge(tokens=1, flops=1.0, step=0)
    assert other.spend == Spend()
    assert other.last_pass != 0


COUNTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=20)


@given(COUNTS, st.integers(0, 60), st.integers(0, 60))
def test_spend_keeps_within_the_budget_and_grows_with_it(work: list[tuple[int, int]], one: int, more: int) -> None:
    """A caller that asks first and stops when refused spends at most the budget, and at least as much with more."""

    def spent(limit: int) -> int:
        limited = meter(forward_tokens=limit)
        step = 0
        for tokens, gap in work:
            if limited.refuses(tokens=tokens, flops=2.0 * tokens):
                break
            before = (limited.spend.target_tokens, limited.spend.flops, limited.spend.forward_passes)
            step += gap
            limited.charge(tokens=tokens, flops=2.0 * tokens, step=step)
            after = (limited.spend.target_tokens, limited.spend.flops, limited.spend.forward_passes)
            assert after >= before
            assert after[1] == 2.0 * after[0]
        assert limited.spend.target_tokens <= limit
        assert limited.spend.forward_passes <= len(work)
        return limited.spend.target_tokens

    small, large = sorted((one, one + more))
    assert spent(small) <= spent(large)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 50), st.integers(0, 50))
def test_refusal_is_monotone(limit: int, spent: int, less: int, extra: int) -> None:
    """What is refused stays refused for more, and for a smaller budget."""
    if meter(Spend(target_tokens=spent), forward_tokens=limit).refuses(tokens=less):
        assert meter(Spend(target_tokens=spent), forward_tokens=limit).refuses(tokens=less + extra)
        assert meter(Spend(target_tokens=spent), forward_tokens=max(0, limit - extra)).refuses(tokens=less)
    if meter(Spend(output_tokens=spent), output_tokens=limit).refuses(outputs=less) is None:
        assert meter(Spend(output_tokens=spent), output_tokens=limit + extra).refuses(outputs=less) is None
