"""How good values are, as probabilities and as a ranking: AUC, Brier score, expected calibration error.

Outcomes are 0 or 1; every figure takes a weight per value, so that long solutions with many prefixes do not dominate.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS = 15


@dataclass(frozen=True, slots=True)
class ValueMetrics:
    """n: values; positive_rate: weighted share of right outcomes; constant_brier: of a predictor that always says that
    rate. auc is None where all outcomes are equal; all but n are None for no values."""

    n: int
    positive_rate: float | None
    auc: float | None
    brier: float | None
    constant_brier: float | None
    ece: float | None


def measure(values: Floats, outcomes: Floats, weights: Floats) -> ValueMetrics:
    """All figures of values [N] in 0..1 against outcomes [N]."""
    if not len(values):
        return ValueMetrics(0, None, None, None, None, None)
    rate = float(np.average(outcomes, weights=weights))
    return ValueMetrics(
        len(values),
        rate,
        auc(values, outcomes, weights),
        float(np.average((values - outcomes) ** 2, weights=weights)),
        rate * (1 - rate),
        calibration_error(values, outcomes, weights),
    )


def auc(values: Floats, outcomes: Floats, weights: Floats) -> float | None:
    """Probability that a right one's value exceeds a wrong one's, ties half; None if there are not both."""
    order = np.argsort(values, kind="stable")
    right, wrong = (weights * outcomes)[order], (weights * (1 - outcomes))[order]
    if right.sum() == 0 or wrong.sum() == 0:
        return None
    # Equal values form one group: its right ones beat the wrong ones below it, and half of its own.
    _, starts = np.unique(values[order], return_index=True)
    group_right, group_wrong = np.add.reduceat(right, starts), np.add.reduceat(wrong, starts)
    below = np.concatenate([[0.0], np.cumsum(group_wrong)[:-1]])
    return float((group_right * (below + group_wrong / 2)).sum() / (right.sum() * wrong.sum()))


def calibration_error(values: Floats, outcomes: Floats, weights: Floats, bins: int = BINS) -> float:
    """Weighted mean over bins of equal weight of |mean value - share of right ones| (expected calibration error)."""
    order = np.argsort(values, kind="stable")
    v, y, w = values[order], outcomes[order], weights[order]
    middle = np.cumsum(w) - w / 2
    place = np.minimum((middle / w.sum() * bins).astype(int), bins - 1)
    gaps = np.bincount(place, w * (v - y), bins)
    return float(np.abs(gaps).sum() / w.sum())
