"""What LiteSearch returns: one of the finished solutions, or the greedy pass (arXiv 2407.00320, and a server's modes).

paper:          the finished solution of highest value; nothing if none finished
best:           that one, unless the greedy solution is worth strictly more; so an answer always exists (released code)
first:          the first finished solution worth more than theta, else `best`
vote:           values summed per canonical answer over all finished solutions and the greedy one
vote_fallback:  `best`, but if its value is below alpha, votes of K samples are wanted instead
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from strategies.search.litesearch_tree import VALUE_DIGITS
from strategies.search.voting import vote

LiteSearchFinal = Literal["paper", "best", "first", "vote", "vote_fallback"]
Source = int | Literal["greedy"]
"""A finished solution, by its place in the order of creation, or the greedy one."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A complete solution: its value, and its canonical answer (None where none was found)."""

    value: float
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """source: what to return, None for nothing. needs_samples: sample K solutions and let `soft_vote` decide."""

    source: Source | None
    needs_samples: bool = False


def answer_source(finished: Sequence[float], greedy: float | None) -> Source | None:
    """`best`, from the values of the finished solutions and of the greedy one (None: there is none)."""
    best = max(range(len(finished)), key=lambda i: round(finished[i], VALUE_DIGITS), default=None)
    if greedy is None:
        return best
    if best is None or round(greedy, VALUE_DIGITS) > round(finished[best], VALUE_DIGITS):
        return "greedy"
    return best


def final_answer(
    mode: LiteSearchFinal,
    finished: Sequence[Solution],
    greedy: Solution | None,
    *,
    theta: float | None = 0.8,
    alpha: float = 0.8,
) -> FinalAnswer:
    """What a search that ended with these solutions returns. finished: in order of creation."""
    values = [solution.value for solution in finished]
    if mode == "paper":
        return FinalAnswer(answer_source(values, None))
    best = answer_source(values, None if greedy is None else greedy.value)
    if mode == "first" and theta is not None:
        over = (i for i, value in enumerate(values) if round(value, VALUE_DIGITS) > round(theta, VALUE_DIGITS))
        return FinalAnswer(next(over, best))
    if mode == "vote":
        return FinalAnswer(_voted(finished, greedy, best))
    if mode == "vote_fallback":
        value = _value(best, finished, greedy)
        return FinalAnswer(best, needs_samples=value is None or round(value, VALUE_DIGITS) < round(alpha, VALUE_DIGITS))
    return FinalAnswer(best)


def soft_vote(samples: Sequence[Solution]) -> int | None:
    """The sample to return after the fallback: the best member of the answer with the largest sum of values; None if
    no sample has an answer."""
    return vote([s.answer for s in samples], [s.value for s in samples]).representative


def _voted(finished: Sequence[Solution], greedy: Solution | None, best: Source | None) -> Source | None:
    """The best member of the winning answer. The greedy pass came first, so it is first among equals."""
    pool: list[tuple[Source, Solution]] = [] if greedy is None else [("greedy", greedy)]
    pool += enumerate(finished)
    winner = soft_vote([solution for _, solution in pool])
    return best if winner is None else pool[winner][0]


def _value(source: Source | None, finished: Sequence[Solution], greedy: Solution | None) -> float | None:
    if source == "greedy":
        return None if greedy is None else greedy.value
    return None if source is None else finished[source].value
