"""How many more steps a budget pays for, measured on those made so far."""

from strategies.search.context import SearchContext

GUESSED_STEP = 32
"""Tokens of a step before one has been seen."""


class Pace:
    """Counts the steps of one search and what they cost, their scoring included."""

    def __init__(self, context: SearchContext) -> None:
        self._context = context
        self._steps = 0
        self._before = self._spent()

    def made(self, steps: int) -> None:
        """So many steps more were generated and scored."""
        self._steps += steps

    @property
    def mean(self) -> float:
        """Tokens a step has cost on average, in the unit that `SearchContext.tokens_left` counts."""
        return (self._spent() - self._before) / self._steps if self._steps else GUESSED_STEP

    def affords(self, steps: int, reserve: int = 0) -> int:
        """How many of `steps` the budget pays for when `reserve` tokens are kept back; without a limit all."""
        left = self._context.tokens_left
        if left is None:
            return steps
        return max(0, min(steps, int((left - reserve) / max(self.mean, 1.0))))

    def _spent(self) -> int:
        meter = self._context.generation.meter
        if meter.budget.forward_tokens is None and meter.budget.flops is None:
            return meter.spend.output_tokens
        return meter.spend.target_tokens + meter.spend.draft_tokens
