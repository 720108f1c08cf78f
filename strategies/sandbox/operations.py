"""What expressions of tests may do with values, each operation paid for before it is done.

The values are hostile and so may be the tests: an operation that can't be bounded by what it costs (formatting, text
encodings, classes, powers of large numbers) is refused. See `inside/work.py` for the units.
"""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from strategies.sandbox.inside.work import CONTAINERS, SAME_HASH, TooMuch, Work

MAX_BITS = 4096
"""Of integers to calculate with. Holds for sums too: adding to a huge integer copies it."""
MAX_RANGE = 100_000
TEXT_COST = 10
"""For a unit of size: its repr can be 80 characters, of four bytes each."""


class Refused(TypeError):
    """An operation that Python would do, but that is not done outside of the sandbox."""


REFUSALS = (Refused, TooMuch)
"""What an evaluation ends in by its own limits: no fault of the values."""

ITERABLE = (*CONTAINERS, str, bytes, range)
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


def compare(work: Work, op: ast.cmpop, left: Any, right: Any) -> Any:
    """Ends at the first difference, but may have to visit both values whole."""
    if isinstance(op, (ast.In, ast.NotIn)):
        work.spend(_searching(work, left, right))
    elif not isinstance(op, (ast.Is, ast.IsNot)):
        both = type(left) in CONTAINERS and type(right) in CONTAINERS
        cost = work.size if isinstance(op, (ast.Eq, ast.NotEq)) else work.order
        work.spend(cost(left) + cost(right) if both else min(work.flat(left), work.flat(right)))
    return COMPARISONS[type(op)](left, right)


def _searching(work: Work, wanted: Any, container: Any) -> int:
    """What `wanted in container` costs."""
    kind = type(container)
    if kind in (list, tuple):
        return work.size(container) + (len(container) * work.size(wanted) if type(wanted) in CONTAINERS else 0)
    if kind in (set, frozenset, dict):
        return work.size(container) + SAME_HASH * work.size(wanted)
    if kind is range:
        return 1 if type(wanted) is int else len(container)
    if kind in (str, bytes):
        # Short needles are searched for naively, up to length times length.
        width = min(len(wanted), 128) if type(wanted) is kind else 1
        return 1 + (len(container) * width >> 6)
    return 1


def arithmetic(work: Work, op: ast.operator, left: Any, right: Any) -> Any:
    """Of numbers; adding and repeating of sequences; differences of sets."""
    for operand in (left, right):
        if type(operand) is int and operand.bit_length() > MAX_BITS:
            raise Refused("an integer too large to calculate with")
    integers = type(left) is int and type(right) is int
    if isinstance(op, ast.Pow) and integers and abs(right) * left.bit_length() > MAX_BITS:
        raise Refused("a power too large to calculate")
    work.spend(work.flat(left) + work.flat(right))
    if type(left) not in ITERABLE and type(right) not in ITERABLE:
        return ARITHMETIC[type(op)](left, right)
    if isinstance(op, ast.Mult):
        return _repeated(work, left, right) if type(right) is int else _repeated(work, right, left)
    if isinstance(op, ast.Mod) and type(left) in (str, bytes):
        raise Refused("text formatting is not evaluated outside of the sandbox")
    work.spend(length(left) + length(right) if isinstance(op, ast.Add) else work.size(left) + work.size(right))
    return ARITHMETIC[type(op)](left, right)


def _repeated(work: Work, sequence: Any, count: Any) -> Any:
    if type(count) is not int or type(sequence) not in (list, tuple, str, bytes):
        raise Refused("only a sequence can be repeated, an integer number of times")
    times = max(count, 0)
    work.spend(len(sequence) * times)
    if type(sequence) in (str, bytes):
        return sequence * times
    once = work.size(sequence)
    size = 1 + (once - 1) * times
    deepest = work.order(sequence) - once if times else 0
    repeated = sequence * times
    work.remember(repeated, size, size + deepest)
    return repeated


def unary(work: Work, op: ast.unaryop, operand: Any) -> Any:
    work.spend(work.flat(operand))
    return UNARY[type(op)](operand)


def subscript(work: Work, container: Any, index: Any) -> Any:
    kind = type(container)
    if kind is dict:
        work.spend(_searching(work, index, container))
    elif kind not in (list, tuple, str, bytes, range):
        raise TypeError(f"{kind.__name__} is not indexed outside of the sandbox")
    elif type(index) is slice and kind is not range:
        work.spend(len(range(*index.indices(len(container)))))
    return container[index]


def length(value: Any) -> int:
    """What it costs to iterate over a value; 1 where that can't be done."""
    return len(value) if type(value) in ITERABLE else 1


def _scalar(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that doesn't look into containers."""

    def call(work: Work, *arguments: Any, **named: Any) -> Any:
        work.spend(sum(map(work.flat, (*arguments, *named.values()))))
        return function(*arguments, **named)

    return call


def _iterating(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that visits each item once and doesn't look into it."""

    def call(work: Work, *arguments: Any) -> Any:
        work.spend(sum(map(length, arguments)))
        return function(*arguments)

    return call


def _comparing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that compares each item with one other, deeply."""

    def call(work: Work, *arguments: Any, **named: Any) -> Any:
        work.spend(sum(map(length, arguments)))
        work.spend(work.orders(arguments[0] if len(arguments) == 1 else arguments))
        return function(*arguments, **named)

    return call


def _sorted(work: Work, value: Any, *, reverse: Any = False) -> list[Any]:
    work.spend(length(value))
    items = list(value)
    work.spend(work.orders(items) * (1 + len(items).bit_length() // 4))
    return sorted(items, reverse=reverse)


def _set(kind: type) -> Callable[..., Any]:
    def build(work: Work, items: Any = ()) -> Any:
        work.spend(length(items))
        members = work.members(items)
        return members if kind is set else kind(members)

    return build


def _sum(work: Work, items: Any, start: Any = 0) -> Any:
    """Of numbers only: adding lists takes quadratic time."""
    work.spend(length(items))
    numbers = list(items)
    for number in (start, *numbers):
        if not isinstance(number, (int, float, complex)):
            raise Refused("sum of something that is not a number")
        if type(number) is int and number.bit_length() > MAX_BITS:
            raise Refused("an integer too large to calculate with")
    work.spend(work.size(numbers))
    return sum(numbers, start)


def _range(work: Work, *bounds: int) -> range:
    numbers = range(*bounds)
    if any(abs(bound) >> 63 for bound in bounds) or len(numbers) > MAX_RANGE:
        raise Refused("a range too long")
    work.spend(1)
    return numbers


def _round(work: Work, number: Any, digits: int | None = None) -> Any:
    huge = type(number) is int and number.bit_length() > MAX_BITS
    if digits is not None and (huge or abs(digits) > 1000):
        raise Refused("too many digits to round to")
    work.spend(work.flat(number))
    return round(number, digits)


def _str(work: Work, value: Any) -> str:
    work.spend(1 if type(value) is str else TEXT_COST * work.size(value))
    return str(value)


def _isinstance(work: Work, value: Any, kinds: Any) -> bool:
    work.spend(work.size(kinds))
    return isinstance(value, kinds)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": _scalar(abs),
    "all": _iterating(all),
    "any": _iterating(any),
    "bool": _scalar(bool),
    "float": _scalar(float),
    "frozenset": _set(frozenset),
    "int": _scalar(int),
    "isinstance": _isinstance,
    "len": _scalar(len),
    "list": _iterating(list),
    "max": _comparing(max),
    "min": _comparing(min),
    "range": _range,
    "round": _round,
    "set": _set(set),
    "sorted": _sorted,
    "str": _str,
    "sum": _sum,
    "tuple": _iterating(tuple),
    "type": _scalar(type),
    "math.isclose": _scalar(math.isclose),
    "math.isnan": _scalar(math.isnan),
    "math.isinf": _scalar(math.isinf),
    "math.sqrt": _scalar(math.sqrt),
}
"""By the names that tests call them by. All take the work first."""
KEYWORDS = {"reverse", "rel_tol", "abs_tol", "default"}
ONE_ARGUMENT = {"str", "type"}
"""With more, they decode text in any encoding and make classes."""
