"""How many more steps a budget pays for, measured on those made so far."""

from strategies.search.context import SearchContext

GUESSED_STEP = 32
"""Tokens of a step before one has been seen."""


class Pace:
    """Counts the steps of one search and what they cost, their scoring included, in the unit of
    `SearchContext.tokens_left`."""

    def __init__(self, context: SearchContext) -> None:
        self._context = context
        self._steps = 0
        self._before = context.tokens_left

    def made(self, steps: int) -> None:
        """So many steps more were generated and scored."""
        self._steps += steps

    @property
    def mean(self) -> float:
        """Tokens that a step has cost on average."""
        left = self._context.tokens_left
        if left is None or self._before is None or not self._steps:
            return GUESSED_STEP
        return (self._before - left) / self._steps

    def affords(self, steps: int, reserve: int = 0) -> int:
        """How many of `steps` the budget pays for when `reserve` tokens are kept back; without a limit all."""
        left = self._context.tokens_left
        if left is None:
            return steps
        return max(0, min(steps, int((left - reserve) / max(self.mean, 1.0))))
