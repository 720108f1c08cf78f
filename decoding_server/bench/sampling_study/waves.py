"""A wave: cells that are measured together, each a request of one batch.

A wave is also what is measured again as a whole when a run was cut off inside it: the rounding of a batch's linears
depends on how many rows it has, so the same batch is needed for the same tokens.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from decoding_server.bench.rows import Row

if TYPE_CHECKING:
    from decoding_server.bench.sampling_study.subject import Subject

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Wave:
    """title: for the progress display. keys: of its rows. run: measures them, one row per key."""

    title: str
    keys: tuple[str, ...]
    run: "Callable[[Subject], Coroutine[Any, Any, list[Row]]]"


def cut(items: Sequence[Item], size: int) -> list[list[Item]]:
    """The items in order, in as few parts of at most `size` as possible, of nearly equal length."""
    parts = -(-len(items) // size)
    borders = [i * len(items) // parts for i in range(parts + 1)] if parts else [0]
    return [list(items[low:high]) for low, high in pairwise(borders)]
