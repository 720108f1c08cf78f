"""What a forward pass costs, as a function of its tokens, learned while serving: medians by size, made monotone."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

KEPT = 15
"""Last passes of one size that its median is taken of: old ones are forgotten as the machine's load changes."""
PER_OCTAVE = 4
"""Sizes told apart between a number of tokens and twice as many."""

Numbers = NDArray[np.float64]


class CostCurve:
    """Seconds by number of tokens: linear between the sizes seen, never falling.

    A larger pass costs at least as much, so where medians contradict that, neighbours are averaged (isotonic
    regression). Beyond the largest size seen it goes on with the last slope, or `slope` of the first cost per token if
    that is more: small, so that a size nobody has tried is tried once rather than never.
    """

    def __init__(self, slope: float = 0.02) -> None:
        self._slope = slope
        self._samples: dict[int, deque[tuple[int, float]]] = {}
        self._knots: tuple[Numbers, Numbers] | None = None
        self.largest = 0
        """Tokens of the largest pass seen."""

    @property
    def known(self) -> bool:
        """Whether anything was observed."""
        return bool(self._samples)

    def observe(self, tokens: int, seconds: float) -> None:
        """Records one pass of `tokens` >= 1."""
        size = round(PER_OCTAVE * math.log2(tokens))
        self._samples.setdefault(size, deque(maxlen=KEPT)).append((tokens, max(seconds, 1e-9)))
        self._knots = None
        self.largest = max(self.largest, tokens)

    def __call__(self, tokens: Numbers) -> Numbers:
        """Seconds of passes of so many tokens, any shape. Raises ValueError while nothing is known."""
        sizes, costs = self._curve()
        slope = self._slope * costs[0] / sizes[0] if sizes[0] else 0.0
        if len(sizes) > 1:
            slope = max(slope, (costs[-1] - costs[-2]) / (sizes[-1] - sizes[-2]))
        beyond = np.maximum(tokens - sizes[-1], 0.0)
        return np.asarray(np.interp(tokens, sizes, costs) + beyond * slope)

    def _curve(self) -> tuple[Numbers, Numbers]:
        if not self._samples:
            raise ValueError("no pass was observed")
        if self._knots is None:
            sizes, medians = [], []
            for _, samples in sorted(self._samples.items()):
                sizes.append(sum(tokens for tokens, _ in samples) / len(samples))
                medians.append(float(np.median([seconds for _, seconds in samples])))
            weights = [len(samples) for _, samples in sorted(self._samples.items())]
            self._knots = np.array(sizes), np.array(isotonic(medians, weights))
        return self._knots


def isotonic(values: list[float], weights: list[int]) -> list[float]:
    """The non-decreasing sequence nearest to `values` in weighted squares, by pooling neighbours (Ayer et al. 1955)."""
    pools: list[tuple[float, int, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        mean, total, length = value, weight, 1
        while pools and pools[-1][0] > mean:
            before, mass, count = pools.pop()
            mean = (mean * total + before * mass) / (total + mass)
            total, length = total + mass, length + count
        pools.append((mean, total, length))
    return [mean for mean, _, length in pools for _ in range(length)]


@dataclass(slots=True)
class StepCosts:
    """What an engine step is made of. target: by packed tokens, all but drafting and verifying. drafts: one forward of
    a drafter, by its tokens. verify: by number of trees.

    ratios: cost of a drafter's forward over the target's, a guess until the drafter was measured.
    """

    target: CostCurve = field(default_factory=CostCurve)
    drafts: dict[str, CostCurve] = field(default_factory=dict)
    verify: CostCurve = field(default_factory=lambda: CostCurve(slope=1.0))
    ratios: Mapping[str, float] = field(default_factory=dict)

    def draft(self, drafter: str, tokens: Numbers) -> Numbers:
        """Seconds of one draft forward; 0 for 0 tokens and for look-up, which has no forward."""
        curve = self.drafts.get(drafter)
        if curve is not None and curve.known:
            seconds = curve(tokens)
        else:
            seconds = self.ratios.get(drafter, 0.0) * self.target(tokens)
        return np.where(tokens > 0, seconds, 0.0)

    def verification(self, trees: Numbers) -> Numbers:
        """Seconds that verifying so many trees takes; 0 until it was measured."""
        return np.where(trees > 0, self.verify(trees), 0.0) if self.verify.known else np.zeros_like(trees)
