"""Expressions of hostile tests on hostile values: paid for before they are done, refused where that would be too much.

Without the bounds each of them works, but takes from tenths of a second to some seconds, and enlarged a little, minutes
or gigabytes, with the interpreter's lock held.
"""

import asyncio
import contextlib
import json
import operator
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from attacking import opened
from hypothesis import given
from hypothesis import strategies as st

from strategies.sandbox import sandbox as sandbox_module
from strategies.sandbox.checks import CallCheck, Calls, StatementCheck, check_assert, check_call, parsed
from strategies.sandbox.expressions import WORK, compiled
from strategies.sandbox.inside.codec import Malformed, decode, encode
from strategies.sandbox.inside.work import TooMuch, Work
from strategies.sandbox.judge import judge
from strategies.sandbox.operations import FUNCTIONS
from strategies.sandbox.outcome import Outcome, Program, Result
from strategies.sandbox.records import Observation

PERIOD = (1 << 61) - 1
"""Integers that differ by it hash alike."""
NUMBERS = list(range(50_000))


def deep(content: str, depth: int = 80) -> str:
    """Compared by `<` with its like, its content is visited once for each level."""
    return "[" * depth + content + "]" * depth


def short(value: Any) -> str:
    return value[:40] if isinstance(value, str) else ""


def verdict(source: str, *values: Any) -> Result:
    """Also of such as would run inside, since no result could pass them."""
    calls = Calls("f", Work(WORK))
    comparison = compiled(calls.visit(parsed(source, "exec", "f").body[0].test))
    check = CallCheck(source, tuple(calls.units), comparison, calls.collected)
    return judge(check, [Observation(None, encode(value)) for value in values])


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[[0] * 3000] * 3000 == [[0] * 3000] * 3000", 1),
        ("([0] * 3000,) * 3000 <= ([0] * 3000,) * 3000", 1),
        ("[[0] * 3000] * 3000 != [[0] * 2999 + [1]] * 3000", 1),
        ("[[[0] * 200] * 200] * 200 == [[[0] * 200] * 200] * 200", 1),
        ("[1, [[0] * 3000] * 3000] == [1, [[0] * 3000] * 3000]", 1),
        ("[[0] * 3000] * 1500 + [[0] * 3000] * 1500 == [[0] * 3000] * 3000", 1),
        ("([[0] * 3000] * 3000)[1:] == ([[0] * 3000] * 3000)[:-1]", 1),
        ("([0] * 3000) in [[0] * 2999 + [1]] * 3000 or True", 1),
        ("[f(1)] * 20 == [f(1)] * 20", [*NUMBERS[:-1], 0]),
        ("((0,) * 3000,) * 3000 in {1: 2} or True", 1),
        ("{1: 2, ((0,) * 3000,) * 3000: 3}", 1),
        ("{((0,) * 3000,) * 3000}", 1),
        ("{1: 2}[((0,) * 3000,) * 3000] if 0 else ((0,) * 3000,) * 3000 not in {1}", 1),
        ("set([((0,) * 3000,) * 1000, ((0,) * 3000,) * 1001])", 1),
        ("len(str([[0] * 3000] * 3000)) > 1", 1),
        ("str([f(1)] * 15)", ["\U000e0001" * 10_000] * 8),
        ("max([[0] * 3000] * 3000) == [0] * 3000", 1),
        ("min([[0] * 3000] * 1500 + [[0] * 3000] * 1500) == [0] * 3000", 1),
        ("sorted([[0] * 1000] * 1000)", 1),
        (f"{deep('[0] * 9000 + [1]')} < {deep('[0] * 9000 + [2]')}", 1),
        (f"{deep('(0,) * 9000 + (1,)')} >= {deep('(0,) * 9000 + (2,)')}", 1),
        (f"{deep('f(1)', 50)} < {deep('f(1)', 50)}", NUMBERS),
        (f"{deep('[0] * 9000 + [1]')} * 2 < {deep('[0] * 9000 + [2]')} * 2", 1),
        (f"[[0] * 9, {deep('[0] * 9000 + [1]')}] < [[0] * 9, {deep('[0] * 9000 + [2]')}]", 1),
        (f"sorted([{deep('[0] * 300 + [1]')}, {deep('[0] * 300 + [2]')}] * 50)", 1),
        (f"max([{deep('[0] * 300 + [1]')}, {deep('[0] * 300 + [2]')}] * 50)", 1),
        (f"min({deep('[0] * 9000 + [1]')}, {deep('[0] * 9000 + [2]')}, default=1)", 1),
        ("isinstance(1, ((str,) * 3000,) * 3000) or True", 1),
        ("len([0] * 90000 + [0] * 90000 + [0] * 90000 + [0] * 90000 + [0] * 90000 + [0] * 90000) > 1", 1),
        (" and ".join(["[0] * 90000 != 1"] * 20), 1),
        (" and ".join(["len(f(1)[:][:][:][:]) > 1"] * 7), NUMBERS),
        (" and ".join(["list(range(90000))"] * 20), 1),
        (" and ".join(["set(range(2000))"] * 600), 1),
        ("len('a' * 10000000) > 1", 1),
        ("('a' * 99 + 'b') in 'a' * 900000 or True", 1),
        ("1.5 in range(100000) or " * 20 + "True", 1),
        ("f(1) - f(1) == set()", {(0,) * 1000 + (PERIOD * n,) for n in range(40)}),
    ],
    ids=short,
)
def test_too_much_work(expression: str, value: Any) -> None:
    result = verdict(f"assert f(0) and ({expression})", 1, *[value] * expression.count("f(1)"))
    assert result.outcome is Outcome.WRONG_VALUE
    assert result.message == "TooMuch: too much work to evaluate"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("sum(f(1))", [1 << 1_000_000, *[1] * 100]),  # each addition would copy the large number
        ("list(range(f(1), f(1)))", 1 << 1_000_000),
        ("round(f(1), -1)", 1 << 1_000_000),
        ("list[int]", 1),
    ],
    ids=short,
)
def test_refused_whatever_it_costs(expression: str, value: Any) -> None:
    result = verdict(f"assert f(0) and ({expression})", 1, *[value] * expression.count("f(1)"))
    assert result.outcome is Outcome.WRONG_VALUE
    assert result.message.startswith(("Refused", "TypeError"))


@pytest.mark.parametrize("expression", ["str(f(1), 'punycode')", "type('A', (int,), {})", "str()"])
def test_what_no_work_can_bound_runs_inside(expression: str) -> None:
    assert isinstance(check_assert(f"assert f(1) and {expression}", "f"), StatementCheck)


@pytest.mark.parametrize(
    "arguments",
    [
        "[[0] * 3000] * 3000 == [[0] * 3000] * 3000",
        "len(str([[0] * 3000] * 3000))",
        f"sorted([{deep('[0] * 100 + [1]')}, {deep('[0] * 100 + [2]')}] * 8)",
        "[0] * 10000, [0] * 10000, key=[0] * 10000",
        "'a' * 200000, 'a' * 200000",
    ],
)
def test_arguments_have_one_budget(arguments: str) -> None:
    """They are evaluated when a request is read, on the event loop, and held as long as the request runs."""
    assert isinstance(check_assert(f"assert f({arguments}) == 1", "f"), StatementCheck)
    assert isinstance(check_call(f"f({arguments})", "1", "f"), StatementCheck)


@pytest.mark.parametrize(
    "argument",
    [
        f"[{'1,' * 8000}]",
        f"({'[1],' * 4000})",
        f"{{{','.join(map(str, range(3000)))}}}",
        f"{{{','.join(f'{n}:1' for n in range(2000))}}}",
        f"'{'a' * 16000}'",
        "list(range(10000))",
        "[0] * 16000",
    ],
    ids=short,
)
def test_long_arguments_that_go_in(argument: str) -> None:
    check = check_assert(f"assert f({argument}) == 1", "f")
    assert isinstance(check, CallCheck)
    assert len(json.dumps(check.units)) > 16_000


@pytest.mark.parametrize(
    ("source", "values"),
    [
        ("assert sorted(f(1)) == list(range(50000))", [NUMBERS[::-1]]),
        ("assert set(f(1)) == set(range(1000)) and len(f(1)) == 50000", [[n % 1000 for n in NUMBERS]] * 2),
        ("assert f(1) == [0] * 50000", [[0] * 50_000]),
        ("assert f(1) == 'ab' * 200000", ["ab" * 200_000]),
        ("assert str(f(1))[:4] == '[0, '", [NUMBERS]),
        ("assert f(1) == f(2) == f(3)", [NUMBERS] * 3),
        ("assert sum(f(1), 1) == sum(range(50000)) + 1", [NUMBERS]),
        ("assert max(f(1)) - min(f(2)) == 49999 and 49999 in f(3)", [NUMBERS] * 3),
        ("assert set(f(1)) == {0}", [[0] * 1000]),
        ("assert sorted(f(1)) == sorted(f(2), reverse=True)[::-1]", [[(n % 99, n) for n in range(16_000)]] * 2),
        ("assert min(f(1)) < max(f(2)) and f(3) <= f(4)", [[[n] for n in range(16_000)]] * 4),
        ("assert f(1) <= set(range(9000)) and f(2) < f(3)", [set(range(8000))] * 2 + [set(range(9000))]),
        ("assert len({f(1): 1, 2: 3}) == 2 and {1: 2}[f(2)] == 2", [5, 1]),
        ("assert f(1) == [[0] * 100] * 100", [[[0] * 100] * 100]),
        ("assert '' * 3 == '' and [] * 10 ** 9 == [] and f(1)", [1]),
    ],
    ids=short,
)
def test_large_results_of_right_programs(source: str, values: list[Any]) -> None:
    result = verdict(source, *values)
    assert result.passed, result


def test_the_text_of_an_exception_is_bounded() -> None:
    """That of a KeyError is the repr of the key, which Python refuses for a huge integer."""
    assert verdict("assert {1: 2}[f(1)]", 1 << 20_000).message.startswith("KeyError: 0x8000")
    assert len(verdict("assert {1: 2}[f(1)]", tuple(NUMBERS)).message) <= 200


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.integers(), inner)
)


@given(VALUES, st.integers(0, 50))
def test_size_is_that_of_the_unfolded_value(value: Any, times: int) -> None:
    """A value that holds one object many times is as large as a copy of it without sharing."""
    shared, unshared = [value] * times, [decode(encode(value)) for _ in range(times)]
    assert Work(1 << 40).size(shared) == Work(1 << 40).size(unshared)


def test_size_of_members_that_hash_alike() -> None:
    """Each may be compared with every other."""
    assert Work(WORK).size({PERIOD * n for n in range(30)}) > 30 * 30
    assert Work(WORK).size({*range(30)}) == 31


class Counting:
    """A scalar that counts how often one is compared."""

    compared = 0

    def __init__(self, number: int, hashed: int) -> None:
        self.number, self.hashed = number, hashed

    def __hash__(self) -> int:
        return self.hashed

    def __eq__(self, other: object) -> bool:
        Counting.compared += 1
        return isinstance(other, Counting) and self.number == other.number

    def __lt__(self, other: object) -> bool:
        Counting.compared += 1
        return isinstance(other, Counting) and self.number < other.number

    def __gt__(self, other: object) -> bool:
        Counting.compared += 1
        return isinstance(other, Counting) and self.number > other.number


def altered(random: Random, value: Any) -> Any:
    """A copy in which few scalars differ, all of them new: Python takes what is the same object for equal."""
    if isinstance(value, Counting):
        return Counting(value.number + (random.random() < 0.03), value.hashed)
    if isinstance(value, dict):
        return {altered(random, key): altered(random, item) for key, item in value.items()}
    return type(value)([altered(random, item) for item in value])


def nested(random: Random, depth: int, hashes: int, hashable: bool = False) -> Any:
    """A value of built-in types with scalars of so many hash values."""
    if depth == 0 or random.random() < 0.15:
        number = random.randrange(random.choice((4, 20)))
        return Counting(number, number % hashes)
    kind: Any = random.choice((tuple, tuple, frozenset) if hashable else (list, list, tuple, frozenset, set, dict))
    hashable = hashable or kind in (set, frozenset, dict)
    items = [nested(random, depth - 1, hashes, hashable) for _ in range(random.randrange(6))]
    return {item: nested(random, depth - 1, hashes) for item in items} if kind is dict else kind(items)


@pytest.mark.parametrize("seed", range(4))
def test_comparing_costs_no_more_than_is_paid(seed: int) -> None:
    random = Random(seed)
    for _ in range(300):
        depth, hashes = random.randrange(1, 6), random.choice((1, 2, 5, 50))
        first, other = nested(random, depth, hashes), nested(random, depth, hashes)
        for second in (altered(random, first), other):
            for compare, ordered in ((operator.eq, False), (operator.lt, True), (operator.le, True)):
                work = Work(1 << 60)
                cost: Callable[[Any], int] = work.order if ordered else work.size
                paid = cost(first) + cost(second)
                assert comparisons(lambda compare=compare, pair=(first, second): compare(*pair)) <= paid
        items = [altered(random, first) for _ in range(random.randrange(2, 9))] * random.randrange(1, 4)
        items += [other] * random.randrange(2)
        random.shuffle(items)
        for name, rate in (("max", 1), ("min", 1), ("sorted", 2)):
            work = Work(1 << 60)
            compared = comparisons(lambda name=name, work=work, items=items: FUNCTIONS[name](work, items))
            assert compared <= rate * ((1 << 60) - work.left)


def comparisons(run: Callable[[], Any]) -> int:
    """How often scalars are compared; some values can't be, which ends it."""
    Counting.compared = 0
    with contextlib.suppress(TypeError):
        run()
    return Counting.compared


def test_an_order_comparison_visits_what_is_within_once_for_each_level() -> None:
    def ending_in(last: int) -> list[Any]:
        value: list[Any] = [Counting(n, 0) for n in (*range(100), last)]
        for _ in range(30):
            value = [value]
        return value

    first, second = ending_in(1), ending_in(2)
    assert comparisons(lambda: first == second) < Work(WORK).size(first) < 150
    assert 3000 < comparisons(lambda: first < second) < Work(WORK).order(first) < 5000


def test_size_ends_with_the_work() -> None:
    with pytest.raises(TooMuch):
        Work(1000).size(NUMBERS)
    assert Work(1000).size("a" * 10_000) > 1000  # its size costs nothing to find out


def alike(level: int, members: int) -> list[Any]:
    """Different values with one hash: integers, or frozensets that differ in one member."""
    if level == 0:
        return [PERIOD * n for n in range(1, members + 1)]
    inner = alike(level - 1, members + 1)
    return [frozenset(inner[:n] + inner[n + 1 :]) for n in range(members)]


def test_sets_of_sets_that_hash_alike_are_refused() -> None:
    """Comparing two looks up each member among all others of its hash, which compares these in turn, and so on."""
    few, many = encode(set(alike(2, 4))), encode(set(alike(2, 20)))
    assert decode(few) == set(alike(2, 4))
    assert len(json.dumps(many)) < 1 << 20
    with pytest.raises(Malformed, match="too much work"):
        decode(many)


async def test_results_are_judged_off_the_event_loop(any_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are: what a test makes of them may be large."""
    threads = []

    def judging(*arguments: Any) -> Result:
        threads.append(threading.current_thread())
        return judge(*arguments)

    monkeypatch.setattr(sandbox_module, "judge", judging)
    async with opened(any_backend) as sandbox:
        checks = [check_assert("assert f(1) == 1 or [[f(2)] * 60000] * 60000 == [[f(3)] * 60000] * 60000", "f")]
        [result] = await asyncio.wait_for(sandbox.run(Program("def f(x):\n    return 2\n", "f"), checks), 60)
    assert result.message == "TooMuch: too much work to evaluate"
    assert threads
    assert threading.current_thread() not in threads
