"""What a search with several live branches may already send: their longest common token prefix."""

from collections.abc import Sequence


def committed_length(branches: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all branches share; 0 for no branches.

    Take in every live and every finished branch: whichever is chosen in the end, it starts with these tokens.
    """
    if not branches:
        return 0
    # The lexicographic extremes differ first where any two branches do.
    low, high = min(branches, key=tuple), max(branches, key=tuple)
    for position, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return position
    return min(len(low), len(high))
