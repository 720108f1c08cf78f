"""Which asserts of a model's are tests: those that can be judged outside of the sandbox and that a program can fail."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from strategies.sandbox.checks import CallCheck, check_assert
from strategies.sandbox.expressions import HOLE, Unsupported, constant
from strategies.sandbox.inside.work import TooMuch, Work
from strategies.search.source_text import source_of, tree_of

MAX_GENERATED = 1000
"""Characters of a generated test."""
VETTING_WORK = 1 << 15
"""Units for all that is evaluated to vet one."""
FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, MemoryError, RecursionError)
"""What a comparison raises for values that it doesn't fit, which the test then fails on."""
SAMPLES: tuple[Any, ...] = (None, True, False, 0, 1, -1, 0.5, 1j, "", "?", b"", (), [], set(), frozenset(), {})
MAX_MEMBERS = 8
SYMMETRIC = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)


@dataclass(frozen=True, slots=True)
class Vetted:
    """source: the assert statement in normal form. values: what it compares the result with."""

    source: str
    check: CallCheck
    values: tuple[Any, ...]


def vetted(line: str, entry_point: str) -> Vetted | None:
    """The test that an assert statement is. None for what doesn't parse, makes other than one call with arguments that
    can be sent into the sandbox, compares what can't be compared outside, passes for any value, or costs too much to
    find that out."""
    if len(line) > MAX_GENERATED:
        return None
    work = Work(VETTING_WORK)
    try:
        check = check_assert(line, entry_point, work)
    except ValueError:
        return None
    tree = tree_of(line)
    if tree is None or not isinstance(check, CallCheck) or len(check.units) != 1:
        return None
    statement = tree.body[0]
    assert isinstance(statement, ast.Assert)
    try:
        values = tuple(compared(statement.test, work))
        if not can_fail(check, values, work):
            return None
    except TooMuch:
        return None
    text = source_of(ast.Assert(call_first(statement.test, entry_point)))
    return None if text is None else Vetted(text, check, values)


def call_first(test: ast.expr, entry_point: str) -> ast.expr:
    """A comparison that is the same either way round, with the call on the left."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], SYMMETRIC):
        right = test.comparators[0]
        if mentions(right, entry_point) and not mentions(test.left, entry_point):
            return ast.Compare(right, test.ops, [test.left])
    return test


def mentions(expression: ast.expr, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(expression))


def agree(tests: Sequence[Vetted]) -> bool:
    """Whether one value passes all of these tests of one call, of those that are tried for `can_fail`. False where that
    costs too much to find out."""
    work = Work(VETTING_WORK)
    values = [value for test in tests for value in test.values]
    try:
        return any(all(passes(test.check, value, work) for test in tests) for value in (*values, *SAMPLES))
    except TooMuch:
        return False


def can_fail(check: CallCheck, values: Sequence[Any], work: Work) -> bool:
    """Whether any value fails the test, of one of each type and those that the test itself compares with: no test is
    `f(1) or True`, nor `bool(f(1)) in (True, False)`. Raises TooMuch."""
    return any(not passes(check, value, work) for value in (*SAMPLES, *values))


def passes(check: CallCheck, value: Any, work: Work) -> bool:
    try:
        return bool(check.comparison({f"{HOLE}0": value}, work))
    except TooMuch:
        raise
    except FAILURES:
        return False


def compared(test: ast.expr, work: Work) -> Iterator[Any]:
    """The values of operands that don't depend on the call, and members of those: what `!=` and `not in` fail on."""
    for comparison in ast.walk(test):
        if isinstance(comparison, ast.Compare):
            for operand in (comparison.left, *comparison.comparators):
                try:
                    value = constant(operand, work)
                except TooMuch:
                    raise
                except (Unsupported, *FAILURES):
                    continue
                yield value
                if isinstance(value, (str, list, tuple, set, frozenset, dict)):
                    yield from islice(value, MAX_MEMBERS)
