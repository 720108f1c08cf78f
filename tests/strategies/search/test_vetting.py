"""Tests that a model writes: which of them are used."""

import pytest
from program_bench import FIRST, RIGHT, ZERO, forest_of, made, searched

from strategies.search.vetting import vetted
from strategies.search.visible_tests import generated_tests

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
    ],
)
def test_what_no_program_can_fail_is_no_test(test: str) -> None:
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
    assert found[0] == f"assert {test}"


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


def test_a_search_drops_what_a_later_reply_contradicts() -> None:
    replies = ["assert add(1, 2) == 4\nassert add(2, 2) == 4", "assert add(1, 2) == 3\nassert add(5, 0) == 5"]
    coder = forest_of([FIRST, RIGHT], [ZERO], tests=[f"```\n{reply}\n```" for reply in [*replies, replies[1]]])
    reply = searched(coder, made(tests=[], k=2, seeds=2, entry_point="add", generate_tests="fill", n_tests=4))
    assert reply.facts["tests"] == {"given": 0, "prompt": 0, "generated": 2}
    assert reply.facts["verified"] == "generated"
    # The third question asks for other tests than the second, so its reply counts too.
    assert reply.facts["replies"]["tests_dropped"] == 4
