"""Tests of a program, taken apart: what goes into the sandbox, and what stays outside to judge by.

`assert f(2, 3) == 5` becomes the call f(2, 3), of which only the arguments go in, and the comparison "result == 5",
which never does. Statements that can't be taken apart run inside and are marked spoofable. Tests on standard input send
the input and keep the expected output.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from strategies.sandbox.expressions import HOLE, WORK, Evaluation, Unsupported, compiled, constant, dotted
from strategies.sandbox.inside.codec import encode
from strategies.sandbox.inside.work import Work
from strategies.sandbox.operations import REFUSALS
from strategies.sandbox.outcome import Program

MAX_SOURCE = 16 << 10
MAX_CALLS = 8
ARGUMENTS_WORK = 1 << 15
"""Units for all arguments of a test."""
FAULTS = (TypeError, ArithmeticError, LookupError, ValueError, MemoryError)
"""What Python raises for an expression that is wrong."""

Unit = dict[str, Any]
"""One thing to do inside, as the worker's job has it: {"call": …}, {"statement": …} or {"stdin": …}."""

COLLECTED = dict.fromkeys(
    ("all", "any", "frozenset", "list", "max", "min", "set", "sorted", "sum", "tuple"), "iterable"
)
COLLECTED["len"] = "sized"
"""Functions that need no more of a result than its items, so that it may be a generator, a range, a view, …; and what
it must be for that."""


@dataclass(frozen=True, slots=True)
class CallCheck:
    """Calls of the tested function and what must be true of their results, evaluated outside.

    comparison takes the results by name: f"{HOLE}{i}" for call i.
    collected: "iterable" or "sized", by the calls whose results come out as the list of their items, if they are so and
    not of built-in types. Not in the units, which are equal for equal calls.
    """

    source: str
    units: tuple[Unit, ...]
    comparison: Evaluation
    collected: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StatementCheck:
    """A statement run inside, after the program: passes if it raises nothing. The program could forge that."""

    source: str

    @property
    def units(self) -> tuple[Unit, ...]:
        return ({"statement": self.source},)


@dataclass(frozen=True, slots=True)
class StdinCheck:
    """The program run as a script; its standard output is compared outside, trailing white space aside."""

    stdin: str
    stdout: str

    @property
    def units(self) -> tuple[Unit, ...]:
        return ({"stdin": self.stdin},)


Check = CallCheck | StatementCheck | StdinCheck


def sent(check: Check) -> list[Unit]:
    """A check's units as they go in."""
    collected = check.collected if isinstance(check, CallCheck) else {}
    return [unit | {"collect": collected[i]} if i in collected else unit for i, unit in enumerate(check.units)]


def check_assert(source: str, entry_point: str, work: Work | None = None) -> CallCheck | StatementCheck:
    """The test that an assert statement states. work: what may be spent on several tests together.

    Raises ValueError when it doesn't parse, is no assert statement, doesn't use the entry point, or is too long.
    """
    statement = parsed(source, "exec", entry_point)
    if len(statement.body) != 1 or not isinstance(statement.body[0], ast.Assert):
        raise ValueError("a test must be one assert statement")
    return taken_apart(source, statement.body[0].test, entry_point, work) or StatementCheck(source)


def check_call(call: str, expected: str, entry_point: str, work: Work | None = None) -> CallCheck | StatementCheck:
    """The test that `call` returns what `expected` evaluates to, both source text. work and ValueError as above."""
    comparison = ast.Compare(parsed(call, "eval", entry_point).body, [ast.Eq()], [parsed(expected, "eval", None).body])
    source = f"assert ({call.strip()}) == ({expected.strip()})"
    return taken_apart(source, comparison, entry_point, work) or StatementCheck(source)


def check_input(call: str, entry_point: str) -> CallCheck:
    """No test, but a call to see what comes of it: any value of built-in types passes. Raises ValueError as above, and
    where the arguments can't go in."""
    calls = Calls(entry_point, Work(ARGUMENTS_WORK))
    try:
        calls.visit(parsed(call, "eval", entry_point).body)
    except (Unsupported, RecursionError) as error:
        raise ValueError(f"a call can't be made from outside: {error}") from None
    if len(calls.units) != 1:
        raise ValueError("an input must be one call")
    return CallCheck(call, tuple(calls.units), lambda _values, _work=None: True)


def check_stdin(stdin: str, stdout: str) -> StdinCheck:
    """The test that the program prints `stdout` when it reads `stdin`. Raises ValueError when one is too long."""
    for name, text in (("stdin", stdin), ("stdout", stdout)):
        if len(text) > MAX_SOURCE:
            raise ValueError(f"{name} is longer than {MAX_SOURCE} characters")
    return StdinCheck(stdin, stdout)


def digest_of(program: Program, checks: Sequence[Check]) -> str:
    """Equal for the same tests of the same function, whatever the program is."""
    tests = [[check.stdin, check.stdout] if isinstance(check, StdinCheck) else check.source for check in checks]
    return hashlib.sha256(json.dumps([program.entry_point, program.setup, tests]).encode()).hexdigest()[:16]


def parsed(source: str, mode: str, entry_point: str | None) -> Any:
    if len(source) > MAX_SOURCE:
        raise ValueError(f"a test is longer than {MAX_SOURCE} characters")
    try:
        tree = ast.parse(source.strip(), mode=mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"a test does not parse: {error}") from None
    if entry_point is not None and not any(
        isinstance(node, ast.Name) and node.id == entry_point for node in ast.walk(tree)
    ):
        raise ValueError(f"a test does not use {entry_point}")
    return tree


def taken_apart(source: str, expression: ast.expr, entry_point: str, work: Work | None = None) -> CallCheck | None:
    """None for what must run inside: unusual expressions, arguments that don't evaluate to built-in values, or what is
    beyond the evaluator's limits whatever the results are.

    Changes the expression.
    """
    work = Work(ARGUMENTS_WORK + WORK) if work is None else work
    try:
        with part_of(work, ARGUMENTS_WORK) as part:
            calls = Calls(entry_point, part)
            compared = calls.visit(expression)
        comparison = compiled(compared)
        with part_of(work, WORK) as part:
            if refused(compared, part):
                return None
    except (Unsupported, RecursionError):
        return None
    return CallCheck(source, tuple(calls.units), comparison, calls.collected) if calls.units else None


@contextmanager
def part_of(whole: Work, most: int) -> Iterator[Work]:
    """At most so many of the units that are left."""
    part = Work(min(most, whole.left))
    whole.left -= part.left
    try:
        yield part
    finally:
        whole.left += max(0, part.left)


def refused(expression: ast.expr, work: Work) -> bool:
    """Whether a part that doesn't depend on the results can't be evaluated here: every program would fail the test."""
    parts: list[ast.expr] = []
    collect_fixed(expression, parts)
    for part in parts:
        try:
            constant(part, work)
        except REFUSALS:
            return True
        except FAULTS:
            continue
    return False


def collect_fixed(node: ast.AST, parts: list[ast.expr]) -> bool:
    """Whether there is no hole in it. Adds the largest parts without one of what has some."""
    children = list(ast.iter_child_nodes(node))
    fixed = [child for child in children if collect_fixed(child, parts)]
    if len(fixed) == len(children) and not (isinstance(node, ast.Name) and node.id.startswith(HOLE)):
        return True
    parts += [child for child in fixed if isinstance(child, ast.expr)]
    return False


class Calls(ast.NodeTransformer):
    """Replaces calls of the entry point by holes and collects their arguments."""

    def __init__(self, entry_point: str, work: Work) -> None:
        self.entry_point = entry_point
        self.units: list[Unit] = []
        self.collected: dict[int, str] = {}
        self.work = work

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not self.is_ours(node):
            name = dotted(node.func)
            # With more arguments, max and min don't look into them.
            if (
                name in COLLECTED
                and node.args
                and self.is_ours(node.args[0])
                and (len(node.args) == 1 or name == "sum")
            ):
                self.collected[len(self.units)] = COLLECTED[name]
            return self.generic_visit(node)
        positional = [argument(part, self.work) for part in node.args]
        named = {str(part.arg): argument(part.value, self.work) for part in node.keywords if part.arg is not None}
        if len(named) != len(node.keywords) or len(self.units) == MAX_CALLS:
            raise Unsupported("unpacked arguments, or too many calls")
        self.units.append({"call": [positional, named]})
        return ast.Name(f"{HOLE}{len(self.units) - 1}", ast.Load())

    def is_ours(self, node: ast.expr) -> TypeGuard[ast.Call]:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == self.entry_point


def argument(node: ast.expr, work: Work) -> list[Any]:
    """An argument's encoded value. Raises Unsupported unless it evaluates, without the program, to a built-in value."""
    try:
        value = constant(node, work)
        work.spend(work.size(value))
        encoded = encode(value, 1 << 18)
    except Unsupported:
        raise
    except FAULTS as error:
        raise Unsupported(f"an argument raises {type(error).__name__}") from None
    if opaque(encoded):
        raise Unsupported("an argument without a built-in value")
    return encoded


def opaque(encoded: Any) -> bool:
    """Whether any part of an encoded value is opaque."""
    if encoded[0] == "opaque":
        return True
    if encoded[0] == "dict":
        return any(opaque(part) for pair in encoded[1] for part in pair)
    return encoded[0] in ("list", "tuple", "set", "frozenset") and any(map(opaque, encoded[1]))
