"""The tasks of HumanEval (Chen et al. 2021), MBPP (Austin et al. 2021) and EvalPlus's larger versions of both, each
with what the model is told, the data set's asserts, and the hidden tests that judge."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoding_server.bench.code import evalplus
from decoding_server.bench.dataset import fingerprint
from decoding_server.bench.rows import read_records
from decoding_server.bench.subset import SUBSET_SEED, chosen
from strategies.sandbox.checks import CallCheck, Check, StatementCheck, check_assert
from strategies.search.prompt_examples import entry_point_of

HUMANEVAL, MBPP, HUMANEVAL_PLUS, MBPP_PLUS = "HumanEval", "MBPP", "HumanEval+", "MBPP+"
MBPP_TEST_SPLIT = range(11, 511)

HUMANEVAL_PROMPT = "Complete this Python function.\n\n```python\n{prompt}```"
MBPP_PROMPT = "{text}\n\nThe function must pass this test:\n{test}"


@dataclass(frozen=True, slots=True)
class CodeTask:
    """One task.

    prompt: what a user would say. asserts: of the data set, calling the entry point, in order: those that may be shown
    to a search. hidden: what decides whether a program is right; setup: runs behind the program, before each of them.
    """

    name: str
    prompt: str
    entry_point: str
    asserts: tuple[str, ...]
    hidden: tuple[Check, ...]
    setup: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """kind: HumanEval, MBPP, or either with a plus. sha256: of its records."""

    kind: str
    tasks: tuple[CodeTask, ...]
    sha256: str

    def subset(self, count: int | None, seed: int = SUBSET_SEED) -> list[CodeTask]:
        """In a fixed random order, so that whatever part is measured is a random one."""
        return [self.tasks[i] for i in chosen(len(self.tasks), count, seed)]


def load(path: Path) -> Dataset:
    """Of any of the formats. Of MBPP's whole file the authors' test split is taken (task ids 11 to 510).

    Raises OSError, and ValueError for a file that is something else.
    """
    records = read_records(path)
    if not records or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path.name}: no tasks")
    if any(map(evalplus.needs_numpy, records)):
        raise ValueError(f"{path.name}: its tests need NumPy; take EvalPlus's release file, which has 'plus_input'")
    try:
        return code_dataset(records)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name}: no file of HumanEval, MBPP or EvalPlus: {error} is missing") from None


def is_code(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are records of one of the four."""
    first = records[0]
    return evalplus.is_plus(first) or "test_list" in first or {"prompt", "entry_point", "test"} <= first.keys()


def code_dataset(records: Sequence[Mapping[str, Any]]) -> Dataset:
    """Raises KeyError and TypeError for records that are something else."""
    sha256 = fingerprint(records)
    if evalplus.is_plus(records[0]):
        kind = MBPP_PLUS if evalplus.is_mbpp(records[0]) else HUMANEVAL_PLUS
        return Dataset(kind, tuple(map(of_evalplus, records)), sha256)
    if "test_list" in records[0]:
        split = [record for record in records if int(record["task_id"]) in MBPP_TEST_SPLIT]
        return Dataset(MBPP, tuple(map(of_mbpp, split or records)), sha256)
    return Dataset(HUMANEVAL, tuple(map(of_humaneval, records)), sha256)


def of_humaneval(record: Mapping[str, Any]) -> CodeTask:
    """The hidden test is the data set's own `check(candidate)`, run as one statement, as its harness does."""
    name, prompt, entry_point = str(record["task_id"]), str(record["prompt"]), str(record["entry_point"])
    return CodeTask(
        name,
        HUMANEVAL_PROMPT.format(prompt=prompt if prompt.endswith("\n") else prompt + "\n"),
        entry_point,
        tuple(asserts_of(str(record["test"]), entry_point)),
        (StatementCheck(f"check({entry_point})"),),
        f"{helpers_of(prompt, entry_point)}\n{record['test']}",
    )


def helpers_of(prompt: str, entry_point: str) -> str:
    """Functions that stand complete in the prompt before the one that is asked for, with its imports: some checks use
    them."""
    cut = prompt.rfind(f"def {entry_point}(")
    return prompt[:cut] if cut > 0 and "def " in prompt[:cut] else ""


def asserts_of(test: str, entry_point: str) -> list[str]:
    """The asserts of `check(candidate)` that can be judged outside of the sandbox, on the entry point's own name."""
    found = []
    for node in ast.parse(test).body:
        if isinstance(node, ast.FunctionDef) and node.name == "check":
            for statement in node.body:
                if isinstance(statement, ast.Assert):
                    renamed = Renamed(node.args.args[0].arg, entry_point).visit(statement.test)
                    source = ast.unparse(ast.Assert(renamed))
                    if usable(source, entry_point):
                        found.append(source)
    return found


class Renamed(ast.NodeTransformer):
    """One name instead of another."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Name(self.new, node.ctx), node) if node.id == self.old else node


def usable(source: str, entry_point: str) -> bool:
    try:
        return isinstance(check_assert(source, entry_point), CallCheck)
    except ValueError:
        return False


def of_mbpp(record: Mapping[str, Any]) -> CodeTask:
    """The prompt shows the first assert, as usual: without it nobody could know the function's name. It is one of the
    hidden tests too."""
    tests = [str(test) for test in record["test_list"]]
    code = str(record["code"])
    entry_point = entry_point_of("", tests) or entry_point_of(code, ()) or ""
    return CodeTask(
        f"MBPP/{record['task_id']}",
        MBPP_PROMPT.format(text=str(record.get("text") or record["prompt"]).strip(), test=tests[0]),
        entry_point,
        tuple(test for test in tests if usable(test, entry_point)),
        tuple(checked(tests, entry_point)),
        str(record.get("test_setup_code") or "\n".join(record.get("test_imports") or ())),
    )


def of_evalplus(record: Mapping[str, Any]) -> CodeTask:
    """MBPP+'s prompt is a docstring that shows one assert, which counts as the prompt's example. HumanEval+'s file has
    no asserts that could be shown."""
    prompt, entry_point = str(record["prompt"]), str(record["entry_point"])
    setup, hidden = evalplus.hidden_tests(record)
    stated = [line.strip() for line in str(record.get("assertion") or "").split("\n")]
    said = prompt.strip().strip('"').strip() if evalplus.is_mbpp(record) else HUMANEVAL_PROMPT.format(prompt=prompt)
    return CodeTask(
        str(record["task_id"]),
        said,
        entry_point,
        tuple(test for test in stated if test.startswith("assert") and usable(test, entry_point)),
        hidden,
        setup,
    )


def checked(tests: Sequence[str], entry_point: str) -> list[Check]:
    """Each assert as a test; one that doesn't name the function runs inside as it stands."""
    checks: list[Check] = []
    for test in tests:
        try:
            checks.append(check_assert(test, entry_point))
        except ValueError:
            checks.append(StatementCheck(test))
    return checks
