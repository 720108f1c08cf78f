"""Which solutions a search returns, and in what order: the best of each distinct answer first."""

from collections.abc import Sequence
from typing import Literal

from strategies.scoring.answer_options import AnswerOptions
from strategies.search.context import SearchContext
from strategies.search.node import Node
from strategies.search.voting import ranked_answers

Selection = Literal["majority", "weighted-majority", "best-of-n"]
"""How a solution is chosen from many: by the number of those with its answer, the sum of their weights, its own."""
WEIGHT_DIGITS = 6


async def ranked(
    context: SearchContext,
    nodes: Sequence[Node],
    weights: Sequence[float],
    answer: AnswerOptions,
    selection: Selection,
    *,
    notes: bool = True,
) -> list[Node]:
    """All of the solutions: one of each distinct answer, best first, then the others by weight.

    The one of an answer is that of highest weight, the first among equals. A solution without an answer has no vote;
    for "best-of-n" its text counts as its answer. Where every weight is 0 the votes count the same.
    """
    if not nodes:
        return []
    texts = [node.text for node in nodes]
    answers = await context.compute(answer.canonical, texts)
    if notes:
        for node, found, weight in zip(nodes, answers, weights, strict=True):
            context.note(node, answer=found, weight=round(weight, WEIGHT_DIGITS))
    by_weight = sorted(range(len(nodes)), key=lambda i: -round(weights[i], WEIGHT_DIGITS))
    if selection == "best-of-n":
        first = distinct(by_weight, answers, texts)
    else:
        voting = weights if selection == "weighted-majority" and any(weight > 0 for weight in weights) else None
        votes = ranked_answers(answers, voting)
        # Within an answer the best solution speaks for it, also where each has one vote.
        first = [next(i for i in by_weight if answers[i] == one.answer) for one in votes]
    chosen = set(first)
    return [nodes[i] for i in first + [i for i in by_weight if i not in chosen]]


def distinct(order: Sequence[int], answers: Sequence[str | None], texts: Sequence[str]) -> list[int]:
    """Of each distinct answer (or, without one, text) the first in the order."""
    seen: set[tuple[bool, str]] = set()
    kept = []
    for i in order:
        answer = answers[i]
        key = (False, texts[i]) if answer is None else (True, answer)
        if key not in seen:
            seen.add(key)
            kept.append(i)
    return kept
