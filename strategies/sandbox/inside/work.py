"""What operations on hostile values cost, counted before they are done.

An operation on built-in types runs in C and can't be interrupted, and a value can be far larger than the memory it
takes: `[[0] * 1000] * 1000` holds a thousand references to one list, but comparing or printing it visits a million
items. So sizes are deep, every operation is paid for in units before it begins, and a computation ends with TooMuch
when its units are used up. A unit is one item visited, 8 characters or 64 bits: some 10 to 250 ns.
"""

from collections import Counter
from collections.abc import Collection, Container, Iterable
from typing import Any

SAME_HASH = 64
"""A set or dict with more members of one hash value is refused: building it takes quadratic time."""
NEW = 4
"""Units for a container that is met for the first time, beside one for each item: it is taken down."""
CONTAINERS = (list, tuple, set, frozenset, dict)


class TooMuch(ValueError):
    """More work than one computation may be."""


class Work:
    """The units that one computation has left, and the sizes of the containers that it has met."""

    def __init__(self, units: int) -> None:
        self.left = units
        self._sizes: dict[int, tuple[Any, int]] = {}
        """By id, which stays valid since the containers are held."""
        self._orders: dict[int, int] = {}
        self._crowded = False
        """Whether a set or dict that it has met has members of one hash value."""

    def spend(self, units: int) -> None:
        """Raises TooMuch when there are fewer left."""
        self.left -= units
        if self.left < 0:
            raise TooMuch("too much work to evaluate")

    def size(self, value: Any) -> int:
        """What it costs at most to visit all of a value once, as `==` and hash do.

        The members of a set or dict count as often as there are members of their hash value, since looking one up
        compares it with the others. Spends what it costs to find out, for containers that have not been met before.
        """
        kind = type(value)
        if kind not in CONTAINERS:
            return self.flat(value)
        known = self._sizes.get(id(value))
        if known is not None:
            return known[1]
        self.spend(NEW + len(value))
        if kind in (list, tuple):
            size = 1 + sum(map(self.size, value))
        else:
            size = 1 + self._looked_up(value)
            if kind is dict:
                size += sum(map(self.size, value.values()))
        self._sizes[id(value)] = value, size
        return size

    def order(self, value: Any) -> int:
        """What it costs at most to compare a value with another by `<`, `<=`, `>` or `>=`.

        Of lists and tuples Python looks for the first items that differ, by `==`, which may visit all that is in them,
        and then compares these two by `<`: so on every level of nesting.
        """
        if type(value) not in (list, tuple):
            return self.size(value)
        known = self._orders.get(id(value))
        if known is None:
            size = self.size(value)
            self.spend(1 + len(value))
            known = self._orders[id(value)] = size + max(map(self.order, value), default=0)
        return known

    def orders(self, items: Iterable[Any]) -> int:
        """What it costs at most to compare each of these once with another of them.

        Two values are compared at the cost of the smaller one. Not so with members of one hash value: looking up one
        in a set of many costs more than its own size.
        """
        orders = list(map(self.order, items))
        return 2 * len(orders) * max(orders) if self._crowded else sum(orders)

    def remember(self, value: Any, size: int, order: int) -> None:
        """Takes down what is known of a list or tuple that was made out of ones met before."""
        self._sizes[id(value)] = value, size
        self._orders[id(value)] = order

    @staticmethod
    def flat(value: Any) -> int:
        """The same without what is inside of a container."""
        kind = type(value)
        if kind is str or kind is bytes:
            return 1 + (len(value) >> 3)
        return 1 + (value.bit_length() >> 6) if kind is int else 1

    def _looked_up(self, members: Collection[Any]) -> int:
        sizes = list(map(self.size, members))
        self.spend(sum(sizes))
        hashes = list(map(hash, members))
        if len(set(hashes)) == len(hashes):
            return sum(sizes)
        self._crowded = True
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
