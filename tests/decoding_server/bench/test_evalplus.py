"""EvalPlus's release files: a small one written here in their format, its rule of comparison, programs judged by it."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from decoding_server.bench.code import documents
from decoding_server.bench.code.evalplus_oracle import Oracle, restored
from decoding_server.bench.code.judging import Judge
from decoding_server.bench.code.tasks import CodeTask, load
from strategies.sandbox.outcome import SandboxUnavailable
from strategies.sandbox.sandbox import open_sandbox
from strategies.search.visible_tests import prompt_tests

MEAN_PROMPT = """from typing import List


def mean(xs: List[float]) -> float:
    '''The mean.
    >>> mean([1, 3])
    2.0
    '''
"""
MEAN = {
    "task_id": "HumanEval/900",
    "prompt": MEAN_PROMPT,
    "entry_point": "mean",
    "canonical_solution": "    return sum(xs) / len(xs) if xs else 0.0\n",
    "contract": "",
    "base_input": [[[1, 3]], [[0.5, 0.25]]],
    "plus_input": [[[]], *([[i, i + 1]] for i in range(120)), [[1e15, 1.0, -1e15]]],
    "atol": 0,
}
SHARED_PROMPT = '''"""
Write a function to find the shared elements of two tuples.
assert set(similar_elements((1, 2), (2, 3))) == {2}
"""
'''
SHARED = {
    "task_id": "Mbpp/2",
    "prompt": SHARED_PROMPT,
    "entry_point": "similar_elements",
    "canonical_solution": "\ndef similar_elements(a, b):\n    return tuple(set(a) & set(b))\n",
    "contract": "",
    "base_input": [[[1, 2], [2, 3]]],
    "plus_input": [[[], [1]], [[4, 5, 6], [6, 5]]],
    "atol": 0,
    "assertion": "assert set(similar_elements((1, 2), (2, 3))) == {2}\nassert set(similar_elements((1,), (1,))) == {1}",
}


def written(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def verdicts(task: CodeTask, sources: Sequence[str]) -> list[tuple[str, str]]:
    async def judged() -> list[tuple[str, str]]:
        try:
            sandbox = await open_sandbox(["bwrap", "lsm"], warm=1)
        except SandboxUnavailable as error:
            pytest.skip(f"no sandbox is usable: {error}")
        try:
            return [(one.outcome, one.error) for one in await Judge(sandbox).judged(task, sources)]
        finally:
            await sandbox.close()

    return asyncio.run(judged())


def test_humaneval_plus(tmp_path: Path) -> None:
    dataset = load(written(tmp_path / "h.jsonl", [MEAN]))
    (task,) = dataset.tasks
    assert (dataset.kind, task.name, task.entry_point) == ("HumanEval+", "HumanEval/900", "mean")
    assert MEAN["prompt"] in task.prompt
    assert "return" not in task.prompt
    assert len(task.hidden) == 3  # 124 inputs, 50 at a time
    sources = [
        "def mean(xs):\n    return sum(xs) / len(xs) if xs else 0.0\n",
        "def mean(xs):\n    print('x' * 10000)\n    return (sum(xs) / len(xs) if xs else 0.0) + 1e-8\n",
        "def mean(xs):\n    return sum(xs) / len(xs)\n",
        "def mean(xs):\n    return sum(xs) // len(xs) if xs else 0.0\n",
        "def mean(xs):\n    xs.append(0)\n    return sum(xs) / (len(xs) - 1) if len(xs) > 1 else 0.0\n",
        "def mean(xs):\n    return 30.5 if xs == [30, 31] else sum(xs) / len(xs) if xs else 0.0\n",
        "def mean(xs):\n    return 0 if xs == [75, 76] else sum(xs) / len(xs) if xs else 0.0\n",
        "def average(xs):\n    return 0\n",
    ]
    found = verdicts(task, sources)
    assert [outcome for outcome, _ in found] == [
        *("pass", "pass", "exception", "assert_fail", "pass", "pass", "assert_fail", "exception")
    ]
    assert [error for _, error in found if error] == [
        *("ZeroDivisionError", "AssertionError", "AssertionError", "NameError")
    ]


def test_mbpp_plus(tmp_path: Path) -> None:
    dataset = load(written(tmp_path / "m.jsonl", [SHARED]))
    (task,) = dataset.tasks
    assert dataset.kind == "MBPP+"
    assert task.prompt.startswith("Write a function")
    assert '"""' not in task.prompt
    assert task.asserts == tuple(SHARED["assertion"].split("\n"))
    sources = [
        "def similar_elements(a, b):\n    assert type(a) is type(b) is tuple\n    return [x for x in b if x in a]\n",
        "def similar_elements(a, b):\n    return (set(a) & set(b)) or {0}\n",
    ]
    assert [outcome for outcome, _ in verdicts(task, sources)] == ["pass", "assert_fail"]


def test_an_example_in_the_prompt_is_found(tmp_path: Path) -> None:
    (task,) = load(written(tmp_path / "h.jsonl", [MEAN])).tasks
    assert [test.source for test in prompt_tests(task.prompt, "mean", [])] == ["assert mean([1, 3]) == 2.0"]


@pytest.mark.parametrize("field", ["base_input", "canonical_solution", "atol", "entry_point"])
def test_files_that_lack_something(tmp_path: Path, field: str) -> None:
    record = {name: value for name, value in MEAN.items() if name != field}
    with pytest.raises(ValueError, match=field):
        load(written(tmp_path / "h.jsonl", [record]))


@pytest.mark.parametrize("more", [{}, {"test_list": ["assert mean([1]) == 1"], "code": "def mean(xs): pass"}])
def test_the_form_that_needs_numpy_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    """Every program would fail on it."""
    record = {"task_id": "HumanEval/0", "prompt": MEAN["prompt"], "entry_point": "mean"}
    record["test"] = "import numpy as np\n\ndef check(candidate):\n    assert np.allclose(candidate([1]), 1)\n"
    with pytest.raises(ValueError, match="NumPy"):
        load(written(tmp_path / "h.jsonl", [record | more]))


def oracle(entry_point: str, atol: float = 0, task: str = "HumanEval/0", body: str = "return x") -> Oracle:
    return Oracle(task, entry_point, f"def {entry_point}(x, y=0):\n    {body}\n", "[]", atol)


@pytest.mark.parametrize(
    ("result", "expected", "atol", "agrees"),
    [
        (1.0, 1, 0, True),
        (1.0 + 1e-9, 1.0, 0, True),
        (1.0 + 1e-5, 1.0, 0, False),
        (1.0 + 1e-5, 1.0, 1e-4, True),
        ([1.0, 2.0 + 1e-9], [1.0, 2.0], 0, True),
        ((1.0, 2.0 + 1e-9), [1.0, 2.0], 0, False),
        ([1.0], [1.0, 2.0], 0, False),
        ([[1.0 + 1e-9]], [[1.0]], 0, False),
        ([[1.0 + 1e-9]], [[1.0]], 1e-6, True),
        (float("inf"), 1.0, 0, False),
        (float("inf"), float("inf"), 0, True),
        (float("nan"), float("nan"), 0, False),
        ("a", "b", 1e-6, False),
        ([], [], 0, True),
        (None, 0.0, 0, False),
        (10**400, 10**400 + 1, 1e-6, False),
    ],
)
def test_the_rule(result: Any, expected: Any, atol: float, agrees: bool) -> None:
    assert oracle("f", atol).agrees([], result, expected) is agrees


def test_rules_of_their_own() -> None:
    root = oracle("find_zero", 1e-4)
    assert root.agrees([[-4.0, 0.0, 1.0]], -2.00001, 2.0)
    assert not root.agrees([[-4.0, 0.0, 1.0]], 2.1, 2.0)
    same = oracle("Diff", task="Mbpp/769")
    assert same.agrees([], [2, 1, 1], [1, 2])
    assert not same.agrees([], [2], [1, 2])
    there = oracle("check_str", task="Mbpp/454")
    assert there.agrees([], "anything", object())
    assert there.agrees([], False, None)
    assert not there.agrees([], None, object())
    assert not there.agrees([], True, None)
    assert oracle("sum_div", task="Mbpp/295").agrees([5], 0, 6)
    assert not oracle("sum_div", task="Mbpp/295").agrees([5], 1, 6)
    assert oracle("are_equivalent", task="Mbpp/164").agrees([1, 2], False, True)
    # Slant heights of 5 and 13 for half an edge of 3 and 5.
    assert oracle("surface_Area", task="Mbpp/581").agrees([6, 4], 6 * 6 + 4 * (6 * 5) // 2, 0)
    assert oracle("surface_Area", task="Mbpp/581").agrees([10, 12], 10 * 10 + 4 * (10 * 13) // 2, 0)
    assert oracle("digit_distance_nums", task="Mbpp/558").agrees([23, 156], 1 + 3 + 3, 0)
    assert not oracle("digit_distance_nums", task="Mbpp/558").agrees([23, 156], 6, 0)


@pytest.mark.parametrize(
    ("number", "arguments", "expected"),
    [
        (1, [[1]], [[1]]),
        (2, [[1, 2], [3]], [(1, 2), (3,)]),
        (63, [[[1, 2], [3, 4]]], [[(1, 2), (3, 4)]]),
        (75, [[[1, 2]], 3], [[(1, 2)], 3]),
        (106, [[1], [2]], [[1], (2,)]),
        (115, [[[1, 1], []]], [[{1}, {}]]),
        (124, ["1.5", "1j"], [1.5, 1j]),
        (250, [[1, 2], 3], [(1, 2), 3]),
        (252, ["(1+2j)"], [1 + 2j]),
        (259, [[[1], [2]], [[3]]], [((1,), (2,)), ((3,),)]),
        (278, [[1, [2, 3]]], [(1, (2, 3))]),
        (307, [[1], 2, 3], [(1,), 2, 3]),
        (580, [[1, [2, [3]]]], [(1, (2, (3,)))]),
        (722, [{"a": [1, 2]}, 1.0, 2], [{"a": (1, 2)}, 1.0, 2]),
    ],
)
def test_arguments_get_their_types_back(number: int, arguments: list[Any], expected: list[Any]) -> None:
    found = restored(number, arguments)
    assert repr(found) == repr(expected)


def test_pages_of_plus_and_plain_have_different_names() -> None:
    assert documents.slug("Model-HumanEval+-given") != documents.slug("Model-HumanEval-given")
