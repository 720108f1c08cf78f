"""Parts of `bench quality`: strategies and widths, data sets and their fields, graders, and the numbers."""

import asyncio
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from decoding_server.bench.dataset import DatasetError, read_dataset, title
from decoding_server.bench.intervals import paired_difference
from decoding_server.bench.quality import documents, summary
from decoding_server.bench.quality.contenders import PRESETS, Scale, check, parsed, strategy
from decoding_server.bench.quality.graders import MathGrader, TextGrader, check_golds, grade_text
from decoding_server.bench.quality.measuring import Asking
from decoding_server.bench.quality.tasks import Source, Task, load
from decoding_server.bench.subset import chosen
from decoding_server.bench.tables import Table

# -- strategies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_request(name: str) -> None:
    check(parsed(name))


def test_a_width_is_what_the_budget_pays_for() -> None:
    asking = Asking("forward_tokens", 100, 0.7, answer_cost=50.0)
    assert asking.width(500, prompt_tokens=100) == 8.0
    assert asking.width(120, prompt_tokens=100) == 1.0  # never less than one
    assert Asking("output_tokens", 100, 0.7, answer_cost=50.0).width(500, prompt_tokens=100) == 10.0
    assert Asking("flops", 100, 0.7, answer_cost=2e9, prompt_cost=4e9).width(1e10, 7) == 3.0
    assert Scale("samples").value(8.0) == 8
    assert Scale("samples", cost=2.0).value(9.9) == 4
    assert Scale("samples", cost=20.0).value(9.9) == 1
    assert Scale("beams", power=0.5, most=4).value(9.0) == 3
    assert Scale("beams", power=0.5, most=4).value(100.0) == 4


def test_a_strategy_becomes_a_request() -> None:
    body = parsed("phi").request(9.0)
    assert body["decoding"]["search"] == {"type": "phi", "beams": 3, "rollouts": 3}
    one = parsed('wide={"temperature": 1, "decoding": {"search": "majority"}, "scale": {"samples": 2}}')
    assert one.request(10.0) == {"temperature": 1, "decoding": {"search": {"type": "majority", "samples": 5}}}
    assert one.request(2.0)["decoding"]["search"]["samples"] == 1  # the body is not changed by being used
    assert parsed("mine=greedy").body == PRESETS["greedy"]
    assert parsed("greedy").plain
    assert parsed("greedy").budget_blind
    assert not one.plain
    assert not one.budget_blind
    assert parsed("bregman").budget_blind
    assert parsed("sfs").searches_programs


@pytest.mark.parametrize("body", [[], {"scale": []}, {"scale": {"k": {"size": 1}}}, {"decoding": "phi"}, {"seed": 1}])
def test_wrong_bodies(body: Any) -> None:
    with pytest.raises(ValueError, match="--strategy x"):
        strategy("x", body)


# -- data sets ---------------------------------------------------------------------------------------------------------


def written(path: Path, found: Sequence[Any]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in found)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_any_json_lines(tmp_path: Path) -> None:
    found = [{"q": {"text": f"Which {i}?"}, "gold": i, "options": ["x", "y", "z"]} for i in range(3)]
    path = written(tmp_path / "many.jsonl.gz", found)
    source = Source(
        str(path), question="q.text", answer="gold", choices="options", grader="choice", prompt="{question}\n{choices}"
    )
    tasks = load(source)
    assert (tasks.title, tasks.grader) == ("many", "choice")
    assert tasks.tasks[2] == Task("many/2", "Which 2?\nA) x\nB) y\nC) z", "C", "ABC")
    assert load(Source(str(path), question="q.text", answer="gold", grader="numeric")).tasks[1].gold == "1"
    texts = written(tmp_path / "texts.jsonl", [{"question": "a", "answer": "y", "c": ["x", "y"]}])
    assert load(Source(str(texts), choices="c", grader="choice")).tasks[0].gold == "B"


def test_braces_in_a_question_are_no_places(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"question": "Is {choices} right?", "answer": "yes"}])
    assert load(Source(str(path), grader="exact")).tasks[0].prompt == "Is {choices} right?"


def test_gsm8k_and_programs_are_recognised(tmp_path: Path) -> None:
    path = written(tmp_path / "test.jsonl", [{"question": "1+1?", "answer": "It is\n#### 2"}])
    tasks = load(Source(str(path)))
    assert (tasks.grader, tasks.tasks[0].gold) == ("math", "2")
    assert tasks.title == f"{tmp_path.name}/test"
    record = {"task_id": "HumanEval/0", "prompt": "def f(a):\n", "entry_point": "f", "test": "def check(c):\n    pass"}
    tasks = load(Source(str(written(tmp_path / "code.jsonl", [record]))))
    assert (tasks.title, tasks.grader) == ("HumanEval", "code")
    assert tasks.tasks[0].code is not None
    assert "def f(a)" in tasks.tasks[0].prompt


@pytest.mark.parametrize("content", [b"", b"[1]\n", b"{", b"\xff\xfe"])
def test_what_is_no_data_set(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.jsonl"):
        read_dataset(str(path))


def test_the_hub_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match="pip install datasets"):
        read_dataset("hf:openai/gsm8k", config="main")
    assert title("hf:openai/gsm8k") == "openai/gsm8k"


def test_what_the_hubs_package_refuses(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    with pytest.raises(DatasetError, match="can't be loaded"):
        read_dataset(f"hf:{tmp_path}/nothing")


def test_a_local_folder_by_the_hubs_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    written(tmp_path / "test.jsonl", [{"question": "1+1?", "answer": "#### 2"}])
    assert read_dataset(f"hf:{tmp_path}") == [{"question": "1+1?", "answer": "#### 2"}]


def test_a_larger_subset_begins_with_the_smaller_one() -> None:
    assert chosen(50, 20)[:7] == chosen(50, 7)
    assert sorted(chosen(50, None)) == list(range(50))
    assert chosen(50, 7, seed=1) != chosen(50, 7)


# -- graders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grader", "gold", "reply", "right", "answer"),
    [
        ("exact", "Paris", " Paris\n", True, "Paris"),
        ("exact", "Paris", "It is Paris", False, "It is Paris"),
        ("contained", "new  york", "It is New\nYork.", True, "new  york"),
        ("contained", "1", "It is 12.", False, None),
        ("choice", "B", "The answer is (B).", True, "B"),
        ("choice", "B", "The answer is E.", False, None),
        ("numeric", "1200", "So: 1,200 apples", True, "1,200"),
        ("numeric", "0.5", "The answer is 1/2.", True, "1/2"),
        ("numeric", "5", "The answer is unknown", False, "unknown"),
        ("numeric", "5", "no number", False, None),
    ],
)
def test_text_graders(grader: str, gold: str, reply: str, right: bool, answer: str | None) -> None:
    graded = grade_text(grader, Task("t", "?", gold, "ABCD"), reply)
    assert (graded.correct, graded.answer) == (right, answer)


def graded(grader: TextGrader | MathGrader, gold: str, reply: str) -> bool:
    async def one() -> bool:
        try:
            return (await grader.grade(Task("t", "?", gold), reply, cut=False)).correct
        finally:
            grader.close()

    return asyncio.run(one())


def test_tolerance_pattern_and_mathematics() -> None:
    assert graded(TextGrader("numeric", tolerance=0.01), "3.14159", "about 3.15")
    assert not graded(TextGrader("numeric"), "3.14159", "about 3.15")
    assert graded(TextGrader("regex", pattern=r"ANSWER: (\w+)"), "42", "ANSWER: 7 no, ANSWER: 42 it is")
    assert not graded(TextGrader("regex", pattern=r"ANSWER: (\w+)"), "42", "42")
    assert graded(MathGrader(), "0.5", "The answer is \\boxed{\\frac{1}{2}}")
    assert not graded(MathGrader(), "18", "#### 19")
    with pytest.raises(ValueError, match="--pattern"):
        TextGrader("regex")
    with pytest.raises(ValueError, match="is no number"):
        check_golds("numeric", [Task("t", "?", "many")])


# -- numbers -----------------------------------------------------------------------------------------------------------


def row(
    strategy: str, budget: float | None, task: str, correct: bool, flops: float | None, **more: Any
) -> dict[str, Any]:
    return {
        "strategy": strategy, "budget": budget, "task": task, "seed": 1, "correct": correct, "answer": "x",
        "forward_tokens": 10, "output_tokens": 5, "flops": flops, "seconds": 1.0, "answer_tokens": 5,
        "budget_ended": False, "finish_reason": "stop", **more,
    }  # fmt: skip


def sixteen(strategy: str, budget: float, right: int, flops: float | None) -> list[dict[str, Any]]:
    return [row(strategy, budget, f"t{i}", i < right, flops) for i in range(16)]


ROWS = [
    *sixteen("greedy", 100, 4, 1e9),
    *sixteen("greedy", 200, 4, 1e9),
    *sixteen("vote", 100, 2, 2e9),
    *sixteen("vote", 200, 12, 4e9),
    *sixteen("waste", 100, 4, 5e9),
    *sixteen("waste", 200, 11, 6e9),
]


def test_results_of_known_rows() -> None:
    found = summary.results(ROWS, ["greedy", "vote", "waste"])
    table = {(entry["strategy"], entry["budget"]): entry for entry in found["table"]}
    assert found["compared_tasks"] == 16
    assert table["vote", 200]["accuracy"] == 0.75
    assert table["vote", 200]["interval"] == pytest.approx([0.505, 0.8982], abs=1e-4)  # Wilson's, 12 of 16
    assert table["vote", 200]["difference"][0] == 0.5
    assert table["greedy", 200]["difference"] is None
    assert table["greedy", 100]["flops"] == 1e9
    assert [(one["strategy"], one["budget"]) for one in found["frontier"]] == [("greedy", 100), ("vote", 200)]
    assert [(one["budget"], one["strategy"]) for one in found["optimal"]] == [(100, "greedy"), (200, "vote")]
    # One more right answer of 16 is no difference; eight more are.
    assert found["optimal"][1]["not_told_apart"] == ["waste"]
    assert set(found["optimal"][0]["not_told_apart"]) == {"vote", "waste"}
    (pair,) = [
        one for one in found["pairs"] if one["budget"] == 200 and {one["first"], one["second"]} == {"vote", "waste"}
    ]
    assert pair["difference"] == [-0.0625, -0.1875, 0.0]


def test_only_tasks_that_all_have_answered_are_compared() -> None:
    found = summary.results([*ROWS, row("greedy", 100, "extra", True, 1e9)], ["greedy", "vote", "waste"])
    assert (found["compared_tasks"], found["rows"]) == (16, len(ROWS))
    assert found["table"][0]["accuracy"] == 0.25
    assert summary.results(ROWS[:3], ["greedy", "vote"])["table"][0]["tasks"] == 3


def test_seeds_are_averaged_within_a_task() -> None:
    rows = [row("a", 1, "t", True, 1.0), {**row("a", 1, "t", False, 3.0), "seed": 2}]
    (entry,) = summary.results(rows, ["a"])["table"]
    assert (entry["accuracy"], entry["tasks"], entry["rows"], entry["flops"]) == (0.5, 1, 2, 2.0)


def test_a_seed_that_has_begun_takes_nothing_away() -> None:
    names = ["greedy", "vote", "waste"]
    whole = summary.results(ROWS, names)
    begun = {**row("greedy", 100, "t0", True, 1e9), "seed": 2}
    assert summary.results([*ROWS, begun], names) == whole
    # Once all have answered a task with it, its answers count within that task.
    second = [{**one, "seed": 2, "correct": True} for one in ROWS if one["task"] == "t15"]
    found = summary.results([*ROWS, begun, *second], names)
    assert (found["compared_tasks"], found["rows"]) == (16, len(ROWS) + len(second))
    assert found["table"][0]["accuracy"] == round(4.5 / 16, 4)


def failed(strategy: str) -> list[dict[str, Any]]:
    """Nothing of it fits the context."""
    return [{**one, "error": "too long", "forward_tokens": 0} for one in sixteen(strategy, 100, 0, 0.0)]


def test_what_never_fits_the_context_has_no_cost(tmp_path: Path) -> None:
    found = summary.results([*sixteen("greedy", 100, 4, 1e9), *failed("long")], ["greedy", "long"])
    assert [entry["flops"] for entry in found["table"]] == [1e9, None]
    assert found["frontier_cost"] == "flops"
    assert [one["strategy"] for one in found["frontier"]] == ["greedy"]
    assert [one["strategy"] for one in found["optimal"]] == ["greedy"]
    documents.draw({**found, "run": {"unit": "forward_tokens"}}, tmp_path / "plot.svg")
    assert "long" in (tmp_path / "plot.svg").read_text()
    nothing = summary.results(failed("long"), ["long"])
    assert (nothing["frontier_cost"], nothing["frontier"], nothing["optimal"]) == (None, [], [])
    documents.draw({**nothing, "run": {"unit": "forward_tokens"}}, tmp_path / "plot.svg")
    # Beside answers, one that did not fit cost nothing.
    some = [row("a", 100, "t0", True, 2e9), {**row("a", 100, "t1", False, 0.0), "error": "too long"}]
    assert summary.results(some, ["a"])["table"][0]["flops"] == 1e9


def test_unknown_costs_stay_unknown() -> None:
    found = summary.results([*sixteen("a", 1, 4, 1e9), *sixteen("b", 1, 5, None)], ["a", "b"])
    assert [entry["flops"] for entry in found["table"]] == [1e9, None]
    assert found["frontier_cost"] == "forward_tokens"


def test_the_paired_bootstrap_against_the_exact_distribution() -> None:
    """Of 2 differences 0 and 1, a resample's mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4."""
    found = paired_difference({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 1.0})
    assert found == (0.5, 0.0, 1.0)
    # 100 tasks, 20 of which differ: the interval of a normal approximation, 0.2 +- 1.96 * 0.04.
    low_high = paired_difference({i: float(i < 20) for i in range(100)}, dict.fromkeys(range(100), 0.0))
    assert low_high is not None
    assert low_high[1:] == pytest.approx((0.2 - 1.96 * 0.04, 0.2 + 1.96 * 0.04), abs=0.011)
    assert paired_difference({"a": 1.0}, {"b": 1.0}) is None


def test_tables_hold_anything() -> None:
    table = Table(["a|b", "<i>"], [["x\ny", "\\<script>"]])
    assert table.markdown().split("\n") == ["| a\\|b | &lt;i> |", "| --- | ---: |", "| x y | \\\\&lt;script> |"]
    assert "<i>" not in table.html()
    assert "&lt;script&gt;" in table.html()
