"""EvalPlus's verdict on one program (Liu et al. 2023), as its text runs inside the sandbox: standard library only.

A program passes an input when it returns what the reference solution returns: equal, or where floats are concerned
within atol + 1e-7 |expected|, of the same type and length. A few tasks have rules of their own. Source: evalplus 0.3.1,
evalplus/eval and evalplus/data/mbpp.py; unlike there, an input's tolerance does not carry over to those after it.
"""

from __future__ import annotations  # the sandbox's Python may be 3.9

import contextlib
import copy
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

SAME_MEMBERS = {
    *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum"),
    *("intersection_array", "find_dissimilar", "Diff"),
}
"""MBPP's tasks whose results are compared as sets."""
ANYTHING = {"check_str", "text_match_three", "text_starta_endb"}
"""MBPP's tasks of which only counts whether there is a result."""


class Oracle:
    """Of one task. task: its id in the data set. reference: the solution's whole source. inputs: JSON, a list of lists
    of arguments."""

    def __init__(self, task: str, entry_point: str, reference: str, inputs: str, atol: float) -> None:
        namespace: dict[str, Any] = {}
        exec(reference, namespace)
        self.reference: Callable[..., Any] = namespace[entry_point]
        self.is_mbpp = task.startswith("Mbpp")
        number = int(task.rpartition("/")[2])
        self.entry_point = entry_point
        self.inputs = [restored(number, one) if self.is_mbpp else one for one in json.loads(inputs)]
        self.atol = atol

    def check(self, function: Callable[..., Any], start: int, stop: int) -> None:
        """Raises AssertionError for a wrong result on one of these inputs, and what the function raises."""
        for arguments in self.inputs[start:stop]:
            expected = self.reference(*copy.deepcopy(arguments))
            with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
                result = function(*copy.deepcopy(arguments))
            if not self.agrees(arguments, result, expected):
                raise AssertionError(f"{self.entry_point}(…) returned {result!r:.60}, not {expected!r:.60}")

    def agrees(self, arguments: Sequence[Any], result: Any, expected: Any) -> bool:
        own = self.own_rule(arguments, result, expected)
        if own is not None:
            return own
        if result == expected:
            return True
        atol = 1e-6 if self.atol == 0 and floats(expected) else self.atol
        return atol != 0 and type(result) is type(expected) and close(result, expected, atol)

    def own_rule(self, arguments: Sequence[Any], result: Any, expected: Any) -> bool | None:
        """The verdict of a task's own rule; None where the general one decides."""
        name = self.entry_point
        if not self.is_mbpp:
            return abs(polynomial(arguments[0], result)) <= self.atol if name == "find_zero" else None
        if name in SAME_MEMBERS:
            return set(result) == set(expected)
        if name in ANYTHING:
            there = expected is not None
            return result == there if isinstance(result, bool) else (result is not None) == there
        also_right = (
            name == "are_equivalent"
            or (name == "sum_div" and result == 0)
            or (name == "surface_Area" and abs(result - surface(*arguments)) <= self.atol)
            or (name == "digit_distance_nums" and result == digit_distance(*arguments))
        )
        return True if also_right else None


def floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)) and value:
        return all(isinstance(one, float) for one in value)
    return isinstance(value, float)


def close(value: Any, expected: Any, atol: float) -> bool:
    """Numbers, or lists of them to any depth."""
    if isinstance(expected, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(expected):
            return False
        return all(close(one, other, atol) for one, other in zip(value, expected))  # noqa: B905 (Python 3.9)
    if not isinstance(value, (int, float, complex)) or not isinstance(expected, (int, float, complex)):
        return False
    if value == expected:
        return True
    try:
        apart, size = abs(value - expected), abs(expected)
        return math.isfinite(apart) and math.isfinite(size) and apart <= atol + 1e-7 * size
    except OverflowError:
        return False


def polynomial(coefficients: Sequence[float], x: float) -> float:
    return sum(coefficient * math.pow(x, power) for power, coefficient in enumerate(coefficients))


def surface(edge: float, height: float) -> int:
    """Of a square pyramid whose height is measured from the middle of its base."""
    return round(edge**2 + 2 * edge * math.sqrt((edge / 2) ** 2 + height**2))


def digit_distance(first: int, second: int) -> int:
    """The shorter number with zeros in front."""
    digits = max(len(str(first)), len(str(second)))
    pairs = zip(str(first).zfill(digits), str(second).zfill(digits))  # noqa: B905 (Python 3.9)
    return sum(abs(int(one) - int(other)) for one, other in pairs)


# -- MBPP+'s arguments: JSON has no tuples, sets or complex numbers ----------------------------------------------------

Restore = Callable[[Any], Any]


def tuples(value: Any) -> list[Any]:
    return [tuple(one) for one in value]


def nested(value: Any) -> tuple[Any, ...]:
    return tuple(tuple(one) for one in value)


def mixed(value: Any) -> tuple[Any, ...]:
    return tuple(tuple(one) if isinstance(one, list) else one for one in value)


def deep(value: Any) -> Any:
    return tuple(deep(one) for one in value) if isinstance(value, list) else value


def sets(value: Any) -> list[Any]:
    """An empty one is an empty dictionary in the data."""
    return [set(one) if isinstance(one, list) and one else {} for one in value]


def tuple_values(value: Any) -> dict[Any, Any]:
    return {key: tuple(one) for key, one in value.items()}


def same(value: Any) -> Any:
    return value


EACH: list[tuple[Restore, set[int]]] = [
    (
        tuple,
        {2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809},
    ),
    (tuples, {63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780}),
    (nested, {259, 401, 445}),
    (mixed, {278}),
    (deep, {580, 615, 791}),
    (sets, {115}),
]
"""Tasks all of whose arguments are restored alike."""
BY_PLACE: list[tuple[tuple[Restore, ...], set[int]]] = [
    ((tuples, same), {75, 413, 444, 753}),
    ((same, tuple), {106, 750}),
    ((tuple, same), {250, 405, 446, 617, 720, 763, 808}),
    ((tuple, same, same), {307}),
    ((tuple_values, same), {722}),
    ((float, complex), {124}),
    ((complex,), {252}),
]


def restored(number: int, arguments: list[Any]) -> list[Any]:
    """One input of the task MBPP/number with the types that its function takes."""
    for restore, numbers in EACH:
        if number in numbers:
            return [restore(one) for one in arguments]
    for places, numbers in BY_PLACE:
        if number in numbers:
            rest = arguments[len(places) :]
            return [place(one) for place, one in zip(places, arguments)] + rest  # noqa: B905 (Python 3.9)
    return arguments
