"""The codec between sandbox and server, and how it stands hostile input."""

import json
import math
import sys
import time
from collections import Counter, OrderedDict, defaultdict, namedtuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.sandbox.checks import opaque
from strategies.sandbox.inside.codec import Malformed, Opaque, decode, encode
from strategies.sandbox.judge import bounded_repr

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(8190, 9000).map(lambda bits: (1 << bits) + 1)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.characters(categories=["Cs"])  # half of a surrogate pair
    | st.binary()
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.lists(inner).map(tuple) | st.frozensets(inner), max_leaves=10)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.sets(HASHABLE) | st.dictionaries(HASHABLE, inner),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    """Equal in value and in every type."""
    if type(a) is not type(b) or a != b:
        return False
    if type(a) in (list, tuple):
        return all(map(same, a, b))
    if type(a) is dict:
        return all(same(x, y) and same(a[x], b[y]) for x, y in zip(a, b, strict=True))
    return True


@given(VALUES)
def test_round_trip(value: Any) -> None:
    assert same(decode(json.loads(json.dumps(encode(value)))), value)


@given(VALUES)
def test_repr_is_bounded_and_right(value: Any) -> None:
    shown = bounded_repr(value, 50)
    assert len(shown) <= 50
    if type(value) in (int, float, bool) and len(repr(value)) <= 50:
        assert shown == repr(value)


def test_signs_and_non_numbers() -> None:
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode(-math.inf)) == -math.inf
    assert math.copysign(1, decode(encode(-0.0))) == -1


class Agreeable(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Pretender:
    @property
    def __class__(self) -> type:  # type: ignore[override]
        return int


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [Agreeable(1), Pretender(), object(), Point(1, 2), range(3), iter([]), len, int, bytearray(b"a"), ...],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_opaque(value: Any) -> None:
    assert encode(value)[0] == "opaque"
    assert opaque(encode([{"a": (value,)}]))
    decoded = decode(encode(value))
    assert isinstance(decoded, Opaque)
    assert decoded != decoded
    assert not decoded == value  # noqa: SIM201


def test_dictionaries_of_the_standard_library_count_as_such() -> None:
    for value in (Counter("aab"), OrderedDict(a=2, b=1), defaultdict(int, {"a": 2, "b": 1})):
        assert same(decode(encode(value)), dict(value))


def test_cycles_depth_and_size_end_soon() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    assert opaque(encode(cycle))
    many_paths: list[Any] = [0]
    for _ in range(38):
        many_paths = [many_paths, many_paths]
    assert encode(many_paths) == ["opaque", "too large"]
    assert encode("é" * 300_000) == ["opaque", "too large"]


@pytest.mark.parametrize(
    "encoded",
    [
        None,
        {},
        [],
        [1],
        ["none", 1],
        ["bool", 1],
        ["int", 1],
        ["int", "1_0"],
        ["int", " 1"],
        ["int", "9" * 4001],
        ["int", "0x"],
        ["float", "0x1p99999999999"],
        ["float", None],
        ["complex", "1"],
        ["str", ["a"]],
        ["bytes", "0"],
        ["list", "abc"],
        ["list", [1]],
        ["set", [["list", []]]],
        ["dict", [["none"]]],
        ["dict", [[["list", []], ["none"]]]],
        ["object", []],
        ["__import__", "os"],
    ],
)
def test_malformed(encoded: Any) -> None:
    with pytest.raises(Malformed):
        decode(encoded)


def test_too_deep() -> None:
    encoded: list[Any] = ["none"]
    for _ in range(500):
        encoded = ["list", [encoded]]
    with pytest.raises(Malformed):
        decode(encoded)


@pytest.mark.parametrize("tag", ["set", "frozenset", "dict"])
def test_colliding_members_are_refused(tag: str) -> None:
    """Integers that hash alike would make the server spend minutes on building the set."""
    period = (1 << 61) - 1 if sys.hash_info.modulus == (1 << 61) - 1 else sys.hash_info.modulus
    members = [["int", hex(period * i)] for i in range(1, 60_000)]
    before = time.process_time()
    with pytest.raises(Malformed, match="same hash"):
        decode([tag, [[member, ["none"]] for member in members] if tag == "dict" else members])
    assert time.process_time() - before < 30  # quadratic: some minutes
