"""Tests taken apart: what goes in, what stays out, and the verdicts."""

import json
from typing import Any

import pytest

from strategies.sandbox.checks import (
    CallCheck,
    StatementCheck,
    check_assert,
    check_call,
    check_input,
    check_stdin,
    sent,
)
from strategies.sandbox.inside.codec import decode, encode
from strategies.sandbox.judge import judge
from strategies.sandbox.outcome import Outcome, Result
from strategies.sandbox.records import Observation


def verdict(source: str, *values: Any) -> Result:
    check = check_assert(source, "f")
    assert isinstance(check, CallCheck), source
    return judge(check, [Observation(None, encode(value)) for value in values])


def test_only_arguments_go_in() -> None:
    check = check_assert("assert f(2, key=[1.5]) == 'SECRET', 'SECRET'", "f")
    assert check.units == ({"call": [[["int", "2"]], {"key": ["list", [["float", "0x1.8000000000000p+0"]]]}]},)
    assert "SECRET" not in json.dumps(check.units)


@pytest.mark.parametrize(
    ("source", "value", "passes"),
    [
        ("assert f(1) == 1.0", 1, True),
        ("assert f(1) == 1", True, True),
        ("assert f(1) == (1, 2)", [1, 2], False),
        ("assert f(1) == {2, 1}", {1, 2}, True),
        ("assert f(1) == {'a': [1]}", {"a": [1]}, True),
        ("assert f(1) == float('nan')", float("nan"), False),
        ("assert f(1) == [float('nan')]", [float("nan")], False),
        ("assert math.isnan(f(1))", float("nan"), True),
        ("assert f(1) is True", 1, False),
        ("assert f(1) is True", True, True),
        ("assert f(1) is None", None, True),
        ("assert not f(1)", [], True),
        ("assert f(1)", "", False),
        ("assert abs(f(1) - 1.41) < 1e-2", 1.414, True),
        ("assert math.isclose(f(1), 3, rel_tol=0.1)", 3.2, True),
        ("assert round(f(1), 2) == 1.41", 1.414, True),
        ("assert len(f(1)) == 2 and f(1)[0] == 3", [3, 4], True),
        ("assert sorted(f(1)) == [1, 2, 3]", {3, 1, 2}, True),
        ("assert set(f(1)) == set([1])", [1, 1], True),
        ("assert isinstance(f(1), (int, str))", 1.0, False),
        ("assert type(f(1)) == int", True, False),
        ("assert 1 < f(1) <= 3", 3, True),
        ("assert f(1) in (1, 2)", 2, True),
        ("assert f(1)[1:] == 'bc'", "abc", True),
        ("assert f(1) == -2 ** 10", -1024, True),
        ("assert f(1) == 10 ** 9 + 7", 1000000007, True),
        ("assert f(1) == 'ab' * 2", "abab", True),
        ("assert all(f(1))", [1, 0], False),
        ("assert sum(f(1)) == 3", [1, 2], True),
        ("assert (f(1) if 1 else 0) == 5", 5, True),
        ("assert f(1) != 2", 2, False),
        ("assert int(f(1)) == 2", 2.5, True),
        ("assert str(f(1)) == '[2]'", [2], True),
    ],
)
def test_verdicts(source: str, value: Any, passes: bool) -> None:
    # A call that stands twice in the test is called twice.
    values = [value] * source.count("f(1)")
    assert verdict(source, *values).outcome is (Outcome.PASS if passes else Outcome.WRONG_VALUE)


@pytest.mark.parametrize(
    "source", ["assert f(1) == 5", "assert f(1) != 5", "assert f(1)", "assert not f(1)", "assert len(f(1)) == 1"]
)
def test_an_opaque_value_never_passes(source: str) -> None:
    for value in (object(), [object()], {1: (object(),)}):
        assert verdict(source, value).outcome is Outcome.OPAQUE_VALUE


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("assert f(1) < 2", [1]),
        ("assert f(1)[5] == 2", [1]),
        ("assert 1 / f(1) == 2", 0),
        ("assert f(1) * 2 == 2", 1 << 5000),
        ("assert f(1) % 7 == 2", 1 << 9_000),
        ("assert str(f(1)) == '2'", 1 << 500_000),
        ("assert round(1, f(1)) == 2", -(10**9)),
        ("assert list(range(f(1))) == 2", 10**9),
        ("assert 7 ** f(1) == 2", 1 << 60),
        ("assert 'a' * f(1) == 'a'", 1 << 60),
        ("assert sum(f(1)) == 2", [[1], [2]]),
        ("assert set(f(1)) == 2", [((1 << 61) - 1) * i for i in range(1, 1000)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_comparison_that_fails_or_costs_too_much(source: str, value: Any) -> None:
    result = verdict(source, value)
    assert result.outcome is Outcome.WRONG_VALUE
    assert result.message


@pytest.mark.parametrize(
    "comparison",
    [
        "f(1) == sum(range(1000001))",
        "f(1) == 2**5000",
        "f(1) > 3 and f(2) == 2**5000",
        "f(1) == '%d items' % 3",
        "f(1) == [1] * True",
        "f(1) == 'x' * 10**7",
        "f(1) == round(1.5, 2000)",
        "sum(f(1), []) == [1, 2]",
    ],
)
def test_what_is_too_much_for_any_result_runs_inside(comparison: str) -> None:
    """Outside, a right program would fail it."""
    assert isinstance(check_assert(f"assert {comparison}", "f"), StatementCheck)


def test_a_comparison_that_python_fails_stays_outside() -> None:
    for comparison in ("f(1) == 1 / 0", "f(1) == [][0]", "f(1) == 'a' + 1", "f(1) == 'x' * 10**6", "f(1)[1:] == [2]"):
        assert isinstance(check_assert(f"assert {comparison}", "f"), CallCheck)


def test_where_only_the_items_count() -> None:
    """The units stay the same: whether two tests make one call is told by them."""
    for function in ("list", "tuple", "sorted", "set", "frozenset", "sum", "min", "max", "any", "all"):
        check = check_assert(f"assert f(0) and {function}(f(1)) == f(2)", "f")
        assert [unit.get("collect") for unit in sent(check)] == [None, "iterable", None]
        assert check.units[1] == check_assert("assert f(1)", "f").units[0]
    assert sent(check_call("len(f(1))", "2", "f"))[0]["collect"] == "sized"
    assert sent(check_assert("assert sum(f(1), 2) == sorted(f(2), reverse=True)", "f"))[0]["collect"] == "iterable"
    for form in ("max(f(1), 2)", "max(2, f(1))", "list([f(1)])", "str(f(1))", "f(1)", "sorted(f(1)[0])", "type(f(1))"):
        assert sent(check_assert(f"assert {form}", "f")) == [*check_assert("assert f(1)", "f").units]


def test_huge_integers() -> None:
    number = 7**40_000
    assert verdict(f"assert f(1) == {hex(number)}", number).passed if len(hex(number)) < 16000 else True
    check = check_assert("assert f(1) == 1", "f")
    result = judge(check, [Observation(None, encode(number))])
    assert result.outcome is Outcome.WRONG_VALUE
    assert len(result.got) <= 100
    assert decode(encode(number)) == number


@pytest.mark.parametrize(
    "source",
    [
        "assert f(f(1)) == 2",
        "assert f(g) == 2",
        "assert f(*[1]) == 2",
        "assert f(lambda x: x) == 2",
        "assert f(1).attribute == 2",
        "assert f(1).count(2) == 2",
        "assert f == f",
        "assert f(open('x')) == 2",
        "assert [f(i) for i in (1, 2)] == [1, 2]",
        "assert f(9 ** 9 ** 9) == 2",
        "assert f('a' * 10 ** 9) == 2",
        "assert f(1 / 0) == 2",
        "assert f(" + "-" * 1200 + "1) == 2",
        "assert repr(f(1)) == '2'",
        "assert f(1) == __import__('os')",
    ],
)
def test_what_must_run_inside(source: str) -> None:
    check = check_assert(source, "f")
    assert isinstance(check, StatementCheck)
    assert check.units == ({"statement": source},)
    assert judge(check, [Observation(None, ["none"])]).spoofable


@pytest.mark.parametrize(
    "source",
    [
        "f(1) == 2",
        "assert f(1) == 2; import os",
        "assert g(1) == 2",
        "assert f(",
        "assert f('" + "a" * 17_000 + "')",
        "assert f(" + "(" * 300 + ")" * 300 + ")",
        "assert f(" + "-" * 16_000 + "1)",
        "assert f(1) == '\0'",
        "",
    ],
)
def test_no_test(source: str) -> None:
    with pytest.raises(ValueError, match=r"test|entry"):
        check_assert(source, "f")


def test_calls_with_expected_values() -> None:
    check = check_call(" f(1, [2]) ", "{1: 'a'}", "f")
    assert judge(check, [Observation(None, encode({1: "a"}))]).passed
    for call, expected in (("g(1)", "2"), ("f(1", "2"), ("f(1)", "2 =")):
        with pytest.raises(ValueError, match="test"):
            check_call(call, expected, "f")


def test_inputs() -> None:
    """Any value passes, an exception and an object do not."""
    check = check_input("f(1, b=[2])", "f")
    assert check.units == check_assert("assert f(1, b=[2])", "f").units
    for value in (None, False, 0, "x"):
        assert judge(check, [Observation(None, encode(value))]).passed
    assert judge(check, [Observation(None, encode(object()))]).outcome is Outcome.OPAQUE_VALUE
    assert judge(check, [Observation(Outcome.EXCEPTION, error="KeyError")]).outcome is Outcome.EXCEPTION
    for call in ("f(1) == f(2)", "g(1)", "f(x)", "f(1", "f(object())", "1"):
        with pytest.raises(ValueError, match=r"test|call"):
            check_input(call, "f")


def test_standard_output() -> None:
    check = check_stdin("1 2\n", "3\nx\n")
    for printed, outcome in (
        (b"3\nx", Outcome.PASS),
        (b"3  \nx\r\n\n\n", Outcome.PASS),
        (b"3\n\nx", Outcome.WRONG_VALUE),
        (b" 3\nx", Outcome.WRONG_VALUE),
        (b"\xff\x00", Outcome.WRONG_VALUE),
        (b"", Outcome.WRONG_VALUE),
    ):
        result = judge(check, [Observation(None, ["none"])], printed)
        assert result.outcome is outcome
        assert result.got.isprintable() or "\n" in result.got
    with pytest.raises(ValueError, match="stdout"):
        check_stdin("", "x" * 17_000)


def test_behaviour_is_equal_for_equal_values_only() -> None:
    values = [{1, 2}, {2, 1}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, [1, 2], (1, 2), 1, 1.0, True]
    behaviours = [verdict("assert f(1) == 0", value).behaviour for value in values]
    assert behaviours[0] == behaviours[1]
    assert behaviours[2] == behaviours[3]
    assert len(set(behaviours)) == len(values) - 2
