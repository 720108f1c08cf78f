"""The hidden tests of HumanEval+ and MBPP+ (Liu et al. 2023), from the release files of EvalPlus.

A release file (`HumanEvalPlus-v0.1.10.jsonl.gz`, `MbppPlus-v0.2.0.jsonl.gz`) holds one JSON object a task: `task_id`,
`prompt`, `entry_point`, `canonical_solution` (which goes on where the prompt ends), `base_input` and `plus_input`
(lists of argument lists), `atol`; MBPP+'s also `assertion`. Files for EvalPlus's override paths have the same form. No
expected values are in it: the reference solution is run on every input, in the sandbox, beside the program.
"""

import inspect
import json
from collections.abc import Mapping
from typing import Any

from decoding_server.bench.code import evalplus_oracle
from strategies.sandbox.checks import StatementCheck

INPUTS_AT_ONCE = 50
"""Of one hidden test, which has the sandbox's time limit."""
ORACLE = "_evalplus"


def is_plus(record: Mapping[str, Any]) -> bool:
    return "plus_input" in record


def is_mbpp(record: Mapping[str, Any]) -> bool:
    return str(record["task_id"]).startswith("Mbpp")


def needs_numpy(record: Mapping[str, Any]) -> bool:
    """The other form in which the data is found, HumanEval's with longer tests: those import NumPy, which programs in
    the sandbox can't, so every program would fail."""
    return "plus_input" not in record and "import numpy" in str(record.get("test", ""))


def hidden_tests(record: Mapping[str, Any]) -> tuple[str, tuple[StatementCheck, ...]]:
    """The setup, and tests that need it: base inputs first, then the added ones, some at a time.

    Raises KeyError for what is missing, TypeError for what is no list, ValueError for a task without a number.
    """
    int(str(record["task_id"]).rpartition("/")[2])
    inputs = [*record["base_input"], *record["plus_input"]]
    facts = [
        str(record["task_id"]),
        entry_point := str(record["entry_point"]),
        f"{record['prompt']}{record['canonical_solution']}",
        json.dumps(inputs),
        float(record["atol"]),
    ]
    # In a namespace of its own: the program may have functions of the same names.
    setup = (
        f"{ORACLE} = {{'__name__': 'evalplus'}}\n"
        f"exec({inspect.getsource(evalplus_oracle)!r}, {ORACLE})\n"
        f"{ORACLE} = {ORACLE}['Oracle']({', '.join(map(repr, facts))})\n"
    )
    starts = range(0, len(inputs), INPUTS_AT_ONCE)
    checks = [f"{ORACLE}.check({entry_point}, {start}, {start + INPUTS_AT_ONCE})" for start in starts]
    return setup, tuple(map(StatementCheck, checks))
