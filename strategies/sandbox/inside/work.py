"""What operations on hostile values cost, counted before they are done.

An operation on built-in types runs in C and can't be interrupted, and a value can be far larger than the memory it
takes: `[[0] * 1000] * 1000` holds a thousand references to one list, but comparing or printing it visits a million
items. So sizes are deep, every operation is paid for in units before it begins, and a computation ends with TooMuch
when its units are used up. A unit is one item visited, 8 characters or 64 bits: some 10 to 100 ns.
"""

from collections import Counter
from collections.abc import Collection, Container, Iterable
from typing import Any

SAME_HASH = 64
"""A set or dict with more members of one hash value is refused: building it takes quadratic time."""
CONTAINERS = (list, tuple, set, frozenset, dict)


class TooMuch(ValueError):
    """More work than one computation may be."""


class Work:
    """The units that one computation has left, and the sizes of the containers that it has met."""

    def __init__(self, units: int) -> None:
        self.left = units
        self._sizes: dict[int, tuple[Any, int]] = {}
        """By id, which stays valid since the containers are held."""

    def spend(self, units: int) -> None:
        """Raises TooMuch when there are fewer left."""
        self.left -= units
        if self.left < 0:
            raise TooMuch("too much work to evaluate")

    def size(self, value: Any) -> int:
        """What it costs at most to visit all of a value once, as `==`, hash and sorting's comparisons do.

        The members of a set or dict count as often as there are members of their hash value, since looking one up
        compares it with the others. Of a container that has not been met before, costs a unit for each item.
        """
        kind = type(value)
        if kind not in CONTAINERS:
            return self.flat(value)
        known = self._sizes.get(id(value))
        if known is not None:
            return known[1]
        self.spend(len(value))
        if kind in (list, tuple):
            size = 1 + sum(map(self.size, value))
        else:
            size = 1 + self._crowded(value)
            if kind is dict:
                size += sum(map(self.size, value.values()))
        return self.remember(value, size)

    def remember(self, value: Any, size: int) -> int:
        """Takes down the size of a container that was made out of ones with known sizes."""
        self._sizes[id(value)] = value, size
        return size

    @staticmethod
    def flat(value: Any) -> int:
        """The same without what is inside of a container."""
        kind = type(value)
        if kind is str or kind is bytes:
            return 1 + (len(value) >> 3)
        return 1 + (value.bit_length() >> 6) if kind is int else 1

    def _crowded(self, members: Collection[Any]) -> int:
        sizes = list(map(self.size, members))
        self.spend(sum(sizes))
        hashes = list(map(hash, members))
        crowds = Counter(hashes)
        return sum(size * crowds[hashed] for size, hashed in zip(sizes, hashes, strict=True))

    def members(self, items: Iterable[Any]) -> set[Any]:
        """The set of these items. Raises TypeError for one without a hash, or too many different ones with the same.

        Python's integers hash to themselves modulo 2^61 - 1, so numbers can be chosen that all collide. Built one by
        one: in C, with the interpreter's lock held, bad luck within the table would stop the whole server.
        """
        found: set[Any] = set()
        crowds: dict[int, int] = {}
        for item in items:
            self._admit(item, found, crowds)
            found.add(item)
        return found

    def mapping(self, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        """The dict of these pairs. Raises TypeError as above."""
        found: dict[Any, Any] = {}
        crowds: dict[int, int] = {}
        for key, item in pairs:
            self._admit(key, found, crowds)
            found[key] = item
        return found

    def _admit(self, key: Any, table: Container[Any], crowds: dict[int, int]) -> None:
        size = self.size(key)
        self.spend(size)
        try:
            hashed = hash(key)
        except TypeError:
            raise TypeError("a member without a hash") from None
        alike = crowds.get(hashed, 0)
        self.spend(size * alike)
        if alike and key in table:
            return
        if alike == SAME_HASH:
            raise TypeError("too many members with the same hash")
        crowds[hashed] = alike + 1
