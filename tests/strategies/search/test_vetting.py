"""Tests that a model writes: which of them are used."""

import pytest
from program_bench import FIRST, RIGHT, ZERO, forest_of, made, searched

from strategies.sandbox.inside.work import Work
from strategies.search import visible_tests
from strategies.search.vetting import VETTING_WORK, Vetted, vetted
from strategies.search.visible_tests import MAX_LINES, generated_tests

pytestmark = pytest.mark.usefixtures("program_bench")


def used(*replies: str, most: int = 6) -> list[str]:
    return [test.source for test in generated_tests(replies, "f", [], most)[0]]


@pytest.mark.parametrize(
    "test",
    [
        "f(1) or True",
        "True or f(1)",
        "not (f(1) and False)",
        "f(1) == 2 or 1",
        "bool(f(1)) in (True, False)",
        "len(str(f(1))) >= 0",
        "[f(1)]",
        "f(1) == f(1)",
        "f(1000000) == sum(range(1000001))",
        "f(2, 5000) == 2**5000",
        "f(1) == [0] * 10**7",
        "f(1) == '%d items' % 3",
    ],
)
def test_what_no_program_can_fail_or_pass_is_no_test(test: str) -> None:
    assert vetted(f"assert {test}", "f") is None


@pytest.mark.parametrize(
    "test",
    [
        "f(1)",
        "not f(1)",
        "f(1) != 7",
        "f(1) != 3 + 4",
        "f(1) != len('seven')",
        "f(1) not in [4, 5]",
        "f(1) is not None",
        "f(1) != [8, 9]",
        "isinstance(f(1), int)",
        "type(f(1)) != frozenset",
        "str(f(1)) != 'x'",
    ],
)
def test_what_some_value_fails_is_one(test: str) -> None:
    found = vetted(f"assert {test}", "f")
    assert found is not None
    assert found.source == f"assert {test}"


def test_vetting_a_line_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is evaluated for it, with any value, on one budget; what costs more is no test."""
    spent = 0
    spend = Work.spend

    def counted(work: Work, units: int) -> None:
        nonlocal spent
        spend(work, units)
        spent += units

    monkeypatch.setattr(Work, "spend", counted)
    nested = ", ".join("[" * 85 + f"[2**60]*300+[{i}]" + "]" * 85 for i in range(4))
    for test in ("[{}]*150000", "sorted([9.0]*9000)", "set(range(9000))", "str([0.1]*3000)", f"sorted([{nested}]*200)"):
        spent = 0
        assert vetted(f"assert f(1) != {test}", "f") is None
        assert spent <= VETTING_WORK
    assert vetted("assert f(1) != sorted([9.0]*90)", "f") is not None


def test_a_line_is_vetted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(line: str, entry_point: str) -> Vetted | None:
        seen.append(line)
        return vetted(line, entry_point)

    monkeypatch.setattr(visible_tests, "vetted", noted)
    first, second = "assert f(1) == 2\nassert f(2", "assert f(2\nassert f(3) == 4"
    read: dict[str, Vetted | None] = {}
    for replies in ([first], [first, second]):
        generated_tests(replies, "f", [], 6, read)
    assert seen == ["assert f(1) == 2", "assert f(2", "assert f(3) == 4"]


def test_of_a_reply_so_many_lines_are_read() -> None:
    reply = "\n".join(f"assert f({i}) == {i}" for i in range(100))
    kept, dropped = generated_tests([reply, "assert f(100) == 100"], "f", [], 200)
    assert [test.source for test in kept] == [f"assert f({i}) == {i}" for i in (*range(MAX_LINES), 100)]
    assert dropped == 100 - MAX_LINES


def test_either_way_round_is_the_same_test() -> None:
    assert used("assert f(1) == 2\nassert 2 == f(1)") == ["assert f(1) == 2"]
    assert used("assert 2 == f(1)") == ["assert f(1) == 2"]
    assert used("assert 3 != f(1)", "assert None is f(2)") == ["assert f(1) != 3", "assert f(2) is None"]
    assert used("assert 3 < f(1)") == ["assert 3 < f(1)"]


def test_contradictions_in_different_replies() -> None:
    """Neither is kept, nor what a third reply says of the same call."""
    first, second = "assert f(1) == 2\nassert f(2) == 3", "assert f(1) == 5\nassert f(3) == 4"
    assert used(first, second) == ["assert f(2) == 3", "assert f(3) == 4"]
    assert used(first, second, "assert f(1) == 2") == ["assert f(2) == 3", "assert f(3) == 4"]
    assert used("assert f(1) == 2\nassert f(1) == 3", "assert f(1) == 2") == []


@pytest.mark.parametrize(
    "tests",
    [
        ("f(2)", "f(2) == True"),
        ("f(2) is True", "f(2) == True"),
        ("not f(2)", "f(2) == False"),
        ("f(1) == 2", "f(1) == 2.0"),
        ("f(1) == {2, 1}", "f(1) == {1, 2}"),
        ("f('a') == 'b'", "isinstance(f('a'), str)"),
        ("f([]) == []", "len(f([])) == 0"),
        ("f(1) == 0.333", "abs(f(1) - 0.333) < 1e-06"),
        ("f(1) != 7", "f(1) is not None"),
    ],
)
def test_tests_that_agree_are_no_contradiction(tests: tuple[str, str]) -> None:
    """In whichever replies; the first is kept."""
    one, other = (f"assert {test}" for test in tests)
    assert used(f"{one}\n{other}") == used(one, other) == [one]
    assert used(other, one) == [other]


@pytest.mark.parametrize(
    "tests",
    [
        ("f(1) == 2", "f(1) == 3"),
        ("f(1) == (1, 2)", "f(1) == [1, 2]"),
        ("f(1)", "f(1) == 0"),
        ("f(1) == 2", "isinstance(f(1), str)"),
        ("f(1) == 2", "f(1) == 2.0", "f(1) != 2"),
    ],
)
def test_tests_that_no_value_passes_are_one(tests: tuple[str, ...]) -> None:
    assert used(*(f"assert {test}" for test in tests)) == []


def test_a_search_drops_what_a_later_reply_contradicts() -> None:
    replies = ["assert add(1, 2) == 4\nassert add(2, 2) == 4", "assert add(1, 2) == 3\nassert add(5, 0) == 5"]
    coder = forest_of([FIRST, RIGHT], [ZERO], tests=[f"```\n{reply}\n```" for reply in [*replies, replies[1]]])
    reply = searched(coder, made(tests=[], k=2, seeds=2, entry_point="add", generate_tests="fill", n_tests=4))
    assert reply.facts["tests"] == {"given": 0, "prompt": 0, "generated": 2}
    assert reply.facts["verified"] == "generated"
    # The third question asks for other tests than the second, so its reply counts too.
    assert reply.facts["replies"]["tests_dropped"] == 4
