"""Gumbel-top-k: k tokens without replacement in one pass, and RSD-C, the draft tree of constant branching built on it.

The k largest of log p(x) + g_x, with g_x i.i.d. standard Gumbel, in decreasing order, are k draws without replacement
from p in the order drawn (Kool et al. 2019; Vieira 2014). RSD-C (Jeon et al. 2024, arXiv 2402.14160) draws b_l children
so at every node of level l.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.randomness import Purpose
from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.noise import Noise
from strategies.speculative.rejection import Trials, without_replacement
from strategies.speculative.support import first, on_support


def draft_gumbel(noise: Noise, nodes: Sequence[int], tokens: Tensor) -> Tensor:
    """Gumbel noise for the children of `nodes`, float64 [len(nodes), C], for the tokens int64 [C] only.

    A token's noise does not depend on which others are asked for.
    """
    return -torch.log(-torch.log(noise.uniforms(Purpose.DRAFT, nodes, tokens)))


def gumbel_top_k(logprobs: Tensor, gumbel: Tensor, k: int) -> Tensor:
    """Tokens drawn without replacement, int64 [..., min(k, V)] in the order drawn; -1 where the support is exhausted.

    logprobs: [..., V], up to a constant per row, -inf outside the support. gumbel: float64 [..., V].
    """
    perturbed = logprobs.to(torch.float64) + gumbel
    scores, tokens = perturbed.topk(min(k, perturbed.shape[-1]), dim=-1, sorted=True)
    return tokens.masked_fill(scores == -torch.inf, -1)


@dataclass(frozen=True, slots=True)
class ConstantBranching:
    """RSD-C: at every node of level l, branching[l] children drawn without replacement."""

    branching: tuple[int, ...]

    @property
    def length(self) -> int:
        """Number of levels."""
        return len(self.branching)

    def new_tree(self, root_token: int, ends: frozenset[int] = frozenset()) -> DraftTree:
        """An empty tree to draft into."""
        return DraftTree(root_token, ends)

    def propose(self, tree: DraftTree, logprobs: Tensor, noise: Noise | None) -> None:
        """Appends a level: children of `tree.frontier()`. logprobs: [len(frontier), V]; see `Method.propose`."""
        nodes = tree.frontier()
        columns, rows = on_support(logprobs)
        count = self.branching[tree.depth]
        if noise is None:
            scores, drawn = first(rows, count)
            drawn = drawn.masked_fill(scores == -torch.inf, -1)
        else:
            drawn = gumbel_top_k(rows, draft_gumbel(noise, nodes, columns), count)
        index = drawn.clamp(min=0)
        tokens = torch.where(drawn >= 0, columns[index], -1)
        scores = rows.gather(-1, index)
        for node, row, family, values in zip(nodes, logprobs, tokens.tolist(), scores.tolist(), strict=True):
            tree.draft_logprobs[node] = row
            for token, logprob in zip(family, values, strict=True):
                if token >= 0:
                    tree.add(node, token, logprob)

    def rule(
        self, draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
    ) -> Trials:
        """Recursive rejection sampling without replacement; see `AcceptanceRule`."""
        return without_replacement(draft_logprobs, target_probs, tokens, uniforms)
