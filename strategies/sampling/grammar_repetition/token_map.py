"""Which token covers a byte of the text."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class TokenMap:
    """Start offsets and ids of the tokens of a text, in order."""

    __slots__ = ("_ids", "_starts")

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ids = array("q")

    def append(self, token: int, start: int) -> None:
        """Adds the next token, which begins at byte `start`."""
        self._starts.append(start)
        self._ids.append(token)

    def covering(self, offset: int) -> tuple[int, int] | None:
        """(token id, its start offset) of the token that holds the byte at `offset`; None for an empty map."""
        # Tokens without bytes share their start with the next one, which is the last of equals.
        index = bisect_right(self._starts, offset) - 1
        return None if index < 0 else (self._ids[index], self._starts[index])

    def since(self, offset: int) -> Iterator[tuple[int, int]]:
        """(token id, start offset) of the tokens that begin at or after a byte, in order."""
        index = bisect_left(self._starts, offset)
        yield from zip(self._ids[index:], self._starts[index:], strict=True)

    def fork(self) -> "TokenMap":
        """An independent copy (two memory copies, no Python objects)."""
        copy = TokenMap.__new__(TokenMap)
        copy._starts, copy._ids = self._starts[:], self._ids[:]
        return copy
