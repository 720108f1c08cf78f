"""Draws without replacement in proportion to p (the Plackett-Luce law), by Gumbel-top-k.

The items with the largest log p_i + g_i, g_i standard Gumbel, in decreasing order, are successive draws without
replacement (Vieira 2014; Kool et al. 2019). One uniform per item, passed in, decides everything.
"""

import math
from collections.abc import Sequence
from functools import cache


def gumbel_keys(logprobs: Sequence[float], uniforms: Sequence[float]) -> list[float]:
    """log p_i - log(-log u_i); -inf where p_i is 0.

    logprobs: up to a constant; logarithms, so that items keep their order where probabilities would underflow.
    uniforms: one per item, in the open interval (0, 1). Raises ValueError otherwise, or if the lengths differ.
    """
    keys = []
    for logprob, u in zip(logprobs, uniforms, strict=True):
        if not 0.0 < u < 1.0:
            raise ValueError(f"a uniform must lie in (0, 1), not {u}")
        if not logprob < math.inf:
            raise ValueError(f"a log-probability must be a number below infinity, not {logprob}")
        keys.append(logprob - math.log(-math.log(u)))
    return keys


def draw_without_replacement(logprobs: Sequence[float], uniforms: Sequence[float], count: int) -> list[int]:
    """min(count, n) distinct indices in the order drawn; items of probability 0 only after all others, by index."""
    keys = gumbel_keys(logprobs, uniforms)
    order = sorted(range(len(keys)), key=lambda i: -keys[i])
    return order[: max(count, 0)]


def sequence_probability(probabilities: Sequence[float], sequence: Sequence[int]) -> float:
    """The probability that the first draws are exactly `sequence`, in this order."""
    left = math.fsum(probabilities)
    probability = 1.0
    for position, index in enumerate(sequence):
        if index in sequence[:position] or probabilities[index] <= 0.0:
            return 0.0
        probability *= probabilities[index] / left
        left = math.fsum(p for i, p in enumerate(probabilities) if i not in sequence[: position + 1])
    return probability


def inclusion_probabilities(probabilities: Sequence[float], count: int) -> list[float]:
    """The probability that each item is among the first `count` draws; exact, by recursion over subsets (n <= 20).

    The entries sum to min(count, number of items with p > 0). Raises ValueError for more than 20 items.
    """
    n = len(probabilities)
    if n > 20:
        raise ValueError("exact inclusion probabilities are for at most 20 items")

    @cache
    def included(drawn: int, draws: int) -> tuple[float, ...]:
        rest = [i for i in range(n) if not drawn >> i & 1 and probabilities[i] > 0.0]
        if draws == 0 or not rest:
            return tuple(float(drawn >> i & 1) for i in range(n))
        mass = math.fsum(probabilities[i] for i in rest)
        branches = [(probabilities[i] / mass, included(drawn | 1 << i, draws - 1)) for i in rest]
        return tuple(math.fsum(weight * branch[i] for weight, branch in branches) for i in range(n))

    return list(included(0, count))
