"""The search study: subsets, grading, votes on recorded samples, intervals, resuming, and the page that is written."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from decoding_server.bench.answer_grading import AnswerGrader
from decoding_server.bench.intervals import wilson
from decoding_server.bench.search_study import documents, summary
from decoding_server.bench.search_study.asking import ask
from decoding_server.bench.search_study.contenders import Contender, contenders
from decoding_server.bench.search_study.questions import Question, load
from models.scripted import ByteTokenizer, scripted_runtime
from strategies.scoring.self_evaluation import SelfEvaluation


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [{"question": f"What is {i} + {i}?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_larger_subset_contains_the_smaller_one(questions: Path) -> None:
    few, more = load(questions, 5), load(questions, 9)
    assert more[:5] == few
    assert [question.number for question in few] != [0, 1, 2, 3, 4]
    assert all(question.gold == str(2 * question.number) for question in load(questions, None))


def test_a_line_without_its_fields_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n{"question": "b"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        load(path, None)


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("18", "so it is 18.\n#### 18", True),
        ("1200", "#### $1,200", True),
        ("18", "#### 19", False),
        ("18", "no number here", False),
        ("0.5", "The answer is \\boxed{\\frac{1}{2}}", True),
    ],
)
def test_grading(gold: str, text: str, right: bool) -> None:
    with AnswerGrader() as grader:
        assert grader.right(gold, text) is right


def test_math_verify_runs_in_a_process_of_its_own() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed (the bench extra)")
    with AnswerGrader() as grader:
        assert grader.right("10^3", "the answer is \\boxed{1000}")
        assert not grader.right("10^3", "the answer is \\boxed{100}")


def samples_row(question: int, texts: Sequence[str], values: Sequence[float], gold: str) -> dict[str, Any]:
    samples = [
        {"tokens": 10, "value": value, "text": text, "right": text.endswith(gold)}
        for text, value in zip(texts, values, strict=True)
    ]
    return {
        "contender": "samples", "question": question, "prompt_tokens": 50, "target_tokens": 50 + 10 * len(texts) + 40,
        "cached_tokens": 0, "output_tokens": 10 * len(texts) + len(texts), "flops": 1e9, "seconds": 2.0,
        "right": samples[0]["right"], "samples": samples,
    }  # fmt: skip


def test_votes_are_drawn_from_the_first_samples() -> None:
    row = samples_row(0, ["#### 1", "#### 2", "#### 1", "#### 2"], [0.1, 0.9, 0.2, 0.3], "2")
    parts = dict(summary.expanded(row))
    assert parts["sampling"]["right"] == 0.5
    assert parts["majority 4"]["right"] == 0.0  # two each: the answer seen first
    assert parts["best of 4"]["right"] == 1.0
    assert parts["weighted majority 4"]["right"] == 1.0
    assert parts["any of 4"]["right"] == 1.0
    assert parts["sampling"]["target_tokens"] == 60
    assert parts["majority 4"]["target_tokens"] == 90
    assert parts["best of 4"]["target_tokens"] == 130  # and the scoring
    assert parts["majority 4"]["seconds"] == 2.0
    assert parts["sampling"]["seconds"] is None


def test_the_table_compares_with_greedy_question_by_question() -> None:
    def plain(question: int, right: bool) -> dict[str, Any]:
        return {
            "contender": "greedy", "question": question, "right": right, "prompt_tokens": 50, "target_tokens": 60,
            "cached_tokens": 0, "output_tokens": 10, "flops": 5e8, "seconds": 1.0,
        }  # fmt: skip

    rows = [plain(0, True), plain(1, False), plain(2, False)]
    rows += [samples_row(i, ["#### 2"] * 4, [0.5] * 4, "2") for i in range(3)]
    rows.append(plain(3, True))  # nobody else has answered it
    found = {entry["contender"]: entry for entry in summary.table(rows)}
    assert found["greedy"]["accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["greedy"]["difference"] is None
    assert found["majority 4"]["difference"][0] == pytest.approx(2 / 3, abs=1e-4)
    assert found["greedy"]["low"] < 1 / 3 < found["greedy"]["high"]
    assert [entry["gflops"] for entry in summary.table(rows)] == sorted(entry["gflops"] for entry in found.values())


@pytest.mark.parametrize(("target", "cached"), [(60, 0), (30, 30), (11, 49), (11, 449)])
def test_the_cache_that_others_left_is_no_saving(target: int, cached: int) -> None:
    """A prompt of 50 tokens and 10 more: whatever was cached of the prompt before, it is computed once."""
    row = {"prompt_tokens": 50, "target_tokens": target, "cached_tokens": cached, "flops": target * 2.0}
    found = summary.alone(row)
    assert (found["target_tokens"], found["flops"]) == (60, 120.0)
    assert found["cached_tokens"] == (400 if cached == 449 else 0)


def test_wilson_interval_of_a_known_case() -> None:
    assert wilson(8, 10) == pytest.approx((0.4901, 0.9433), abs=2e-4)
    assert wilson(0, 10)[0] == 0.0


TOKENIZER = ByteTokenizer()


def distribution(context: Sequence[int]) -> Tensor:
    text = TOKENIZER.decode(list(context), skip_special_tokens=False)
    answer = text.rsplit("<|assistant|>", 1)[-1]
    script = "#### 4"
    logits = torch.full((TOKENIZER.vocab_size,), -30.0)
    logits[256 if len(answer) >= len(script) else ord(script[len(answer)])] = 30.0
    return logits


def test_a_row_says_what_the_question_cost() -> None:
    async def rows() -> list[dict[str, Any]]:
        runtime = scripted_runtime(distribution, TOKENIZER, max_model_len=2048)
        try:
            with AnswerGrader() as grader:
                question = Question(7, "What is 2 + 2?", "4")
                votes = Contender("samples", 0.8, {"type": "best-of-n", "samples": 4, "trace": "full"})
                scorers = {"self-eval": SelfEvaluation()}
                return [
                    await ask(runtime, scorers, grader, one, question, seed=1, max_tokens=20)
                    for one in (Contender("greedy", 0.0), votes)
                ]
        finally:
            runtime.close()

    greedy, samples = asyncio.run(rows())
    assert (greedy["right"], greedy["finish_reason"], greedy["answer_tokens"]) == (True, "stop", 7)
    assert greedy["target_tokens"] == greedy["prompt_tokens"] + 6
    assert [sample["right"] for sample in samples["samples"]] == [True] * 4
    assert samples["scorer_calls"] == 4
    assert len(dict(summary.expanded(samples))) == 5


def test_every_contender_is_a_valid_search() -> None:
    assert all((one.search is None) == (one.build() is None) for one in contenders("self-eval"))


def test_the_page_gets_its_table_and_plot(tmp_path: Path) -> None:
    (tmp_path / "search.md").write_text("# Search\n\n<!-- search-study:begin -->\n<!-- search-study:end -->\n")
    rows = [samples_row(i, ["#### 2", "#### 1"] * 2, [0.5, 0.6] * 2, "2") for i in range(4)]
    run = {
        "model": "m", "max_tokens": 20, "concurrency": 2, "value": "auto", "commit": "abc", "date": "2026-01-01",
        "machine": {"processor": "p", "cores": 2},
    }  # fmt: skip
    documents.write(tmp_path, {"run": run, "table": summary.table(rows)})
    page = (tmp_path / "search.md").read_text()
    assert "| majority 4 | " in page
    assert "4 questions" in page
    assert "majority 4" in (tmp_path / "plots/search.svg").read_text()
    assert json.loads((tmp_path / "measured/search.json").read_text())["run"]["model"] == "m"
