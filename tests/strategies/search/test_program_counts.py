"""What searches for programs count: every program that was evaluated, and none that the budget cut off."""

from typing import Any

import pytest
from program_bench import FIRST, RIGHT, SECOND, TASK, ZERO, fenced, forest_of, made, searched
from scripted_coder import ScriptedCoder, code

from strategies.budget import Budget
from strategies.registry import registered
from strategies.search.coding_search import CodingSearch

pytestmark = pytest.mark.usefixtures("program_bench")

LONG = code("return a  # " + "x" * 200)
COUNTS = {"asked", "asked_tokens", "programs", "programs_run", "programs_duplicate", "programs_passed"}


@pytest.mark.parametrize("parameters", [{"k": 4, "seeds": 2}, {"k": 4, "seeds": 3, "wave": 3}])
def test_a_first_program_that_the_budget_cuts_off_is_none(parameters: dict[str, Any]) -> None:
    """The one beside it, which was complete before, is still run."""
    coder = forest_of([LONG, ZERO, LONG], [RIGHT])
    reply = searched(coder, made(**parameters), budget=Budget(output_tokens=200))
    assert reply.facts["stop_reason"] == "output_tokens"
    assert reply.facts["programs"] == reply.facts["programs_run"] == len(reply.programs) == 1
    assert reply.facts["replies"].get("replies_without_program", 0) == 0
    assert reply.texts == [fenced(ZERO)]


@pytest.mark.parametrize(
    "parameters", [{"k": 4, "seeds": 1}, {"name": "code-line", "k": 4}, {"name": "code-tree", "k": 4}]
)
def test_a_change_that_the_budget_cuts_off_is_none(parameters: dict[str, Any]) -> None:
    coder = forest_of([ZERO], [LONG], reflection=["No."])
    reply = searched(coder, made(**parameters), budget=Budget(output_tokens=150))
    assert "code" in [kind for kind, _ in coder.asked]
    assert reply.facts["stop_reason"] == "output_tokens"
    assert reply.facts["programs"] == 1
    assert reply.facts["replies"].get("replies_without_program", 0) == 0
    assert reply.texts == [fenced(ZERO)]


def test_of_a_wave_the_complete_ones_count() -> None:
    coder = forest_of([ZERO], [SECOND, LONG])
    reply = searched(coder, made(k=4, seeds=1, wave=2), budget=Budget(output_tokens=250))
    assert reply.facts["stop_reason"] == "output_tokens"
    assert [node["parent_program"] for node in reply.programs] == [None, 0]
    assert reply.texts == [fenced(SECOND)]


@pytest.mark.parametrize(
    "name", [name for name, kind in registered("search").items() if issubclass(kind, CodingSearch)]
)
def test_if_nothing_is_complete_the_answer_is_what_there_is(name: str) -> None:
    reply = searched(ScriptedCoder(seed=[LONG]), made(name, k=1), budget=Budget(output_tokens=50))
    assert reply.texts == [LONG[:50]]
    assert reply.reasons == [("length", "budget:output_tokens")]
    assert reply.facts["stop_reason"] == "output_tokens"
    assert reply.facts["programs"] == 0
    assert reply.facts.keys() >= COUNTS


def test_counts_that_are_zero_are_told() -> None:
    reply = searched(ScriptedCoder(seed=["I can't."]), made(k=1))
    assert {name: reply.facts[name] for name in COUNTS} == {
        "asked": 2,
        "asked_tokens": 18,
        "programs": 1,
        "programs_run": 0,
        "programs_duplicate": 0,
        "programs_passed": 0,
    }


def test_no_more_first_programs_than_k() -> None:
    """`seeds` above `k` asks for first programs alone."""
    coder = forest_of([ZERO, FIRST, SECOND, RIGHT], [RIGHT])
    reply = searched(coder, made(k=3, seeds=9), task=TASK)
    assert [kind for kind, _ in coder.asked] == ["seed"] * 3
    assert reply.facts["programs"] == 3
    assert reply.facts["stop_reason"] == "k"
