"""Ordinary speculative sampling: a chain of draft tokens (Leviathan et al. 2023; Chen et al. 2023).

A draft token x ~ p is accepted with probability min(1, q(x) / p(x)); the first one refused is replaced by a draw from
norm([q - p]_+), and the rest of the chain is dropped.
"""

from dataclasses import dataclass

from torch import Tensor

from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.multi_draft import draw_children
from strategies.speculative.noise import Noise
from strategies.speculative.rejection import Trials, acceptance_probability, probabilities, residual_distribution


def speculative_sampling(
    draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
) -> Trials:
    """Rule for one child per node; see `AcceptanceRule`. tokens: int64 [R, 1], none of them padding."""
    if draft_logprobs is None or tokens.shape[1] != 1:
        raise ValueError("speculative sampling needs the draft's log-probabilities and one token per node")
    p = probabilities(draft_logprobs)
    accept = acceptance_probability(p, target_probs, tokens[:, 0])[:, None]
    if uniforms is not None and bool((uniforms < accept).all()):
        return Trials(accept, target_probs)
    return Trials(accept, residual_distribution(p, target_probs))


@dataclass(frozen=True, slots=True)
class Chain:
    """One path of `length` draft tokens."""

    length: int

    def new_tree(self, root_token: int, ends: frozenset[int] = frozenset()) -> DraftTree:
        """An empty tree to draft into."""
        return DraftTree(root_token, ends)

    def propose(self, tree: DraftTree, logprobs: Tensor, noise: Noise | None) -> None:
        """Appends one token; see `Method.propose`."""
        draw_children(tree, logprobs, 1, noise)

    def rule(
        self, draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
    ) -> Trials:
        """Speculative sampling; see `AcceptanceRule`."""
        return speculative_sampling(draft_logprobs, target_probs, tokens, uniforms)
