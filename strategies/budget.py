"""Compute budgets: what a request may spend, what it has spent, and in which unit it ran out.

Every forward token is charged to the request that caused it, whether it ends in the answer or not. One `Meter` is
shared by everything that works for one request (its n choices, and later its drafts, branches and scorers).
"""

import time
from dataclasses import dataclass, field
from typing import Literal

BudgetUnit = Literal["forward_tokens", "output_tokens", "flops", "seconds"]


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one request; None means unlimited.

    forward_tokens: tokens computed by a forward pass (prompt, generated, and dead ends), prefix-cache hits excluded.
    output_tokens:  tokens generated, over all choices.
    flops:          floating-point operations of those forward passes, by the model's own formula.
    seconds:        wall time since the request was submitted (checked between engine steps).
    """

    forward_tokens: int | None = None
    output_tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Spend:
    """What one request has cost so far.

    target_tokens:   tokens computed by the target model
    draft_tokens:    tokens computed by a draft
    cached_tokens:   prompt tokens served from the prefix cache instead
    output_tokens:   tokens generated, over all choices
    drafted_tokens:  draft tokens that the target verified
    accepted_tokens: those of them that became output
    accepted_by_level: the same by level of the draft tree, first level first
    scorer_calls:    values asked for by a search (tokens of the served model are in the counts above)
    scorer_tokens:   tokens computed by a reward model of its own, and their operations in scorer_flops
    picked:          steps by the draft tree that adaptive speculation picked for them, "off" for none
    rounds:          forward passes of a sequence that verified drafts; accepted_tokens / rounds + 1 is block efficiency
    forward_passes:  engine steps in which the request had at least one token (a step is one forward of the model)
    flops:           2 * parameters * tokens + attention, see `ModelInfo.flops`
    """

    target_tokens: int = 0
    draft_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    accepted_by_level: list[int] = field(default_factory=list)
    picked: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    scorer_calls: int = 0
    scorer_tokens: int = 0
    scorer_flops: float = 0.0
    forward_passes: int = 0
    flops: float = 0.0

    def picks(self, name: str) -> None:
        """Counts a step for which adaptive speculation picked this."""
        self.picked[name] = self.picked.get(name, 0) + 1


@dataclass(slots=True)
class Meter:
    """Budget and spend of one request. Only the engine thread writes to it, but for the scorers' counts, which only the
    event loop does."""

    budget: Budget = field(default_factory=Budget)
    spend: Spend = field(default_factory=Spend)
    started: float = field(default_factory=time.monotonic)
    finished: float | None = None
    exhausted: BudgetUnit | None = None
    admitted: float | None = None  # when the engine first scheduled something of the request
    last_pass: int = -1
    turn: int = 0  # the scheduler's count of admissions when one of the request's sequences was last admitted

    @property
    def seconds(self) -> float:
        """Wall time from submission to the end of the last choice (or to now)."""
        return (self.finished if self.finished is not None else time.monotonic()) - self.started

    def refuses(self, *, tokens: int = 0, flops: float = 0.0, outputs: int = 0) -> BudgetUnit | None:
        """The unit in which spending this much more would pass the limit, or None. Remembers the answer."""
        unit = self.lacks(tokens=tokens, flops=flops, outputs=outputs)
        if unit is not None:
            self.exhausted = unit
        return unit

    def lacks(self, *, tokens: int = 0, flops: float = 0.0, outputs: int = 0) -> BudgetUnit | None:
        """As `refuses`, for work that could also be done in smaller pieces: it remembers nothing."""
        budget, spend = self.budget, self.spend
        unit: BudgetUnit | None = None
        forward_tokens = spend.target_tokens + spend.draft_tokens + spend.scorer_tokens
        if budget.forward_tokens is not None and forward_tokens + tokens > budget.forward_tokens:
            unit = "forward_tokens"
        elif budget.output_tokens is not None and spend.output_tokens + outputs > budget.output_tokens:
            unit = "output_tokens"
        elif budget.flops is not None and spend.flops + spend.scorer_flops + flops > budget.flops:
            unit = "flops"
        elif budget.seconds is not None and time.monotonic() - self.started >= budget.seconds:
            unit = "seconds"
        return unit

    def charge(self, *, tokens: int, flops: float, step: int) -> None:
        """Records `tokens` computed in engine step number `step` (several sequences of one request share a pass).

        A step that only recomputes what was charged before (`tokens` 0) is no pass of the request.
        """
        self.spend.target_tokens += tokens
        self.spend.flops += flops
        if tokens and step != self.last_pass:
            self.spend.forward_passes += 1
            self.last_pass = step

    def charge_scorer(self, *, tokens: int, flops: float) -> BudgetUnit | None:
        """Records what a reward model is about to compute, or returns the unit that does not cover it."""
        unit = self.refuses(tokens=tokens, flops=flops)
        if unit is None:
            self.spend.scorer_tokens += tokens
            self.spend.scorer_flops += flops
        return unit

    def finish(self) -> None:
        """Stops the clock; the last choice to end decides."""
        self.finished = time.monotonic()
