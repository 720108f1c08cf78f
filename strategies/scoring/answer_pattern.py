"""A client's own regular expression for finding an answer, in bounded time.

A backtracking engine may take exponential time, and a counted repetition as much memory as it likes while compiling. So
the pattern is restricted before anything compiles it, the text is cut, and matching runs without the interpreter's lock
under a deadline. Run it off the event loop all the same.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import regex  # type: ignore[import-untyped]

from strategies.errors import InvalidRequest

MAX_PATTERN_CHARACTERS = 300
MAX_REPEATS = 1000
"""Most that all counted repetitions of a pattern may multiply to."""
MAX_TEXT_CHARACTERS = 20_000
"""Only the end of a text is searched."""
SECONDS = 0.5
"""Processor time of the whole process, so wall time is less where other threads compute; 1 ms is ordinary."""

_BRACE = re.compile(r"(?<!\\)(?:\\\\)*\{(?:([0-9]{1,9})?(?:,([0-9]{0,9}))?\})?")


@dataclass(frozen=True, slots=True)
class AnswerPattern:
    """Finds the last match of `pattern`; the answer is its first group, or all of it if it has none.

    param: the request's field, for errors. Raises InvalidRequest for a pattern that is too long, not valid for Python's
    `re`, or repeats too much; a literal brace must be escaped.
    """

    pattern: str
    param: str = "pattern"
    _compiled: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.pattern) > MAX_PATTERN_CHARACTERS:
            raise InvalidRequest(f"the pattern is longer than {MAX_PATTERN_CHARACTERS} characters", self.param)
        counts = []
        for brace in _BRACE.finditer(self.pattern):
            low, high = brace.groups()
            if low is None and high is None:
                raise InvalidRequest("a brace that is not a repetition count must be escaped", self.param)
            counts.append(max(int(low or 0), int(high or 0), 1))
        if math.prod(counts) > MAX_REPEATS:
            raise InvalidRequest(f"the pattern's repetitions multiply to more than {MAX_REPEATS}", self.param)
        try:
            re.compile(self.pattern)  # no recursion, no fuzzy matching: what only the other engine has
            compiled = regex.compile(self.pattern)
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            raise InvalidRequest(f"the pattern is not a valid regular expression: {error}", self.param) from error
        object.__setattr__(self, "_compiled", compiled)

    def last_match(self, text: str, seconds: float = SECONDS) -> str | None:
        """The answer; None if nothing matches, or not within `seconds`."""
        found: str | None = None
        try:
            for match in self._compiled.finditer(text[-MAX_TEXT_CHARACTERS:], timeout=seconds, concurrent=True):
                found = match.group(1 if match.re.groups else 0)
        except TimeoutError:
            return None
        return found
