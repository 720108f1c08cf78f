"""The step value of phi-decoding (arXiv 2503.13288): advantage, alignment, and both joined into a distribution.

    A_i = F_i - F_prev(beam of i)                       eq. 5: how much this step improves the outlook
    C_i = |cluster of i| / |clustered candidates|       eq. 6: how much of the foresight agrees with it
    p   = joint(softmax(A / tau1), softmax(C / tau2))   eqs. 7 and 3, Algorithm 1

F_i (eq. 4) is the mean log-probability of one sampled continuation to the end of the answer; undefined values are None.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeGuard

from strategies.search.boltzmann import log_softmax
from strategies.search.phi_profile import Combination, Eligibility


def defined(value: float | None) -> TypeGuard[float]:
    """Whether a score can be computed with: not None, not NaN, not infinite."""
    return value is not None and math.isfinite(value)


def advantage(F: Sequence[float | None], beam: Sequence[int], F_prev: Sequence[float]) -> list[float | None]:
    """A_i = F_i - F_prev[beam_i] (eq. 5); None where F_i is undefined.

    F, beam: per candidate. F_prev: per beam, the F of the candidate that the beam accepted last, 0 before the first
    step: there A = F, never positive.
    """
    return [f - F_prev[b] if defined(f) else None for f, b in zip(F, beam, strict=True)]


def alignment(labels: Sequence[int]) -> list[float]:
    """C_i (eq. 6): the share of the clustered candidates, pruned and ineligible ones not counted, in i's cluster."""
    sizes = Counter(labels)
    return [sizes[label] / len(labels) for label in labels]


def joint(pa: Sequence[float], pc: Sequence[float], combine: Combination, tau: float) -> list[float]:
    """The sampling distribution from R = pa + pc, the two softmaxes (eq. 7).

    "mean" is R / 2, as in the authors' code; "boltzmann" is softmax(R / tau), as in the paper (eq. 3), which is far
    flatter since R only spans 0..2.
    """
    return [math.exp(logprob) for logprob in joint_logprobs(pa, pc, combine, tau)]


def joint_logprobs(pa: Sequence[float], pc: Sequence[float], combine: Combination, tau: float) -> list[float]:
    """The logarithms of `joint`, which stay in order where probabilities underflow (a cold tau); -inf for 0."""
    R = [a + c for a, c in zip(pa, pc, strict=True)]
    if combine == "boltzmann":
        return log_softmax(R, tau)
    return [math.log(r / 2) if r > 0 else -math.inf for r in R]


def eligible(rule: Eligibility, advantages: Sequence[float | None], texts: Sequence[str]) -> list[int]:
    """Indices of the candidates that are clustered and drawn from; an undefined advantage is never eligible.

    "all": the paper. "nonblank": those whose foresight text is not blank. "positive": of these, those with A > 0,
    which is nobody at the first step.
    """
    chosen = []
    for index, (a, text) in enumerate(zip(advantages, texts, strict=True)):
        if defined(a) and (rule == "all" or (text.strip() and (rule == "nonblank" or a > 0))):
            chosen.append(index)
    return chosen


def step_value_accuracy(values: Sequence[float], outcomes: Sequence[float]) -> float:
    """1 - mean squared difference between the value and the outcome distribution over candidates."""
    return 1.0 - math.fsum((v - o) ** 2 for v, o in zip(values, outcomes, strict=True)) / len(values)
