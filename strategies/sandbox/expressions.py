"""Expressions of tests, evaluated here on values that came out of a sandbox: literals, comparisons, a few functions.

The values are hostile (of built-in types, at most a megabyte) and the tests may come from a model, so every operation
is bounded: arithmetic on numbers of at most 4,096 bits, repetition to at most 100,000 items.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from strategies.sandbox.inside.codec import Malformed, hashable

MAX_BITS = 4096
MAX_ITEMS = 100_000
HOLE = "result "
"""A name that no program can contain: what stands where the tested function is called, with a number."""


class Unsupported(ValueError):
    """Not an expression that can be evaluated outside of the sandbox."""


def _set(kind: type) -> Callable[..., Any]:
    def build(items: Any = ()) -> Any:
        members = list(items)
        try:
            hashable(members)
        except Malformed as error:
            raise TypeError(str(error)) from None
        return kind(members)

    return build


def _sum(items: Any) -> Any:
    """Of numbers only: adding lists takes quadratic time."""
    numbers = list(items)
    if not all(isinstance(item, (int, float, complex)) for item in numbers):
        raise TypeError("sum of something that is not a number")
    return sum(numbers)


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_ITEMS:
        raise TypeError("a range too long")
    return numbers


def _round(number: Any, digits: int | None = None) -> Any:
    if digits is not None and abs(digits) > 1000:
        raise TypeError("too many digits to round to")
    return round(number, digits)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "all": all,
    "any": any,
    "bool": bool,
    "float": float,
    "frozenset": _set(frozenset),
    "int": int,
    "isinstance": isinstance,
    "len": len,
    "list": list,
    "max": max,
    "min": min,
    "range": _range,
    "round": _round,
    "set": _set(set),
    "sorted": sorted,
    "str": str,
    "sum": _sum,
    "tuple": tuple,
    "type": type,
    "math.isclose": math.isclose,
    "math.isnan": math.isnan,
    "math.isinf": math.isinf,
    "math.sqrt": math.sqrt,
}
KEYWORDS = {"reverse", "rel_tol", "abs_tol", "default"}
TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)}
CONSTANTS = {"math.pi": math.pi, "math.e": math.e, "math.inf": math.inf, "math.nan": math.nan}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Invert: operator.invert,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


Values = Mapping[str, Any]
Evaluation = Callable[[Values], Any]
"""Takes the holes' values by name. Raises what Python would raise: TypeError, ZeroDivisionError, IndexError, …"""


def compiled(node: ast.expr) -> Evaluation:
    """The expression as a function. Raises Unsupported for what is outside of the subset."""
    try:
        return _compiled(node)
    except RecursionError:
        raise Unsupported("nested too deeply") from None


def _compiled(node: ast.expr) -> Evaluation:
    match node:
        case ast.Constant(constant) if constant is not Ellipsis:
            return lambda values: constant
        case ast.Name(name) if name.startswith(HOLE):
            return lambda values: values[name]
        case ast.Name(name) if name in TYPES:
            return lambda values: TYPES[name]
        case ast.Attribute() if dotted(node) in CONSTANTS:
            return lambda values: CONSTANTS[dotted(node)]
        case ast.List(items):
            return _sequence(list, items)
        case ast.Tuple(items):
            return _sequence(tuple, items)
        case ast.Set(items):
            return _sequence(_set(set), items)
        case ast.Dict(keys, items):
            return _dict(keys, items)
        case ast.UnaryOp(sign, part):
            function, operand = UNARY[type(sign)], _compiled(part)
            return lambda values: function(operand(values))
        case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
            first, second = _compiled(left), _compiled(right)
            return lambda values: arithmetic(op, first(values), second(values))
        case ast.BoolOp(junction, operands):
            return _boolean(isinstance(junction, ast.And), operands)
        case ast.Compare(left, ops, comparators):
            return _comparison(left, ops, comparators)
        case ast.Subscript(container, index):
            sequence, position = _compiled(container), _index(index)
            return lambda values: sequence(values)[position(values)]
        case ast.IfExp(test, body, orelse):
            condition, yes, no = _compiled(test), _compiled(body), _compiled(orelse)
            return lambda values: yes(values) if condition(values) else no(values)
        case ast.Call(target, arguments, keywords):
            return _call(target, arguments, keywords)
    raise Unsupported(f"{type(node).__name__} is not evaluated outside of the sandbox")


def _sequence(kind: Callable[[list[Any]], Any], items: list[ast.expr]) -> Evaluation:
    parts = list(map(_compiled, items))
    return lambda values: kind([part(values) for part in parts])


def _dict(keys: list[ast.expr | None], items: list[ast.expr]) -> Evaluation:
    pairs = [(_compiled(key), _compiled(item)) for key, item in zip(keys, items, strict=True) if key is not None]
    if len(pairs) != len(keys):
        raise Unsupported("** is not evaluated outside of the sandbox")
    return lambda values: {key(values): item(values) for key, item in pairs}


def _index(node: ast.expr) -> Evaluation:
    if not isinstance(node, ast.Slice):
        return _compiled(node)
    bounds = [_compiled(part) if part else None for part in (node.lower, node.upper, node.step)]
    return lambda values: slice(*(bound(values) if bound else None for bound in bounds))


def _boolean(conjunction: bool, operands: list[ast.expr]) -> Evaluation:
    parts = list(map(_compiled, operands))

    def evaluate(values: Values) -> Any:
        result: Any = conjunction
        for part in parts:
            result = part(values)
            if bool(result) is not conjunction:
                break
        return result

    return evaluate


def _comparison(left: ast.expr, ops: list[ast.cmpop], comparators: list[ast.expr]) -> Evaluation:
    start, rest = (
        _compiled(left),
        [(COMPARISONS[type(op)], _compiled(c)) for op, c in zip(ops, comparators, strict=True)],
    )

    def evaluate(values: Values) -> Any:
        first, result = start(values), True
        for function, part in rest:
            second = part(values)
            result = function(first, second)
            if not result:
                break
            first = second
        return result

    return evaluate


def _call(target: ast.expr, arguments: list[ast.expr], keywords: list[ast.keyword]) -> Evaluation:
    name = dotted(target)
    if name not in FUNCTIONS or any(keyword.arg not in KEYWORDS for keyword in keywords):
        raise Unsupported(f"{name or 'this call'} is not evaluated outside of the sandbox")
    function, parts = FUNCTIONS[name], list(map(_compiled, arguments))
    named = {str(keyword.arg): _compiled(keyword.value) for keyword in keywords}
    return lambda values: function(*(p(values) for p in parts), **{key: p(values) for key, p in named.items()})


def dotted(node: ast.expr) -> str:
    """`name` or `module.name`, "" for anything else."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(ast.Name(module), name):
            return f"{module}.{name}"
    return ""


def arithmetic(op: ast.operator, left: Any, right: Any) -> Any:
    """Bounded arithmetic: numbers; adding and repeating of sequences; differences and the like of sets."""
    for operand in (left, right):
        if type(operand) is int and operand.bit_length() > MAX_BITS:
            raise TypeError("an integer too large to calculate with")
    sizes = [len(operand) for operand in (left, right) if hasattr(operand, "__len__")]
    if type(op) is ast.Pow and type(left) is int and type(right) is int and abs(right) * left.bit_length() > MAX_BITS:
        raise TypeError("a power too large to calculate")
    if sizes and type(op) is ast.Mult:
        count = right if type(right) is int else left
        if type(count) is not int or sizes[0] * max(count, 0) > MAX_ITEMS:
            raise TypeError("a sequence too long")
    if sizes and type(op) is ast.Mod:
        raise TypeError("text formatting is not evaluated outside of the sandbox")
    return ARITHMETIC[type(op)](left, right)
