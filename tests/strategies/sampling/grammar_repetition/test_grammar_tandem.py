"""The tandem detector against brute force (invariants 2 and 3 of the specification)."""

from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.sampling.grammar_repetition.tandem import TandemDetector, trailing_tandem

SEQUENCES = st.lists(st.integers(0, 2), max_size=60)


def brute_force(sequence: list[int], max_period: int) -> tuple[int, int] | None:
    for period in range(1, min(max_period, len(sequence) // 2) + 1):
        unit, copies = sequence[-period:], 1
        while sequence[len(sequence) - (copies + 1) * period : len(sequence) - copies * period] == unit:
            copies += 1
            if copies * period + period > len(sequence):
                break
        if copies > 1:
            return period, copies
    return None


def pushed(sequence: list[int], max_period: int) -> TandemDetector:
    detector = TandemDetector(max_period)
    for symbol in sequence:
        detector.push(symbol)
    return detector


@settings(max_examples=400, deadline=None, derandomize=True)
@given(SEQUENCES, st.integers(1, 16))
def test_equals_brute_force(sequence: list[int], max_period: int) -> None:
    expected = brute_force(sequence, max_period)
    assert pushed(sequence, max_period).hit() == expected
    assert trailing_tandem(sequence, max_period) == expected


@settings(max_examples=150, deadline=None, derandomize=True)
@given(SEQUENCES, st.lists(st.integers(0, 2), max_size=20))
def test_extend_equals_pushing(start: list[int], more: list[int]) -> None:
    detector = TandemDetector(8)
    detector.extend(start)
    other = pushed(start, 8)
    for symbol in more:
        assert detector.hit() == other.hit()
        detector.push(symbol)
        other.push(symbol)
    assert detector.hit() == other.hit()
    assert detector.block(min(8, len(start + more))) == (start + more)[-8:]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(2, 9))
def test_one_more_unit_is_one_more_copy_and_another_symbol_none(unit: list[int], copies: int) -> None:
    detector = pushed(unit * copies, 8)
    hit = detector.hit()
    assert hit is not None
    period = hit.period
    for symbol in (unit * copies)[-period:]:
        detector.push(symbol)
    again = detector.hit()
    assert again is not None
    assert (again.period, again.copies) == (period, hit.copies + 1)
    assert detector.next_symbol(period) == detector.block(period)[0]
    detector.push(9)
    assert detector.hit() is None


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SEQUENCES, SEQUENCES, SEQUENCES)
def test_forks_go_on_independently(start: list[int], left: list[int], right: list[int]) -> None:
    first = pushed(start, 8)
    second = first.fork()
    for symbol in left:
        first.push(symbol)
    for symbol in right:
        second.push(symbol)
    assert first.hit() == brute_force(start + left, 8)
    assert second.hit() == brute_force(start + right, 8)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SEQUENCES, st.integers(0, 2))
def test_upper_bound_of_the_next_copies(sequence: list[int], symbol: int) -> None:
    detector = pushed(sequence, 8)
    bound = detector.best_next()
    detector.push(symbol)
    hit = detector.hit()
    assert (1 if hit is None else hit.copies) <= bound
