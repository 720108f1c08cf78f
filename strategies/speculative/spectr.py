"""SpecTr's k-SEQ: i.i.d. drafts tried in sequence against a target scaled down by rho (Sun et al. 2023, 2310.15141).

With beta(rho) = sum_x min(p(x), q(x) / rho), accept the first X_i with U_i < q(X_i) / (rho p(X_i)); if there is none,
emit a token of law proportional to  q - min(p, q / rho) (1 - (1 - beta)^K) / beta.  Any rho in [1, K] with
rho beta >= 1 - (1 - beta)^K makes the emitted token's law q; the smallest accepts most, 1 - (1 - beta)^K.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.multi_draft import draw_children
from strategies.speculative.noise import Noise
from strategies.speculative.rejection import NEGLIGIBLE_MASS, Trials, probabilities

# Halvings of [1, K]: beyond them float64 has no more numbers in between.
BISECTIONS = 55


def overlap(draft_probs: Tensor, target_probs: Tensor, rho: Tensor) -> Tensor:
    """beta(rho) = sum_x min(p(x), q(x) / rho), float64 [R]. p, q: float64 [R, V]. rho: float64 [R]."""
    return torch.minimum(draft_probs, target_probs / rho[:, None]).sum(-1)


def any_accepted(beta: Tensor, drafts: Tensor) -> Tensor:
    """1 - (1 - beta)^K, accurate for small beta. beta: float64 [R]; drafts: K, [R]."""
    return -torch.expm1(drafts * torch.log1p(-beta.clamp(max=1.0)))


def optimal_rho(draft_probs: Tensor, target_probs: Tensor, drafts: Tensor) -> Tensor:
    """The smallest rho in [1, K] with rho beta >= 1 - (1 - beta)^K, float64 [R], from above.

    p, q: float64 [R, V]. drafts: K, int64 [R].
    """
    low = torch.ones(len(drafts), dtype=torch.float64, device=drafts.device)
    high = drafts.clamp(min=1).to(torch.float64)  # feasible: K beta >= 1 - (1 - beta)^K for every beta

    def feasible(rho: Tensor) -> Tensor:
        beta = overlap(draft_probs, target_probs, rho)
        return rho * beta >= any_accepted(beta, drafts)

    high = torch.where(feasible(low), low, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        good = feasible(middle)
        low, high = torch.where(good, low, middle), torch.where(good, middle, high)
    return high


def k_seq(
    draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
) -> Trials:
    """k-SEQ selection, with K the number of tries of the row; see `AcceptanceRule`."""
    if draft_logprobs is None:
        raise ValueError("k-SEQ needs the draft's log-probabilities")
    p, q = probabilities(draft_logprobs), target_probs
    drafts = (tokens >= 0).sum(-1)
    rho = optimal_rho(p, q, drafts)
    index = tokens.clamp(min=0)
    scaled = q / rho[:, None]
    valid = (tokens >= 0) & (q.gather(-1, index) > 0)
    accept = torch.where(valid, (scaled.gather(-1, index) / p.gather(-1, index)).clamp(max=1.0), 0.0)
    if uniforms is not None and bool((uniforms < accept).any(-1).all()):
        return Trials(accept, q)
    accepted = torch.minimum(p, scaled)
    beta = accepted.sum(-1)
    factor = torch.where(beta > 0, any_accepted(beta, drafts) / beta, 0.0)  # no overlap: nothing was accepted
    residual = (q - accepted * factor[:, None]).clamp_(min=0.0)
    mass = residual.sum(-1, keepdim=True)
    return Trials(accept, torch.where(mass > NEGLIGIBLE_MASS, residual / mass, q))


@dataclass(frozen=True, slots=True)
class SpecTr:
    """`width` i.i.d. paths of `length` tokens, accepted by k-SEQ with K the number of paths through the node."""

    width: int
    length: int

    def new_tree(self, root_token: int, ends: frozenset[int] = frozenset()) -> DraftTree:
        """An empty tree to draft into."""
        return DraftTree(root_token, ends, replacement=True)

    def propose(self, tree: DraftTree, logprobs: Tensor, noise: Noise | None) -> None:
        """Appends a level; see `Method.propose`."""
        draw_children(tree, logprobs, self.width if tree.depth == 0 else 1, noise)

    def rule(
        self, draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
    ) -> Trials:
        """k-SEQ; see `AcceptanceRule`."""
        return k_seq(draft_logprobs, target_probs, tokens, uniforms)
