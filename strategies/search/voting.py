"""Choosing among finished solutions: majority vote, weighted vote, best of n (arXiv 2408.00724, section 3.1).

    majority   argmax over answers y of |{i : answer_i = y}|
    weighted   argmax over answers y of the sum of w_i over {i : answer_i = y}
    best of n  argmax over i of w_i

Answers are canonical strings, so equality is transitive and the order of the solutions decides ties only: the answer
seen first wins. A solution without an answer (None) has no vote.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Aggregate = Literal["last", "min", "mean", "prod"]
TIE_DIGITS = 9
"""Weights are compared after rounding: a sum's last bits depend on the order of its terms."""


@dataclass(frozen=True, slots=True)
class VoteResult:
    """An answer, the sum of its votes, and the index of the solution to return for it (highest weight, first of
    equals). All empty when nothing voted."""

    answer: str | None
    weight: float
    representative: int | None


def ranked_answers(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> list[VoteResult]:
    """Every distinct answer, most votes first, ties by first appearance. weights: 1 each if None; below 0 counts as 0.

    Raises ValueError for a weight that is not a number.
    """
    votes = [1.0] * len(answers) if weights is None else [max(weight, 0.0) for weight in weights]
    if any(math.isnan(weight) for weight in weights or ()):
        raise ValueError("a vote's weight is not a number")
    members: dict[str, list[int]] = {}
    for index, (answer, _) in enumerate(zip(answers, votes, strict=True)):
        if answer is not None:
            members.setdefault(answer, []).append(index)
    results = [
        VoteResult(
            answer,
            math.fsum(votes[i] for i in group),
            max(group, key=lambda i: round(votes[i], TIE_DIGITS)),
        )
        for answer, group in members.items()
    ]
    return sorted(results, key=lambda result: -round(result.weight, TIE_DIGITS))


def vote(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> VoteResult:
    """The winner: majority without weights, weighted majority with them."""
    ranking = ranked_answers(answers, weights)
    return ranking[0] if ranking else VoteResult(None, 0.0, None)


def best_of_n(scores: Sequence[float], answers: Sequence[str | None] | None = None) -> int | None:
    """Index of the highest score, the first among equals; with `answers`, among the solutions that have one.

    None for no solutions, or if none has an answer. Raises ValueError for a score that is not a number.
    """
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is not a number")
    if answers is not None and len(answers) != len(scores):
        raise ValueError("there must be one answer, or None, for every score")
    candidates = [i for i in range(len(scores)) if answers is None or answers[i] is not None]
    return max(candidates, key=lambda i: round(scores[i], TIE_DIGITS), default=None)


def decided(answers: Sequence[str | None], to_come: int, weights: Sequence[float] | None = None) -> bool:
    """Whether `to_come` further solutions can't change the winner, if each votes with at most 1: stop sampling."""
    ranking = ranked_answers(answers, weights)
    if not ranking:
        return to_come == 0
    second = ranking[1].weight if len(ranking) > 1 else 0.0
    return round(ranking[0].weight - second, TIE_DIGITS) > to_come


def agreement(answers: Sequence[str | None]) -> list[float]:
    """A value for each of M finished solutions: (those that share its answer + 1) / (M + 2); no answer shares none."""
    counts = {result.answer: result.weight for result in ranked_answers(answers)}
    return [(counts.get(answer, 0.0) + 1.0) / (len(answers) + 2.0) for answer in answers]


def aggregate(step_scores: Sequence[float], how: Aggregate) -> float:
    """A solution's score from its steps' rewards; 0 for none.

    "prod" and "min" over different numbers of steps favour short solutions.
    """
    if not step_scores:
        return 0.0
    if how == "last":
        return step_scores[-1]
    if how == "min":
        return min(step_scores)
    return math.prod(step_scores) if how == "prod" else math.fsum(step_scores) / len(step_scores)
