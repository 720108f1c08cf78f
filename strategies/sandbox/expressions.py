"""Expressions of tests, evaluated here on values that came out of a sandbox: literals, comparisons, a few functions.

The values are hostile (of built-in types, at most a megabyte) and the tests may come from anyone. So an evaluation has
a budget of work, every operation is paid for before it is done, and what can't be bounded is refused: see
`operations.py`. When the budget is used up the evaluation ends with TooMuch; until then it takes 0.3 s of processor
time and some tens of megabytes at most (measured, see docs/sandbox.md).
"""

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from strategies.sandbox.inside.work import Work
from strategies.sandbox.operations import (
    ARITHMETIC,
    FUNCTIONS,
    KEYWORDS,
    ONE_ARGUMENT,
    arithmetic,
    compare,
    subscript,
    unary,
)

WORK = 1 << 20
"""Units for one evaluation: a list of the largest size that comes out can be visited ten times, if of lists twice."""
HOLE = "result "
"""A name that no program can contain: what stands where the tested function is called, with a number."""


class Unsupported(ValueError):
    """Not an expression that can be evaluated outside of the sandbox."""


TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)}
CONSTANTS = {"math.pi": math.pi, "math.e": math.e, "math.inf": math.inf, "math.nan": math.nan}
Values = Mapping[str, Any]


class Evaluation(Protocol):
    """Takes the holes' values by name. work: what several evaluations may cost together. Raises what Python would
    raise, TypeError, ZeroDivisionError, IndexError, …, and TooMuch, a ValueError."""

    def __call__(self, values: Values, work: Work | None = None, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Scope:
    """What one evaluation has: the holes' values and the work that is left."""

    values: Values
    work: Work


Part = Callable[[Scope], Any]


def compiled(node: ast.expr) -> Evaluation:
    """The expression as a function. Raises Unsupported for what is outside of the subset."""
    try:
        part = _compiled(node)
    except RecursionError:
        raise Unsupported("nested too deeply") from None
    return lambda values, work=None: part(Scope(values, Work(WORK) if work is None else work))


def constant(node: ast.expr, work: Work) -> Any:
    """The value of an expression without holes. Raises Unsupported, and what an Evaluation raises."""
    return _compiled(node)(Scope({}, work))


def _compiled(node: ast.expr) -> Part:
    match node:
        case ast.Constant(literal) if literal is not Ellipsis:
            return lambda scope: literal
        case ast.Name(name) if name.startswith(HOLE):
            return lambda scope: scope.values[name]
        case ast.Name(name) if name in TYPES:
            return lambda scope: TYPES[name]
        case ast.Attribute() if dotted(node) in CONSTANTS:
            return lambda scope: CONSTANTS[dotted(node)]
        case ast.List(items):
            return _sequence(items)
        case ast.Tuple(items):
            sequence = _sequence(items)
            return lambda scope: tuple(sequence(scope))
        case ast.Set(items):
            sequence = _sequence(items)
            return lambda scope: scope.work.members(sequence(scope))
        case ast.Dict(keys, items):
            return _dict(keys, items)
        case ast.UnaryOp(sign, part):
            operand = _compiled(part)
            return lambda scope: unary(scope.work, sign, operand(scope))
        case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
            first, second = _compiled(left), _compiled(right)
            return lambda scope: arithmetic(scope.work, op, first(scope), second(scope))
        case ast.BoolOp(junction, operands):
            return _boolean(isinstance(junction, ast.And), operands)
        case ast.Compare(left, ops, comparators):
            return _comparison(left, ops, comparators)
        case ast.Subscript(container, index):
            indexed, position = _compiled(container), _index(index)
            return lambda scope: subscript(scope.work, indexed(scope), position(scope))
        case ast.IfExp(test, body, orelse):
            condition, yes, no = _compiled(test), _compiled(body), _compiled(orelse)
            return lambda scope: yes(scope) if condition(scope) else no(scope)
        case ast.Call(target, arguments, keywords):
            return _call(target, arguments, keywords)
    raise Unsupported(f"{type(node).__name__} is not evaluated outside of the sandbox")


def _sequence(items: list[ast.expr]) -> Callable[[Scope], list[Any]]:
    parts = list(map(_compiled, items))
    return lambda scope: [part(scope) for part in parts]


def _dict(keys: list[ast.expr | None], items: list[ast.expr]) -> Part:
    pairs = [(_compiled(key), _compiled(item)) for key, item in zip(keys, items, strict=True) if key is not None]
    if len(pairs) != len(keys):
        raise Unsupported("** is not evaluated outside of the sandbox")
    return lambda scope: scope.work.mapping((key(scope), item(scope)) for key, item in pairs)


def _index(node: ast.expr) -> Part:
    if not isinstance(node, ast.Slice):
        return _compiled(node)
    bounds = [_compiled(part) if part else None for part in (node.lower, node.upper, node.step)]
    return lambda scope: slice(*(bound(scope) if bound else None for bound in bounds))


def _boolean(conjunction: bool, operands: list[ast.expr]) -> Part:
    parts = list(map(_compiled, operands))

    def evaluate(scope: Scope) -> Any:
        result: Any = conjunction
        for part in parts:
            result = part(scope)
            if bool(result) is not conjunction:
                break
        return result

    return evaluate


def _comparison(left: ast.expr, ops: list[ast.cmpop], comparators: list[ast.expr]) -> Part:
    start = _compiled(left)
    rest = [(op, _compiled(comparator)) for op, comparator in zip(ops, comparators, strict=True)]

    def evaluate(scope: Scope) -> Any:
        first, result = start(scope), True
        for op, part in rest:
            second = part(scope)
            result = compare(scope.work, op, first, second)
            if not result:
                break
            first = second
        return result

    return evaluate


def _call(target: ast.expr, arguments: list[ast.expr], keywords: list[ast.keyword]) -> Part:
    name = dotted(target)
    if name not in FUNCTIONS or any(keyword.arg not in KEYWORDS for keyword in keywords):
        raise Unsupported(f"{name or 'this call'} is not evaluated outside of the sandbox")
    if name == "sum" and len(arguments) == 2 and isinstance(arguments[1], (ast.List, ast.Tuple)):
        raise Unsupported("sum of sequences is not evaluated outside of the sandbox")
    if name in ONE_ARGUMENT and len(arguments) != 1:
        raise Unsupported(f"{name} with other than one argument is not evaluated outside of the sandbox")
    function, parts = FUNCTIONS[name], list(map(_compiled, arguments))
    named = {str(keyword.arg): _compiled(keyword.value) for keyword in keywords}
    return lambda scope: function(
        scope.work, *(part(scope) for part in parts), **{key: part(scope) for key, part in named.items()}
    )


def dotted(node: ast.expr) -> str:
    """`name` or `module.name`, "" for anything else."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(ast.Name(module), name):
            return f"{module}.{name}"
    return ""
