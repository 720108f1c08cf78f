"""Which items a subset of a given size holds: the first of one shuffle, so that a larger one contains it."""

import random

SUBSET_SEED = 20240803


def chosen(total: int, count: int | None, seed: int = SUBSET_SEED) -> list[int]:
    """Places of the items, in the shuffle's order; all of them for None."""
    order = list(range(total))
    random.Random(seed).shuffle(order)
    return order[:count]
