"""What a round of phi-decoding may spend, and how it shrinks when the budget runs low.

Before every call its worst case must fit beside what finishing takes. If it does not, first foresight gets shorter,
then steps, then there are fewer rollouts, then deliberation ends; at the end only the best beam is completed. The
engine holds the limit itself; this only sees to it that it is not met in the middle of something useful.
"""

from dataclasses import dataclass, replace

MIN_FORESIGHT = 64
"""Foresight shorter than this says nothing about the answer; rather take fewer rollouts."""
MIN_STEP = 64
"""A line is seldom longer. A cap that does not bind costs nothing, so it gives way before rollouts do."""


@dataclass(frozen=True, slots=True)
class Round:
    """rollouts: N per beam. step_cap, foresight_cap: most tokens of one text of each stage."""

    rollouts: int
    step_cap: int = 1024
    foresight_cap: int = 1024

    def worst(self, beams: int, room: int) -> int:
        """Tokens of rollouts and foresight if nothing is pruned and every text runs to its cap.

        room: what the answer may still grow by, which a step and its foresight share.
        """
        return beams * self.rollouts * min(self.step_cap + self.foresight_cap, room)


def affordable_round(planned: Round, beams: int, room: int, tokens_left: int | None, reserve: int) -> Round | None:
    """The largest round, in the order above, whose worst case leaves `reserve` tokens; None: stop deliberating.

    tokens_left: None is no limit. reserve: what finishing takes.
    """
    if tokens_left is None or planned.worst(beams, room) <= tokens_left - reserve:
        return planned
    least_step, least_foresight = min(planned.step_cap, MIN_STEP), min(planned.foresight_cap, MIN_FORESIGHT)
    for rollouts in range(planned.rollouts, 0, -1):
        each = (tokens_left - reserve) // (beams * rollouts)
        if each >= room:
            return replace(planned, rollouts=rollouts)
        if each >= least_step + least_foresight:
            step = min(planned.step_cap, each - least_foresight)
            return Round(rollouts, step, min(planned.foresight_cap, each - step))
    return None


def affordable_foresight(paths: int, cap: int, tokens_left: int | None, reserve: int) -> int:
    """The cap of `paths` continuations, now that it is known what their steps took; 0: there is nothing left."""
    if tokens_left is None or paths == 0:
        return cap
    return max(0, min(cap, (tokens_left - reserve) // paths))


def affordable_completions(beams: int, final_cap: int, tokens_left: int | None) -> tuple[int, int]:
    """(beams to complete, their cap): all if their worst case fits, else only the best, cut to what is left."""
    if beams == 0 or (tokens_left is not None and tokens_left <= 0):
        return 0, 0
    if tokens_left is None or beams * final_cap <= tokens_left:
        return beams, final_cap
    return 1, min(final_cap, tokens_left)
