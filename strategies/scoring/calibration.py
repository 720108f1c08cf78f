"""Platt scaling (Platt 1999): a score z becomes a probability, sigmoid(a z + b), fitted on held-out outcomes.

A calibration file makes the values of any value function probabilities: z is then the logit of its value.

    {"kind": "self-eval", "model": NAME, "method": "platt", "a": A, "b": B, "n": N, "auc": ..., "ece": ..., ...}
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from strategies.errors import ModelLoadError
from strategies.scoring.value import ValueFunction

if TYPE_CHECKING:
    from strategies.search.context import SearchContext
    from strategies.search.node import Node

Floats = NDArray[np.float64]

LEAST = 1e-6
"""Values are kept so far from 0 and 1 before their logit is taken."""
PRIOR = 1e-3
"""Weight of a quadratic pull towards a = 1, b = 0: keeps the fit finite where the outcomes are separable."""
ITERATIONS = 100


@dataclass(frozen=True, slots=True)
class Platt:
    """sigmoid(a z + b)."""

    a: float = 1.0
    b: float = 0.0

    def __call__(self, scores: Floats) -> Floats:
        """Probabilities, float64 of the same shape."""
        return sigmoid(self.a * scores + self.b)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A value function whose values pass through Platt scaling. Implements `ValueFunction`."""

    inner: ValueFunction
    platt: Platt
    calibrated: bool = True

    @property
    def automatic(self) -> bool:
        """As the value function's own; see `ValueFunction`."""
        return bool(getattr(self.inner, "automatic", True))

    async def values(self, context: "SearchContext", nodes: "Sequence[Node]") -> list[float]:
        """As the value function's own, made probabilities."""
        values = np.array(await self.inner.values(context, nodes), np.float64)
        return [float(value) for value in self.platt(logit(values))]


def sigmoid(z: Floats) -> Floats:
    """1 / (1 + exp(-z)), without overflow."""
    positive = 1.0 / (1.0 + np.exp(-np.abs(z)))
    return np.where(z >= 0, positive, 1.0 - positive)


def logit(p: Floats) -> Floats:
    """log(p / (1 - p)) of values kept inside (0, 1)."""
    kept = np.clip(p, LEAST, 1.0 - LEAST)
    return np.log(kept) - np.log1p(-kept)


def fit_platt(scores: Floats, outcomes: Floats, weights: Floats | None = None) -> Platt:
    """The a, b that make weighted log loss least, by Newton's method with halved steps.

    scores, outcomes (0..1), weights: [N]. Raises ValueError where a is not above 0: the scores then rank outcomes the
    wrong way round, or say nothing.
    """
    w = np.ones_like(scores) if weights is None else weights
    w = w * (len(w) / w.sum())
    scale = float(scores.std()) or 1.0  # fit on unit scale: raw scores may be huge, and Newton's first step with them
    design = np.stack([scores / scale, np.ones_like(scores)], axis=1)
    prior = np.array([scale, 0.0])
    theta = prior.copy()

    def loss(candidate: Floats) -> float:
        z = design @ candidate
        return float((w * (np.logaddexp(0.0, z) - outcomes * z)).sum() + PRIOR / 2 * ((candidate - prior) ** 2).sum())

    best = loss(theta)
    for _ in range(ITERATIONS):
        p = sigmoid(design @ theta)
        gradient = design.T @ (w * (p - outcomes)) + PRIOR * (theta - prior)
        hessian = (design * (w * p * (1 - p))[:, None]).T @ design + PRIOR * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        length = 1.0
        while length > 1e-8 and loss(theta - length * step) > best:
            length /= 2
        theta, before = theta - length * step, best
        best = min(before, loss(theta))
        if before - best <= 1e-12 * max(1.0, abs(before)):
            break
    a, b = float(theta[0]) / scale, float(theta[1])
    if not a > 0:
        raise ValueError(f"the fitted slope is {a:.3g}: the scores do not rank right answers above wrong ones")
    return Platt(a, b)


def read_calibration(path: Path) -> tuple[str, str, Platt]:
    """(kind, name of the served model, scaling) of a calibration file. Raises ModelLoadError."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the calibration file {path} can't be read: {error}") from error
    if not isinstance(content, dict) or content.get("method") != "platt":
        raise ModelLoadError(f"the calibration file {path} must be an object whose 'method' is 'platt'")
    for name in ("kind", "model"):
        if not isinstance(content.get(name), str):
            raise ModelLoadError(f"the calibration file {path} must name its {name!r}")
    return content["kind"], content["model"], platt_of(content, path)


def platt_of(content: Any, path: Path) -> Platt:
    """`a` and `b` of a JSON object. Raises ModelLoadError unless they are finite numbers with a above 0."""
    numbers = [content.get(name) if isinstance(content, dict) else None for name in ("a", "b")]
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in numbers):
        raise ModelLoadError(f"{path}: 'a' and 'b' of the Platt scaling must be finite numbers")
    a, b = float(numbers[0]), float(numbers[1])  # type: ignore[arg-type]  # checked above
    if a <= 0:
        raise ModelLoadError(f"{path}: 'a' of the Platt scaling must be above 0, not {a:g}")
    return Platt(a, b)
