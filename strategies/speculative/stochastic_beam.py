"""Stochastic beam search: the W most likely of all Gumbel-perturbed sequences, top down, and RSD-S built on it.

Kool, van Hoof, Welling 2019, "Stochastic Beams and Where to Find Them"; as a draft tree: Jeon et al. 2024 (RSD-S,
arXiv 2402.14160). A beam has phi, its log-probability, and G, its perturbed log-probability. Its children's
perturbed log-probabilities are Gumbels conditioned on having G as their maximum:

    G~_x = phi_x + Gumbel,  Z = max_x G~_x,  G_x = -log(exp(-G) - exp(-Z) + exp(-G~_x))

At temperature 0 it becomes a beam search by the gaps to the arg-max: (log p(x) - max log p) / T keeps, as T goes to 0,
the order of the sums of the gaps, and the arg-max path, whose gaps are 0, is always the first beam.

A level keeps the W largest G_x over all beams. Whether a node's next child is kept depends on Gumbel values and on
other beams, not on which token it is, so the children that are kept can be verified as draws without replacement,
in order of decreasing G.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.gumbel_top_k import draft_gumbel
from strategies.speculative.noise import Noise
from strategies.speculative.rejection import Trials, without_replacement
from strategies.speculative.support import first, on_support


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, accurate at both ends (Maechler 2012); -inf at 0."""
    near = torch.log(-torch.expm1(x))
    far = torch.log1p(-torch.exp(x))
    return torch.where(x > -math.log(2.0), near, far)


def condition_on_maximum(perturbed: Tensor, maximum: Tensor) -> Tensor:
    """Perturbed log-probabilities G~ [..., V] shifted so that their maximum is `maximum` [...]: the truncated Gumbels.

    The stable form of -log(exp(-G) - exp(-Z) + exp(-G~)): with v = G - G~ + log1mexp(G~ - Z),
    it is G - max(0, v) - log1p(exp(-|v|)) (Kool et al. 2019, appendix B.3). Order is kept, -inf stays -inf, and the
    largest gets `maximum` exactly.
    """
    largest = perturbed.amax(-1, keepdim=True)
    outside = perturbed == -torch.inf
    gap = torch.where(outside, -torch.inf, perturbed - largest)  # -inf minus -inf would be NaN
    v = maximum[..., None] - perturbed + log1mexp(gap)
    shifted = maximum[..., None] - v.clamp(min=0.0) - torch.log1p(torch.exp(-v.abs()))
    shifted = torch.where(perturbed == largest, maximum[..., None], shifted)
    return shifted.masked_fill(outside, -torch.inf)


def expand_beams(
    logprobs: Tensor, phi: Tensor, perturbed: Tensor, gumbel: Tensor | None, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One level of stochastic beam search.

    logprobs: normalised float64 [..., B, V], the draft at each of B beams. phi, perturbed: float64 [..., B].
    gumbel: float64 [..., B, V]; None is the limit of temperature 0, where G is the sum of the path's gaps to the
    arg-max, 0 for the arg-max path. Returns (beam, token, phi, G) of the level's nodes, [..., min(width, B * V)] each,
    by decreasing G (among equals the earlier beam, then the lower token at temperature 0); beam and token are int64,
    and -1 (with G = -inf) where there are no more.
    """
    kept = min(width, logprobs.shape[-1])
    path = phi[..., None] + logprobs
    if gumbel is None:
        gaps = (logprobs - logprobs.amax(-1, keepdim=True)).masked_fill(logprobs == -torch.inf, -torch.inf)
        noisy, tokens = first(perturbed[..., None] + gaps, kept)
        best, index = first(noisy.flatten(-2), width)
    else:
        # The map to G increases with G~, so a beam's W best survive it.
        noisy, tokens = (path + gumbel).topk(kept, dim=-1, sorted=True)
        candidates = condition_on_maximum(noisy, perturbed).flatten(-2)
        best, index = candidates.topk(min(width, candidates.shape[-1]), dim=-1, sorted=True)
    none = best == -torch.inf
    beam = torch.div(index, kept, rounding_mode="floor")
    token = tokens.flatten(-2).gather(-1, index)
    path_logprob = path.gather(-1, tokens).flatten(-2).gather(-1, index)
    return beam.masked_fill(none, -1), token.masked_fill(none, -1), path_logprob, best


@dataclass(frozen=True, slots=True)
class StochasticBeam:
    """RSD-S: `length` levels of at most `width` nodes each."""

    width: int
    length: int

    def new_tree(self, root_token: int, ends: frozenset[int] = frozenset()) -> DraftTree:
        """An empty tree to draft into."""
        return DraftTree(root_token, ends)

    def propose(self, tree: DraftTree, logprobs: Tensor, noise: Noise | None) -> None:
        """Appends a level, by decreasing G. logprobs: [len(frontier), V]; see `Method.propose`.

        An ended beam frees its place. Without noise it is deterministic, and the draft's arg-max path is in it.
        """
        nodes = tree.frontier()
        columns, rows = on_support(logprobs)
        phi = rows.new_tensor([tree.logprobs[node] for node in nodes])
        perturbed = rows.new_tensor([tree.perturbed[node] for node in nodes])
        gumbel = None if noise is None else draft_gumbel(noise, nodes, columns)
        beams, index, path, scores = expand_beams(rows, phi, perturbed, gumbel, self.width)
        tokens = columns[index.clamp(min=0)]
        for node, row in zip(nodes, logprobs, strict=True):
            tree.draft_logprobs[node] = row
        for beam, token, total, score in zip(
            beams.tolist(), tokens.tolist(), path.tolist(), scores.tolist(), strict=True
        ):
            if beam >= 0:
                parent = nodes[beam]
                tree.add(parent, token, total - tree.logprobs[parent], score)

    def rule(
        self, draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
    ) -> Trials:
        """Recursive rejection sampling without replacement; see `AcceptanceRule`."""
        return without_replacement(draft_logprobs, target_probs, tokens, uniforms)
