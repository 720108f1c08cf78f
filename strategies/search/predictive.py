"""Predictive decoding: choose a step by the likelihood of where it leads (Ma et al. 2024, "Non-myopic generation").

phi:      as phi-decoding's authors run it as a baseline: value = mean log-probability over step and foresight together,
          one candidate drawn from softmax(value / 0.1)
original: weight exp(value / 0.05) of a rollout, value = geometric-mean probability of its first 6 lines; rollouts with
          the same first line pool their weights, and old ones that begin with the chosen path stay in the pool
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from strategies.search.boltzmann import log_softmax, softmax
from strategies.search.phi_value import defined
from strategies.search.plackett_luce import draw_without_replacement

PHI_TAU = 0.1
ORIGINAL_TAU = 0.05


def predictive_value(step_logprob: float, step_tokens: int, ahead_logprob: float, ahead_tokens: int) -> float | None:
    """(sum over step + sum over foresight) / (tokens of both); None (undefined) for no tokens at all."""
    tokens = step_tokens + ahead_tokens
    return (step_logprob + ahead_logprob) / tokens if tokens > 0 else None


def predictive_choice(values: Sequence[float | None], uniforms: Sequence[float], tau: float = PHI_TAU) -> int:
    """One candidate from softmax(value / tau) over the defined values (uniform over all if none is).

    uniforms: one per candidate, in (0, 1). Raises ValueError for no candidates.
    """
    if not values:
        raise ValueError("there is no candidate to choose from")
    known = [(i, value) for i, value in enumerate(values) if defined(value)] or [(i, 0.0) for i in range(len(values))]
    weights = log_softmax([value for _, value in known], tau)
    return known[draw_without_replacement(weights, [uniforms[i] for i, _ in known], 1)[0]][0]


@dataclass(frozen=True, slots=True)
class Rollout:
    """A whole sampled solution. lines: its steps; logprob, tokens: of the lines that are looked ahead to."""

    lines: tuple[str, ...]
    logprob: float
    tokens: int

    @property
    def value(self) -> float:
        """Geometric-mean probability; 0 for no tokens."""
        return math.exp(self.logprob / self.tokens) if self.tokens > 0 else 0.0


def first_line_distribution(
    rollouts: Sequence[Rollout], path: Sequence[str], tau: float = ORIGINAL_TAU
) -> tuple[list[str], list[float]]:
    """(lines that may follow `path`, in order of appearance, and their probabilities): weights pooled per line.

    Rollouts that do not begin with `path`, or end there, are left out.
    """
    pool = [rollout for rollout in recycled(rollouts, path) if len(rollout.lines) > len(path)]
    pooled: dict[str, float] = {}
    for rollout, weight in zip(pool, softmax([rollout.value for rollout in pool], tau), strict=True):
        line = rollout.lines[len(path)]
        pooled[line] = pooled.get(line, 0.0) + weight
    return list(pooled), list(pooled.values())


def recycled(rollouts: Iterable[Rollout], path: Sequence[str]) -> list[Rollout]:
    """The rollouts that begin with the chosen path: they go on counting at the next step."""
    return [rollout for rollout in rollouts if rollout.lines[: len(path)] == tuple(path)]
