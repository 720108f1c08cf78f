"""Several i.i.d. drafts per node, verified in rounds: the tree of SpecInfer (Miao et al. 2023) with merged duplicates.

Every draw at level l is continued by branching[l + 1] draws of its own; (K, 1, 1, ...) is K independent paths. Equal
draws share a node, hence the target computes them once, but each stays a try of its own.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.randomness import Purpose
from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.noise import Noise, categorical
from strategies.speculative.rejection import Trials, with_replacement
from strategies.speculative.support import on_support


def draw_children(tree: DraftTree, logprobs: Tensor, branching: int, noise: Noise | None) -> None:
    """Appends a level of i.i.d. draws: `branching` for every time that a node of the frontier was drawn itself.

    logprobs: [len(frontier), V]. Without noise (temperature 0) all draws are the arg-max.
    """
    nodes = tree.frontier()
    counts = [branching * tree.multiplicity(node) for node in nodes]
    columns, rows = on_support(logprobs)
    if noise is None:
        index = rows.argmax(-1, keepdim=True).expand(-1, max(counts))
    else:
        tries = torch.arange(max(counts), device=logprobs.device)
        index = categorical(rows.exp(), noise.uniforms(Purpose.DRAFT, nodes, tries))
    drawn, scores = columns[index], rows.gather(-1, index)
    for node, row, count, tokens, values in zip(nodes, logprobs, counts, drawn.tolist(), scores.tolist(), strict=True):
        tree.draft_logprobs[node] = row
        for token, logprob in zip(tokens[:count], values[:count], strict=True):
            if logprob > -math.inf:  # else the row has no support, and the node no children
                tree.add(node, token, logprob)


@dataclass(frozen=True, slots=True)
class MultiDraft:
    """i.i.d. drafts with recursive rejection sampling with replacement."""

    branching: tuple[int, ...]

    @property
    def length(self) -> int:
        """Number of levels."""
        return len(self.branching)

    def new_tree(self, root_token: int, ends: frozenset[int] = frozenset()) -> DraftTree:
        """An empty tree to draft into."""
        return DraftTree(root_token, ends, replacement=True)

    def propose(self, tree: DraftTree, logprobs: Tensor, noise: Noise | None) -> None:
        """Appends a level; see `Method.propose`."""
        draw_children(tree, logprobs, self.branching[tree.depth], noise)

    def rule(
        self, draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
    ) -> Trials:
        """Recursive rejection sampling with replacement; see `AcceptanceRule`."""
        return with_replacement(draft_logprobs, target_probs, tokens, uniforms)
