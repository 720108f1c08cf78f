"""Tandem repeats at the end of a growing sequence: the shortest period, and how many whole copies of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Tandem(NamedTuple):
    """The sequence ends with `copies` >= 2 equal adjacent blocks of `period` symbols."""

    period: int
    copies: int


class TandemDetector:
    """Exact, in O(max_period) per symbol, whatever the length of the sequence.

    For each period p, a counter of the trailing positions i with s[i] = s[i - p]; p repeats once the counter reaches p.
    Symbols are integers >= 0.
    """

    __slots__ = ("_history", "_periods", "_runs", "length", "max_period")

    def __init__(self, max_period: int) -> None:
        self.max_period = max_period
        self.length = 0
        self._periods = np.arange(1, max_period + 1)
        self._runs = np.zeros(max_period, dtype=np.int64)
        # The last `max_period` symbols, latest first, at the front of whatever was there before.
        self._history = np.full(max_period, -1, dtype=np.int64)

    def push(self, symbol: int) -> None:
        """Appends one symbol."""
        self._runs += 1
        self._runs *= self._history == symbol
        self._history[1:] = self._history[:-1]
        self._history[0] = symbol
        self.length += 1

    def extend(self, symbols: Sequence[int]) -> None:
        """Appends many symbols to an empty detector: same state as pushing each, in O(max_period) array operations."""
        if self.length:
            raise ValueError("extend needs an empty detector")
        sequence = np.asarray(symbols, dtype=np.int64)
        self.length = count = len(sequence)
        for period in range(1, min(self.max_period, count - 1) + 1):
            differing = np.flatnonzero(sequence[period:] != sequence[:-period])
            self._runs[period - 1] = count - period - (int(differing[-1]) + 1 if len(differing) else 0)
        kept = sequence[::-1][: self.max_period]
        self._history[: len(kept)] = kept

    def hit(self) -> Tandem | None:
        """The shortest period with at least two whole copies at the end, or None."""
        repeating = self._runs >= self._periods
        index = int(repeating.argmax())
        if not repeating[index]:
            return None
        return Tandem(index + 1, int(self._runs[index]) // (index + 1) + 1)

    def best_next(self) -> int:
        """The most copies that any next symbol could complete: an upper bound for deciding whether to look closer."""
        return int(((self._runs + 1) // self._periods).max()) + 1

    def next_symbol(self, period: int) -> int:
        """The symbol that would continue a repeat of this period."""
        return int(self._history[period - 1])

    def block(self, period: int) -> list[int]:
        """The last `period` symbols, in order."""
        return [int(symbol) for symbol in self._history[:period][::-1]]

    def fork(self) -> "TandemDetector":
        """An independent copy, O(max_period)."""
        copy = TandemDetector.__new__(TandemDetector)
        copy.max_period, copy.length, copy._periods = self.max_period, self.length, self._periods
        copy._runs, copy._history = self._runs.copy(), self._history.copy()
        return copy


def trailing_tandem(sequence: Sequence[object], max_period: int) -> Tandem | None:
    """The shortest period with at least two whole copies at the end of a short sequence, or None."""
    count = len(sequence)
    for period in range(1, min(max_period, count // 2) + 1):
        unit, copies = sequence[-period:], 1
        while (copies + 1) * period <= count and sequence[count - (copies + 1) * period :][:period] == unit:
            copies += 1
        if copies > 1:
            return Tandem(period, copies)
    return None
