"""Pruning in phi-decoding (arXiv 2503.13288, section 2.3): in width among candidates, in depth over steps."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from strategies.search.boltzmann import log_softmax, softmax
from strategies.search.phi_profile import PhiProfile
from strategies.search.plackett_luce import draw_without_replacement

SLACK = 1e-9
"""Comparisons allow for rounding: equal scores would otherwise all pass, or all fail, by the last bit of their mean."""

StopCause = Literal["agreement", "identical_steps"]


@dataclass(frozen=True, slots=True)
class WidthPruning:
    """Which candidates go on. threshold = mean - k * deviation of the defined scores; NaN where none is defined."""

    mean: float
    deviation: float
    threshold: float
    keep: tuple[bool, ...]

    @property
    def kept(self) -> list[int]:
        """Indices of the kept candidates, ascending."""
        return [index for index, keep in enumerate(self.keep) if keep]


def prune_width(s: Sequence[float | None], k: float = 1.0, *, inclusive: bool = True) -> WidthPruning:
    """Keeps s_i >= mean - k * deviation (eqs. 9 and 10) over one pool of all beams' candidates; > if not `inclusive`.

    The deviation is the population's. Undefined scores (None, NaN, infinite) are never kept and enter neither mean nor
    deviation. With k = 1, >= keeps more than half (Cantelli); with k >= sqrt(n - 1) everything (Samuelson).
    """
    scores = [score for score in s if score is not None and math.isfinite(score)]
    if not scores:
        return WidthPruning(math.nan, math.nan, math.nan, (False,) * len(s))
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    threshold = mean - k * deviation
    bound = threshold - SLACK if inclusive else threshold + SLACK
    keep = tuple(
        score is not None and math.isfinite(score) and (score >= bound if inclusive else score > bound) for score in s
    )
    return WidthPruning(mean, deviation, threshold, keep)


def fill_weights(s: Sequence[float | None], keep: Sequence[bool], tau: float = 0.1) -> tuple[list[int], list[float]]:
    """(indices, probabilities) of the pruned candidates that may come back: softmax(s / tau) over defined scores."""
    pruned, scores = _pruned(s, keep)
    return pruned, softmax(scores, tau)


def _pruned(s: Sequence[float | None], keep: Sequence[bool]) -> tuple[list[int], list[float]]:
    """Indices and scores of what was pruned and has a score."""
    pairs = [(i, score) for i, score in enumerate(s) if not keep[i] and score is not None and math.isfinite(score)]
    return [i for i, _ in pairs], [score for _, score in pairs]


def surviving(s: Sequence[float | None], width: int, profile: PhiProfile, uniforms: Sequence[float]) -> list[int]:
    """S_t: the candidates that in-width pruning keeps, topped up to `width` from the pruned ones at random; ascending.

    uniforms: one per candidate, in (0, 1); those of the pruned ones decide who comes back.
    """
    pruning = prune_width(s, profile.width_k, inclusive=profile.width_inclusive)
    kept = pruning.kept
    if len(kept) < width:
        pruned, scores = _pruned(s, pruning.keep)
        weights = log_softmax(scores, profile.fill_tau)
        drawn = draw_without_replacement(weights, [uniforms[i] for i in pruned], width - len(kept))
        kept = sorted(kept + [pruned[i] for i in drawn])
    return kept


def largest_share(labels: Sequence[int]) -> float:
    """Share of the largest cluster among the clustered candidates; 0 for none."""
    return max(Counter(labels).values()) / len(labels) if labels else 0.0


@dataclass(slots=True)
class DepthPruning:
    """When deliberation ends before T_max: the largest cluster holds a share delta of the foresight (eq. 11).

    Steps count from 1. The authors' flag is never reset, so agreement once, at any step, stops at T_min; and it also
    stops when all chosen step texts are equal, which it tests one step later.
    """

    t_min: int
    delta: float
    inclusive: bool = True
    sticky: bool = False
    identical_steps: bool = False
    _agreed: bool = field(default=False, init=False)

    @classmethod
    def of(cls, profile: PhiProfile, t_min: int) -> "DepthPruning":
        """The rule of a profile."""
        return cls(t_min, profile.delta, profile.depth_inclusive, profile.depth_sticky, profile.identical_steps)

    def observe(self, t: int, share: float | None, chosen_steps: Sequence[str] = ()) -> StopCause | None:
        """Why to stop after step `t`, or None. share: of the largest cluster, None where nothing was clustered."""
        agrees = share is not None and (share >= self.delta - SLACK if self.inclusive else share > self.delta + SLACK)
        self._agreed = agrees or (self.sticky and self._agreed)
        if t >= self.t_min and self._agreed:
            return "agreement"
        if self.identical_steps and t > self.t_min and chosen_steps and len(set(chosen_steps)) == 1:
            return "identical_steps"
        return None
