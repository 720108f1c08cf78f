"""A search for programs, repeated from its full trace: the same answers and trace, without model or sandbox."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from program_bench import (
    DOUBLE,
    FIRST,
    IDEAS,
    LESSONS,
    RIGHT,
    SECOND,
    TASK,
    TESTS,
    ZERO,
    Reply,
    asking,
    fenced,
    forest_of,
    made,
    searched,
)
from scripted_coder import ScriptedCoder, code

from strategies.budget import Budget
from strategies.search.coding_search import CodingSearch
from strategies.search.replay import NotRecorded, Replay, replayed

pytestmark = pytest.mark.usefixtures("program_bench")


def again(
    record: dict[str, Any], search: CodingSearch, *, budget: Budget | None = None, seed: int = 7, n: int = 1
) -> tuple[list[str], dict[str, Any]]:
    """Answers and trace of a repetition from a record that went over the wire. The model would fail if it was asked."""
    silent = ScriptedCoder()
    with silent.serving() as runtime:
        context = Replay(
            runtime,
            asking(TASK, 1000, budget, seed),
            json.loads(json.dumps(record)),
            n=n,
            prompt_text=TASK,
            question=TASK,
        )
        nodes = asyncio.run(replayed(search, context))
    assert silent.asked == []
    return [node.text for node in nodes], context.trace.report() or {}


def told(report: dict[str, Any]) -> str:
    """All that a trace tells; the numbers of answers are the run's own."""
    return json.dumps({name: fact for name, fact in report.items() if name != "answers"})


SEARCHES: list[dict[str, Any]] = [
    {"k": 8, "seeds": 2},
    {"k": 20, "seeds": 3, "wave": 4},
    {"k": 8, "seeds": 2, "selection": "puct"},
    {"k": 6, "seeds": 2, "tree": False},
    {"tests": [], "k": 4, "seeds": 3, "entry_point": "add"},
    {"name": "code-line", "k": 3},
    {"name": "code-tree", "k": 5},
    {"name": "code-best-of-n", "k": 3, "wave": 2},
]


def recorded(search: CodingSearch, **more: Any) -> Reply:
    coder = forest_of(
        [ZERO, FIRST, code("return 5")],
        [SECOND, DOUBLE, "Sorry.", RIGHT],
        tests=["None."],
        inputs=["add(1, 2)"],
        reflection=["It forgets b."],
    )
    return searched(coder, search, **more)


@pytest.mark.parametrize("parameters", SEARCHES, ids=str)
def test_the_same_again(parameters: dict[str, Any]) -> None:
    search = made(**parameters)
    reply = recorded(search)
    texts, report = again(reply.facts, search)
    assert texts[:1] == reply.texts
    assert told(report) == told(reply.facts)


@pytest.mark.parametrize(
    ("budget", "seeds"),
    [(Budget(output_tokens=130), [ZERO, FIRST]), (Budget(seconds=3.0), [FIRST, code("while True: pass")])],
    ids=["output_tokens", "seconds"],
)
def test_a_search_that_its_budget_ended(budget: Budget, seeds: Sequence[str]) -> None:
    search = made(k=40, seeds=2)
    reply = searched(forest_of(seeds, [SECOND, ZERO]), search, budget=budget)
    assert reply.facts["stop_reason"] == reply.meter.exhausted in ("output_tokens", "seconds")
    texts, report = again(reply.facts, search, budget=budget)
    assert texts[:1] == reply.texts
    assert told(report) == told(reply.facts)


def test_what_another_rule_would_have_chosen() -> None:
    """The first of three equals, instead of the two that behave alike."""
    alike = [code("return a if True else 1"), code("return a if a == a else 2")]
    coder = ScriptedCoder(seed=[SECOND, *alike], code=[ZERO], directions=IDEAS, lessons=LESSONS)
    reply = searched(coder, made(k=3, seeds=3))
    assert reply.texts == [fenced(alike[0])]
    texts, report = again(reply.facts, made(k=3, seeds=3, final="official"))
    assert texts[:1] == [fenced(SECOND)]
    assert report["selected"] == 0


@pytest.mark.parametrize(
    ("changes", "seed", "match"),
    [
        ({"k": 9, "stop": "never"}, 7, "not asked"),
        ({}, 8, "not asked"),
        ({"tests": []}, 7, "not run"),
        ({"tests": [*TESTS[:5], {"assert": "assert add(5, 5) == 10"}]}, 7, "other tests"),
        ({"setup": "x = 1"}, 7, "other"),
    ],
)
def test_what_was_not_recorded(changes: dict[str, Any], seed: int, match: str) -> None:
    """More programs, another seed's questions, other tests."""
    fields = {"k": 8, "seeds": 2, "entry_point": "add"}
    reply = recorded(made(**fields))
    with pytest.raises(NotRecorded, match=match):
        again(reply.facts, made(**{**fields, "generate_tests": "never", **changes}), seed=seed)


def test_only_full_traces_record() -> None:
    reply = recorded(made(k=4, seeds=2, trace="summary"))
    assert {"questions", "runs", "tree"}.isdisjoint(reply.facts)
    assert {"questions", "runs", "tree"} <= recorded(made(k=4, seeds=2)).facts.keys()
