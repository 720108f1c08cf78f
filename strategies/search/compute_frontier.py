"""Error against compute (arXiv 2408.00724): which strategy is best for a given number of FLOPs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One strategy at one size: mean FLOPs a question, mean error in 0..1, and its name."""

    flops: float
    error: float
    label: str


def pareto_frontier(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """The points that no cheaper or equally cheap point matches in error, by rising FLOPs; errors strictly fall."""
    frontier: list[FrontierPoint] = []
    for point in sorted(points, key=lambda p: (p.flops, p.error)):
        if not frontier or point.error < frontier[-1].error:
            frontier.append(point)
    return frontier


def best_at_budget(points: Sequence[FrontierPoint], flops: float) -> FrontierPoint | None:
    """The point of least error that costs at most `flops`, the cheapest among equals; None if none is affordable."""
    affordable = [point for point in points if point.flops <= flops]
    return min(affordable, key=lambda p: (p.error, p.flops), default=None)


def optimal_parameters(flops: float, slope: float = 1.19, intercept: float = 2.03) -> float:
    """N of log10 C = slope log10 N + intercept. The defaults are the paper's fit for Pythia on GSM8K; it does not
    carry over to other families of models."""
    return math.pow(10.0, (math.log10(flops) - intercept) / slope)


def binomial_standard_error(error: float, questions: int) -> float:
    """sqrt(e (1 - e) / n), the sampling error of a mean error over `questions` questions."""
    return math.sqrt(error * (1.0 - error) / questions)
