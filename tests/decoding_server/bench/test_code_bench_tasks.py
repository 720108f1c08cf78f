"""The data sets of `bench code`: what becomes of their records."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_code_bench import PROMPT, humaneval, mbpp, written

from decoding_server.bench.code.tasks import load


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_humaneval(tmp_path: Path, name: str) -> None:
    dataset = load(written(tmp_path / name, humaneval(3)))
    assert (dataset.kind, len(dataset.tasks)) == ("HumanEval", 3)
    task = dataset.tasks[1]
    assert (task.name, task.entry_point) == ("HumanEval/1", "add")
    assert PROMPT in task.prompt
    assert task.asserts == ("assert add(1, 2) == 3", "assert add(2, 5) == 7")
    assert "check(candidate)" not in task.prompt


def test_helpers_in_a_prompt_are_there_for_the_hidden_tests(tmp_path: Path) -> None:
    record = humaneval()[0] | {"prompt": "import math\n\ndef twice(x):\n    return 2 * x\n\n" + PROMPT}
    record["test"] = "def check(candidate):\n    assert candidate(1, 1) == twice(1)\n"
    (task,) = load(written(tmp_path / "a.jsonl", [record])).tasks
    assert "def twice" in task.setup
    assert "def add" not in task.setup
    assert task.asserts == ()  # it can't be judged without the helper


def test_mbpp_takes_the_test_split(tmp_path: Path) -> None:
    dataset = load(written(tmp_path / "m.jsonl", [mbpp(number) for number in (10, 11, 510, 511)]))
    assert [task.name for task in dataset.tasks] == ["MBPP/11", "MBPP/510"]
    task = dataset.tasks[0]
    assert task.entry_point == "add"
    assert "assert add(1, 2) == 3" in task.prompt
    assert "assert add(2, 5)" not in task.prompt
    assert len(task.hidden) == 3


def test_a_larger_subset_contains_the_smaller_one(tmp_path: Path) -> None:
    dataset = load(written(tmp_path / "a.jsonl", humaneval(30)))
    few, more = dataset.subset(5), dataset.subset(12)
    assert more[:5] == few
    assert [task.name for task in few] != [task.name for task in dataset.subset(5, seed=1)]
    assert dataset.subset(5) == few


@pytest.mark.parametrize("text", ["", '{"question": "a"}\n', "[1]\n", "no json\n"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"."):
        load(path)
