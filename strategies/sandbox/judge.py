"""The verdict on a test, reached outside of the sandbox from what was observed inside."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from strategies.sandbox.checks import CallCheck, Check, StatementCheck, StdinCheck, opaque
from strategies.sandbox.expressions import HOLE
from strategies.sandbox.inside.codec import Encoded, Malformed, Opaque, decode
from strategies.sandbox.outcome import Outcome, Result
from strategies.sandbox.records import Observation, text

MAX_GOT = 100


def judge(check: Check, observations: Sequence[Observation], output: bytes = b"") -> Result:
    """observations: one for each of the check's units, or fewer, if a run ended early; output: a StdinCheck's."""
    seconds = sum(observation.seconds for observation in observations)
    spoofable = isinstance(check, StatementCheck)
    for seen in observations:
        if seen.outcome is not None:
            # AssertionError is a verdict only where the test itself ran inside.
            failed = seen.outcome is Outcome.ASSERT_FAIL and not spoofable
            outcome = Outcome.EXCEPTION if failed else seen.outcome
            behaviour = f"{outcome}:{seen.error}"
            return Result(
                outcome,
                "",
                seen.error,
                seen.message,
                seen.line,
                spoofable=spoofable,
                behaviour=behaviour,
                seconds=seconds,
            )
    if len(observations) < len(check.units):
        return Result(Outcome.NOT_RUN, behaviour=Outcome.NOT_RUN, spoofable=spoofable)
    if isinstance(check, StatementCheck):
        return Result(Outcome.PASS, spoofable=True, behaviour=Outcome.PASS, seconds=seconds)
    if isinstance(check, StdinCheck):
        printed = output.decode("utf-8", "replace")
        outcome = Outcome.PASS if normalised(printed) == normalised(check.stdout) else Outcome.WRONG_VALUE
        return Result(outcome, text(printed, MAX_GOT), behaviour=digest(normalised(printed)), seconds=seconds)
    return judge_values(check, [seen.value or [] for seen in observations], seconds)


def judge_values(check: CallCheck, encoded: Sequence[Encoded], seconds: float) -> Result:
    try:
        values = [decode(value) for value in encoded]
    except Malformed as error:
        return Result(Outcome.OPAQUE_VALUE, message=text(str(error), 200), behaviour="malformed", seconds=seconds)
    got = bounded_repr(values[0] if len(values) == 1 else tuple(values))
    behaviour = digest([canonical(value) for value in encoded])
    if any(map(opaque, encoded)):
        return Result(Outcome.OPAQUE_VALUE, got, behaviour=behaviour, seconds=seconds)
    try:
        agrees = bool(check.comparison({f"{HOLE}{index}": value for index, value in enumerate(values)}))
    except (TypeError, ValueError, ArithmeticError, LookupError, MemoryError, RecursionError) as error:
        # The comparison itself fails on this value, as it would in Python: `[1] < 2`, say.
        return Result(Outcome.WRONG_VALUE, got, message=said(error), behaviour=behaviour, seconds=seconds)
    return Result(Outcome.PASS if agrees else Outcome.WRONG_VALUE, got, behaviour=behaviour, seconds=seconds)


def said(error: Exception) -> str:
    """An exception's class and text. A KeyError's text is the repr of the key, which may be of any size, or fail."""
    words = bounded_repr(error.args[0]) if isinstance(error, KeyError) else str(error)
    return text(f"{type(error).__name__}: {words}", 200)


def normalised(printed: str) -> str:
    """Standard output as it is compared: without white space at the ends of lines, without blank lines at the end."""
    return "\n".join(line.rstrip() for line in printed.split("\n")).rstrip("\n")


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def canonical(encoded: Encoded) -> Any:
    """Equal for values that differ only in the order of a set's or a dict's members."""
    tag, *rest = encoded
    if tag in ("list", "tuple"):
        return [tag, [canonical(item) for item in rest[0]]]
    if tag in ("set", "frozenset"):
        return [tag, sorted((canonical(item) for item in rest[0]), key=json.dumps)]
    if tag == "dict":
        return [tag, sorted(([canonical(k), canonical(v)] for k, v in rest[0]), key=json.dumps)]
    return encoded


def bounded_repr(value: Any, limit: int = MAX_GOT) -> str:
    """repr, ending in "…" past the limit, in time that does not depend on the value's size."""
    parts: list[str] = []
    _repr(value, parts, [limit + 1])
    whole = text("".join(parts), limit + 1)
    return whole if len(whole) <= limit else whole[: limit - 1] + "…"


BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}


def _repr(value: Any, parts: list[str], left: list[int]) -> None:
    def write(piece: str) -> None:
        parts.append(piece)
        left[0] -= len(piece)

    kind = type(value)
    if left[0] <= 0:
        return
    if kind is int:
        # Decimal digits of a huge number take quadratic time.
        write(str(value) if value.bit_length() <= 4096 else f"{hex(value >> (value.bit_length() - 256))}…")
    elif kind in (str, bytes):
        write(repr(value[: left[0]]))
    elif kind is dict:
        write("{")
        for index, (key, item) in enumerate(value.items()):
            if left[0] <= 0:
                return
            write(", " if index else "")
            _repr(key, parts, left)
            write(": ")
            _repr(item, parts, left)
        write("}")
    elif kind in BRACKETS and (value or kind in (list, tuple)):
        opening, closing = BRACKETS[kind]
        write(opening)
        for index, item in enumerate(value):
            if left[0] <= 0:
                return
            write(", " if index else "")
            _repr(item, parts, left)
        write(",)" if kind is tuple and len(value) == 1 else closing)
    else:
        write(value.__repr__() if isinstance(value, Opaque) else repr(value))
