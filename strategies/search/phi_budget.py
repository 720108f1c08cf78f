"""What a round of phi-decoding may spend: caps on its texts, and how it shrinks when the budget runs low.

Before a round its worst case must fit beside what finishing takes. If it does not, first foresight gets shorter, then
there are fewer rollouts, then deliberation ends; at the end fewer beams are completed, or just the best.
"""

from dataclasses import dataclass, replace

MIN_FORESIGHT = 64
"""Foresight shorter than this says nothing about the answer; rather take fewer rollouts."""


@dataclass(frozen=True, slots=True)
class Round:
    """rollouts: N per beam. step_cap, foresight_cap, final_cap: most tokens of one text of each stage."""

    rollouts: int
    step_cap: int = 1024
    foresight_cap: int = 1024
    final_cap: int = 3000

    def worst(self, beams: int) -> int:
        """Tokens of the rollouts and the foresight, if nothing is pruned and every text runs to its cap."""
        return beams * self.rollouts * (self.step_cap + self.foresight_cap)


def within_answer(planned: Round, answer_left: int) -> Round:
    """The round's caps where the answer itself may only grow by `answer_left` tokens (max_tokens less the accepted)."""
    step = min(planned.step_cap, answer_left)
    return replace(
        planned,
        step_cap=step,
        foresight_cap=min(planned.foresight_cap, answer_left - step) if step < answer_left else 0,
        final_cap=min(planned.final_cap, answer_left),
    )


def affordable_round(planned: Round, beams: int, tokens_left: int | None, reserve: int) -> Round | None:
    """The largest round, in the order above, whose worst case leaves `reserve` tokens; None: stop deliberating.

    tokens_left: None is no limit. reserve: what completing the beams takes, 0 if foresight is used for it.
    """
    if tokens_left is None:
        return planned
    spare = tokens_left - reserve
    for rollouts in range(planned.rollouts, 0, -1):
        foresight = spare // (beams * rollouts) - planned.step_cap
        if foresight >= min(planned.foresight_cap, MIN_FORESIGHT):
            return replace(planned, rollouts=rollouts, foresight_cap=min(planned.foresight_cap, foresight))
    return None


def affordable_completions(beams: int, final_cap: int, tokens_left: int | None) -> tuple[int, int]:
    """(beams to complete, their cap): all if their worst case fits, else only the best, cut to what is left."""
    if beams == 0 or (tokens_left is not None and tokens_left <= 0):
        return 0, 0
    if tokens_left is None or beams * final_cap <= tokens_left:
        return beams, final_cap
    return 1, min(final_cap, tokens_left)
