"""Values that cross the sandbox's border, as tagged JSON: exact built-in types only.

    ["none"]  ["bool", true]  ["int", "12"]  ["float", "0x1.8p+1"]  ["complex", re, im]  ["str", "a"]  ["bytes", "6162"]
    ["list", [...]]  ["tuple", [...]]  ["set", [...]]  ["frozenset", [...]]  ["dict", [[key, value], ...]]
    ["opaque", "why"]

An instance of any other class, a subclass included, is `opaque`, and an opaque value equals nothing: an object whose
`__eq__` always agrees fails. collections' Counter, OrderedDict and defaultdict count as the dict that they are, since
comparing with a dict is what tests do. Both sides use this module; the outer side never trusts what it decodes.
"""

import collections
import re
from collections.abc import Callable
from typing import Any

from strategies.sandbox.inside.work import TooMuch, Work

MAX_DEPTH = 40
DECIMAL_BITS = 8192
"""Longer integers are written in hexadecimal: decimal takes quadratic time, and Python refuses past 4,300 digits."""
DECODING_WORK = 1 << 22
"""Units for building the sets and dictionaries of one value."""

DICTS = (dict, collections.Counter, collections.OrderedDict, collections.defaultdict)
SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
CROSSING = frozenset((type(None), bool, int, float, complex, str, bytes, *SEQUENCES, *DICTS))
"""The types of values that cross."""
DECIMAL = re.compile(r"-?[0-9]{1,4000}", re.ASCII)
HEXADECIMAL = re.compile(r"-?0x[0-9a-f]+", re.ASCII)

Encoded = list[Any]


class Opaque:
    """A value that can't cross. It equals nothing, itself included."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, why: str) -> None:
        self.why = why

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<{self.why}>"


class Malformed(ValueError):
    """Not an encoded value."""


class TooLarge(Exception):
    """The value's encoding passes the limit."""


def encode(value: Any, limit: int = 1 << 20) -> Encoded:
    """The encoding, `opaque` as a whole where it would take more than about `limit` bytes.

    The limit is kept while walking, so that a small graph with many paths ends soon.
    """
    try:
        return _encode(value, MAX_DEPTH, [limit])
    except TooLarge:
        return ["opaque", "too large"]


def _encode(value: Any, depth: int, left: list[int]) -> Encoded:
    kind = type(value)
    cost = 16
    if kind is str:
        cost += len(value) if value.isascii() else 6 * len(value)
    elif kind is bytes:
        cost += 2 * len(value)
    elif kind is int:
        cost += value.bit_length() // 4
    left[0] -= cost
    if left[0] < 0:
        raise TooLarge
    if value is None:
        return ["none"]
    if kind is bool:
        return ["bool", value]
    if kind is int:
        return ["int", str(value) if value.bit_length() <= DECIMAL_BITS else hex(value)]
    if kind is float:
        return ["float", value.hex()]
    if kind is complex:
        return ["complex", value.real.hex(), value.imag.hex()]
    if kind is str:
        return ["str", value]
    if kind is bytes:
        return ["bytes", value.hex()]
    if depth == 0:
        return ["opaque", "nested too deeply"]
    if kind in SEQUENCES:
        return [SEQUENCES[kind], [_encode(item, depth - 1, left) for item in kind.__iter__(value)]]
    if kind in DICTS:
        pairs = dict.items(value)
        return ["dict", [[_encode(key, depth - 1, left), _encode(item, depth - 1, left)] for key, item in pairs]]
    return ["opaque", str.__str__(getattr(kind, "__name__", "?"))[:100]]


def decode(encoded: Any) -> Any:
    """The value. Raises Malformed; safe on hostile input (time linear in its size, depth bounded)."""
    return _decode(encoded, MAX_DEPTH + 1, Work(DECODING_WORK))


def _decode(encoded: Any, depth: int, work: Work) -> Any:
    if type(encoded) is not list or not encoded or type(encoded[0]) is not str or depth < 0:
        raise Malformed("not a tagged value")
    tag, *rest = encoded
    if tag == "none" and not rest:
        return None
    if tag == "complex" and len(rest) == 2:
        return complex(_float(rest[0]), _float(rest[1]))
    if len(rest) != 1:
        raise Malformed(f"wrong number of fields for {tag[:20]!r}")
    content = rest[0]
    if tag == "bool" and type(content) is bool:
        return content
    if tag in ("int", "float", "str", "bytes", "opaque") and type(content) is str:
        return _scalar(tag, content)
    if type(content) is not list:
        raise Malformed(f"wrong content for {tag[:20]!r}")
    if tag == "dict":
        return _hashing(work.mapping, [_pair(pair, depth, work) for pair in content])
    items = [_decode(item, depth - 1, work) for item in content]
    if tag == "list":
        return items
    if tag == "tuple":
        return tuple(items)
    if tag in ("set", "frozenset"):
        members = _hashing(work.members, items)
        return members if tag == "set" else frozenset(members)
    raise Malformed(f"unknown tag {tag[:20]!r}")


def _scalar(tag: str, content: str) -> Any:
    if tag == "int":
        if DECIMAL.fullmatch(content):
            return int(content)
        if HEXADECIMAL.fullmatch(content):
            return int(content, 16)
        raise Malformed("not an integer")
    if tag == "float":
        return _float(content)
    if tag == "bytes":
        try:
            return bytes.fromhex(content)
        except ValueError:
            raise Malformed("not hexadecimal") from None
    return Opaque(content[:100]) if tag == "opaque" else content


def _float(content: Any) -> float:
    try:
        return float.fromhex(content)
    except (TypeError, ValueError, OverflowError):
        raise Malformed("not a float") from None


def _pair(pair: Any, depth: int, work: Work) -> tuple[Any, Any]:
    if type(pair) is not list or len(pair) != 2:
        raise Malformed("not a pair")
    return _decode(pair[0], depth - 1, work), _decode(pair[1], depth - 1, work)


def _hashing(build: Callable[[Any], Any], items: list[Any]) -> Any:
    try:
        return build(items)
    except (TypeError, TooMuch) as error:
        raise Malformed(str(error)) from None
