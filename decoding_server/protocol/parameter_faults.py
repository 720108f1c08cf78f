"""Which of pydantic's complaints about a strategy's parameters a client is told, and in which field.

Where a parameter may be of several types, pydantic tries each, complains once for each, and puts the type's name into
the place of the fault. A client doesn't know those names; the complaint that goes deepest into what was given is of the
type that fits it best.
"""

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

Place = tuple[int | str, ...]


def told(error: ValidationError, given: object) -> tuple[ErrorDetails, Place]:
    """The first fault of what was given, and its place in there."""
    faults = error.errors(include_url=False, include_input=False)
    place, union = place_of(faults[0], given)
    if union is None:
        return faults[0], place
    rivals = [fault for fault in faults if place_of(fault, given)[0][: len(union)] == union]
    best = min(rivals, key=lambda fault: _preference(fault, given))
    return best, place_of(best, given)[0]


def place_of(fault: ErrorDetails, given: object) -> tuple[Place, Place | None]:
    """The place without the names of types, and the place of the outermost value that may be of several, if any."""
    place: list[int | str] = []
    union: Place | None = None
    value: Any = given
    for number, part in enumerate(fault["loc"], 1):
        if _holds(value, part):
            value = value[part]
            place.append(part)
        elif fault["type"] == "missing" and number == len(fault["loc"]):
            place.append(part)
        elif union is None:
            union = tuple(place)
    return tuple(place), union


def _holds(value: object, part: int | str) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value)


def _preference(fault: ErrorDetails, given: object) -> tuple[int, bool]:
    """Smaller is better: deep, and not that the type is another one altogether."""
    return -len(place_of(fault, given)[0]), fault["type"].endswith("_type") or fault["type"] == "literal_error"
