"""The final choice of phi-decoding among the completions of its beams.

joint:     the step value once more, over completions, and one draw from it (the paper, Algorithm 1)
argmax:    the most likely of that distribution; a function of the completions alone
majority2: two clusters, and one draw by advantage within the larger (the authors' code, its index bug repaired:
           there, when the second cluster won, the drawn position was looked up in the first)
"""

import math
from collections.abc import Sequence

from strategies.search.boltzmann import log_softmax, softmax
from strategies.search.clustering import ClusteringImpossible, cluster_texts
from strategies.search.phi_profile import PhiProfile
from strategies.search.phi_step import ValuedPool, unclustered_pool, value_pool
from strategies.search.phi_value import defined, eligible

MAJORITY_TAU = 0.1


def larger_cluster(labels: Sequence[int], advantages: Sequence[float]) -> list[int]:
    """Members of the largest cluster, ascending; among equal ones that of the larger mean advantage, then the first."""
    clusters: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        clusters.setdefault(label, []).append(index)
    return max(
        clusters.values(), key=lambda members: (len(members), math.fsum(advantages[i] for i in members) / len(members))
    )


def majority_weights(
    labels: Sequence[int], advantages: Sequence[float], tau: float = MAJORITY_TAU
) -> tuple[list[int], list[float]]:
    """(indices, probabilities) of the larger cluster: softmax(A / tau) within it."""
    members = larger_cluster(labels, advantages)
    return members, softmax([advantages[i] for i in members], tau)


def final_pool(advantages: Sequence[float | None], texts: Sequence[str], profile: PhiProfile) -> ValuedPool:
    """The distribution that the final choice is drawn from.

    advantages: of each completion against the F of its beam; a beam that finished earlier brings the A it was accepted
    with. texts: the completions; if some finished earlier, every path after the common token prefix, so that all texts
    have the same scope (see `committed_prefix`).
    """
    width = len(advantages)
    if profile.final != "majority2":
        return value_pool(advantages, texts, width, profile)
    pool = eligible(profile.eligibility, advantages, texts)
    values = [a for a in (advantages[i] for i in pool) if defined(a)]
    try:
        labels = cluster_texts([texts[i] for i in pool], 2, profile.tokens, shrink=profile.shrink)
    except ClusteringImpossible:
        return unclustered_pool(advantages, profile)
    members = larger_cluster(labels, values)
    logprobs = log_softmax([values[i] for i in members], MAJORITY_TAU)
    chosen = tuple(pool[i] for i in members)
    return ValuedPool(tuple(advantages), chosen, tuple(logprobs), tuple(labels[i] for i in members))


def choose_final(
    advantages: Sequence[float | None], texts: Sequence[str], profile: PhiProfile, uniforms: Sequence[float]
) -> int:
    """Index of the completion to return. uniforms: one per completion. Raises ValueError for no completions."""
    if not advantages:
        raise ValueError("there is no completion to choose from")
    pool = final_pool(advantages, texts, profile)
    if profile.final == "argmax":
        best = max(range(len(pool.members)), key=lambda i: round(pool.logprobs[i], 9))
        return pool.members[best]
    return pool.draw(1, uniforms)[0]


def ranking(advantages: Sequence[float | None], texts: Sequence[str], profile: PhiProfile, chosen: int) -> list[int]:
    """All completions, the chosen one first, then by falling probability (ties and the rest by index): for n > 1."""
    pool = final_pool(advantages, texts, profile)
    weight = dict(zip(pool.members, pool.logprobs, strict=True))
    return sorted(range(len(advantages)), key=lambda i: (i != chosen, -round(weight.get(i, -math.inf), 9), i))
