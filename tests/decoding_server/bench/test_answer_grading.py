"""The process that compares answers: one that dies or hangs is no wrong answer. math-verify itself is not needed."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from broken_comparisons import MARK, dies, dies_once, hangs
from test_quality_bench import command, results_of, rows_of, run_here

from decoding_server.bench import answer_grading
from decoding_server.bench.answer_grading import AnswerGrader, GradingFailed, Judged


def comparing(monkeypatch: pytest.MonkeyPatch, compare: Any) -> None:
    monkeypatch.setattr(answer_grading, "verifies", lambda: True)
    monkeypatch.setattr(answer_grading, "_verified", compare)
    if compare is hangs:
        monkeypatch.setattr(answer_grading, "SECONDS", 0.5)


def test_a_worker_that_dies_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    comparing(monkeypatch, dies)
    with AnswerGrader() as grader:
        assert grader.right("18", "#### 18")  # needs no worker
        with pytest.raises(GradingFailed, match="process"):
            grader.right("18", "#### 19")


def test_a_worker_that_died_once_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    comparing(monkeypatch, dies_once)
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    with AnswerGrader() as grader:
        assert grader.judged("18", "#### 19") == Judged(True)
    assert (tmp_path / "mark").exists()


def test_what_takes_too_long_counts_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    comparing(monkeypatch, hangs)
    with AnswerGrader() as grader:
        assert grader.judged("18", "#### 19") == Judged(False, timed_out=True)
        assert grader.timeouts == 1


def test_a_run_whose_workers_die_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    comparing(monkeypatch, dies)
    given = command(tmp_path, "--strategy", "greedy", tasks=2)  # whose answers are wrong, so that they are compared
    assert run_here(given) == 3
    assert "2 cells failed" in capsys.readouterr().out
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_a_run_tells_of_what_took_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparing(monkeypatch, hangs)
    assert run_here(command(tmp_path, "--strategy", "greedy", "--label", "x", tasks=1)) == 0
    (row,) = rows_of(tmp_path)
    assert (row["correct"], row["grading"]) == (False, "timeout")
    assert results_of(tmp_path)["table"][0]["grading_timeouts"] == 1
    assert "1 took too long to compare" in (tmp_path / "out" / "table.md").read_text()
