"""One deliberated step of phi-decoding (arXiv 2503.13288, Algorithm 1), without the model: from scores to new beams.

S  = surviving(s)                       # before foresight, see `phi_pruning`
F  = one continuation of each in S
A  = F - F_prev                         # advantage
E  = eligible candidates of S
C  = alignment(cluster(texts of E))     # where there is something to cluster
p  = joint(softmax(A / tau1), softmax(C / tau2)), else softmax(A / tau1)
M candidates drawn from p without replacement
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from strategies.search.boltzmann import log_softmax, softmax
from strategies.search.clustering import ClusteringImpossible, cluster_texts
from strategies.search.phi_profile import PhiProfile
from strategies.search.phi_pruning import largest_share
from strategies.search.phi_value import advantage, alignment, defined, eligible, joint_logprobs
from strategies.search.plackett_luce import draw_without_replacement


@dataclass(frozen=True, slots=True)
class ValuedPool:
    """The distribution over a pool of candidates. Indices count within the pool that was passed in.

    advantages: A per candidate, None where undefined. members: the candidates drawn from, ascending. logprobs: log p
    per member. labels: cluster per member; None where nothing was clustered, and then there is no alignment and no
    early stop.
    """

    advantages: tuple[float | None, ...]
    members: tuple[int, ...]
    logprobs: tuple[float, ...]
    labels: tuple[int, ...] | None

    @property
    def probabilities(self) -> list[float]:
        """p per member; they sum to 1."""
        return [math.exp(logprob) for logprob in self.logprobs]

    @property
    def share(self) -> float | None:
        """Share of the largest cluster, for in-depth pruning; None where nothing was clustered."""
        return None if self.labels is None else largest_share(self.labels)

    def draw(self, count: int, uniforms: Sequence[float]) -> list[int]:
        """min(count, members) distinct candidates in the order drawn. uniforms: one per candidate of the pool."""
        order = draw_without_replacement(self.logprobs, [uniforms[i] for i in self.members], count)
        return [self.members[i] for i in order]


def value_pool(
    advantages: Sequence[float | None],
    texts: Sequence[str],
    width: int,
    profile: PhiProfile,
    fallback_scores: Sequence[float | None] = (),
) -> ValuedPool:
    """The distribution over candidates with these advantages and foresight texts (also over completions, at the end).

    width: M. Nobody eligible, or without `profile.shrink` fewer than M, or nothing that can be clustered: see
    `unclustered_pool`, over everyone (with `profile.shrink`, over whoever is eligible).
    """
    pool = eligible(profile.eligibility, advantages, texts)
    if not pool or (not profile.shrink and len(pool) < width):
        return unclustered_pool(advantages, profile, fallback_scores)
    values = [a for a in (advantages[i] for i in pool) if defined(a)]
    try:
        labels = cluster_texts([texts[i] for i in pool], profile.clusters, profile.tokens, shrink=profile.shrink)
    except ClusteringImpossible:
        if not profile.shrink:
            return unclustered_pool(advantages, profile, fallback_scores)
        return ValuedPool(tuple(advantages), tuple(pool), tuple(log_softmax(values, profile.tau1)), None)
    pa, pc = softmax(values, profile.tau1), softmax(alignment(labels), profile.tau2)
    logprobs = joint_logprobs(pa, pc, profile.combine, profile.tau)
    return ValuedPool(tuple(advantages), tuple(pool), tuple(logprobs), tuple(labels))


def unclustered_pool(
    advantages: Sequence[float | None], profile: PhiProfile, fallback_scores: Sequence[float | None] = ()
) -> ValuedPool:
    """softmax(A / tau1) over everyone whose A is defined; if nobody's is, softmax(fallback / 0.1) over the fallback
    scores (the steps' own s), and without any score uniform over all. No labels, so no early stop."""
    for scores, tau in ((advantages, profile.tau1), (fallback_scores, profile.fill_tau)):
        known = [(index, score) for index, score in enumerate(scores) if defined(score)]
        if known:
            logprobs = log_softmax([score for _, score in known], tau)
            return ValuedPool(tuple(advantages), tuple(index for index, _ in known), tuple(logprobs), None)
    everyone = tuple(range(len(advantages)))
    return ValuedPool(tuple(advantages), everyone, tuple(log_softmax([0.0] * len(everyone), 1.0)), None)


@dataclass(frozen=True, slots=True)
class NewBeam:
    """A beam after the step: which beam it extends, by which candidate, and the F to compare the next step with.

    F is the parent's where the candidate's own is undefined: the outlook is then unknown, not changed.
    """

    parent: int
    candidate: int
    F: float


@dataclass(frozen=True, slots=True)
class StepChoice:
    """The outcome of a step; `beams` are in the order drawn, `pool` counts positions in S_t."""

    pool: ValuedPool
    beams: tuple[NewBeam, ...]


def choose_step(
    survivors: Sequence[int],
    s: Sequence[float | None],
    beam: Sequence[int],
    F: Sequence[float | None],
    texts: Sequence[str],
    F_prev: Sequence[float],
    width: int,
    profile: PhiProfile,
    uniforms: Sequence[float],
) -> StepChoice:
    """Draws the candidates that become beams.

    survivors: S_t, candidate numbers. s, beam: per candidate. F, texts, uniforms: per survivor, in the same order.
    F_prev: per beam. width: M less the beams that are finished.
    """
    parents = [beam[i] for i in survivors]
    advantages = advantage(F, parents, F_prev)
    pool = value_pool(advantages, texts, width, profile, [s[i] for i in survivors])
    beams = []
    for position in pool.draw(width, uniforms):
        f, parent = F[position], parents[position]
        beams.append(NewBeam(parent, survivors[position], f if defined(f) else F_prev[parent]))
    return StepChoice(pool, tuple(beams))
