"""The Boltzmann distribution over a few scores: the softmax that every search here weighs its candidates with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def softmax(scores: Sequence[float], temperature: float) -> list[float]:
    """exp(score / temperature), normalised; empty for no scores.

    The maximum is subtracted first, so scores far apart at a cold temperature neither overflow nor lose their winner.
    Raises ValueError for a temperature that is not positive or a score that is not finite.
    """
    return np.exp(_log_softmax(scores, temperature)).tolist() if scores else []


def log_softmax(scores: Sequence[float], temperature: float) -> list[float]:
    """The logarithms of `softmax`: finite, and so still in order, where the probabilities themselves are zero."""
    return _log_softmax(scores, temperature).tolist() if scores else []


def _log_softmax(scores: Sequence[float], temperature: float) -> NDArray[np.float64]:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    weights = (values - values.max()) / temperature
    logarithms: NDArray[np.float64] = weights - np.log(np.exp(weights).sum())
    return logarithms
