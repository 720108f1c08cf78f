"""How sure a measured share or difference is."""

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

RESAMPLES = 10_000
SEED = 1
Z = 1.96

Key = TypeVar("Key", int, str)


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927). trials >= 1."""
    p, n = successes / trials, trials
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(ours: Mapping[Key, float], base: Mapping[Key, float]) -> tuple[float, float, float] | None:
    """Mean difference over the keys that both have, and its 95 % bootstrap interval over keys."""
    common = sorted(ours.keys() & base.keys())
    if not common:
        return None
    differences = np.array([ours[key] - base[key] for key in common])
    picked = np.random.default_rng(SEED).integers(0, len(common), (RESAMPLES, len(common)))
    low, high = np.percentile(differences[picked].mean(-1), [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)
