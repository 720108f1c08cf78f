"""A tree of draft tokens, built level by level, with what verification needs of how it was drawn."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


class DraftTree:
    """Draft tokens below the last committed token.

    Node 0 is the root: the last committed token, not a draft. Nodes are numbered level by level, so a parent's index is
    smaller than its children's.

    tokens: token of each node. parents: parent of each node, -1 for the root. depths: 0 for the root.
    tries: for each node, its children in the order in which they were drawn, which is the order in which they must be
        tried; with replacement a child stands there once for every time that it was drawn.
    draft_logprobs: for each expanded node the row [V] its children were drawn from, up to an additive constant.
    logprobs: log-probability of the path under the draft. perturbed: the same plus the path's Gumbel noise (stochastic
        beam search only, else 0). Neither is used by verification.
    """

    def __init__(self, root_token: int, ends: Collection[int] = (), *, replacement: bool = False) -> None:
        """ends: tokens that end the sequence; their nodes are never expanded.
        replacement: whether a node's children are drawn with replacement.
        """
        self.tokens: list[int] = [root_token]
        self.parents: list[int] = [-1]
        self.depths: list[int] = [0]
        self.tries: list[list[int]] = [[]]
        self.logprobs: list[float] = [0.0]
        self.perturbed: list[float] = [0.0]
        self.draft_logprobs: dict[int, Tensor] = {}
        self.ends = frozenset(ends)
        self.replacement = replacement

    def __len__(self) -> int:
        """Number of draft nodes; the root is not counted."""
        return len(self.tokens) - 1

    @property
    def depth(self) -> int:
        """Depth of the deepest node."""
        return self.depths[-1]

    def is_end(self, node: int) -> bool:
        """Whether the node is a draft token that ends the sequence."""
        return node > 0 and self.tokens[node] in self.ends

    def frontier(self) -> list[int]:
        """Nodes of the deepest level that can be expanded: what the next draft forward must compute."""
        return [node for node in self.level(self.depth) if node not in self.draft_logprobs and not self.is_end(node)]

    def level(self, depth: int) -> list[int]:
        """Nodes of one depth, in index order."""
        return [node for node, at in enumerate(self.depths) if at == depth]

    def add(self, parent: int, token: int, logprob: float = 0.0, perturbed: float = 0.0) -> int:
        """Appends a draw that is tried after its siblings; returns the index of its node.

        A token drawn again, with replacement, shares the node of its first draw and is one more try.
        logprob: the token's own draft log-probability. Raises ValueError for a token drawn again without replacement,
        and if a deeper level was already begun.
        """
        for node in self.tries[parent]:
            if self.tokens[node] == token:
                if not self.replacement:
                    raise ValueError(f"token {token} was already drawn at node {parent}")
                self.tries[parent].append(node)
                return node
        depth = self.depths[parent] + 1
        if depth < self.depth:
            raise ValueError(f"a node of depth {depth} can't follow one of depth {self.depth}")
        node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(depth)
        self.tries.append([])
        self.logprobs.append(self.logprobs[parent] + logprob)
        self.perturbed.append(perturbed)
        self.tries[parent].append(node)
        return node

    def multiplicity(self, node: int) -> int:
        """How often the node was drawn; 1 for the root."""
        return 1 if node == 0 else self.tries[self.parents[node]].count(node)

    def path(self, node: int) -> list[int]:
        """Nodes from below the root down to `node`; empty for the root."""
        nodes = []
        while node > 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def path_tokens(self, node: int) -> list[int]:
        """Draft tokens from below the root down to `node`: the context that penalties and grammars see there."""
        return [self.tokens[n] for n in self.path(node)]

    def ancestor_mask(self) -> Tensor:
        """bool [N+1, N+1]: entry (i, j) says whether node i sees node j, that is j is i or one of its ancestors."""
        mask = torch.eye(len(self.tokens), dtype=torch.bool)
        for node in range(1, len(self.tokens)):
            mask[node] |= mask[self.parents[node]]
        return mask

    def truncated(self, budget: int) -> "DraftTree":
        """The tree with at most `budget` draft nodes, still exact to verify.

        Which draws are kept may depend on their rank and on other families, never on which token they are. So families
        drawn without replacement keep a prefix of the tree's index order; with replacement, families keep a prefix of
        their draws that would fit even if all of them differed.
        """
        kept = DraftTree(self.tokens[0], self.ends, replacement=self.replacement)
        new = {0: 0}
        for level in range(self.depth + 1):
            families = [node for node in self.level(level) if node in new]
            for parent, child in self._draws(families, budget - len(kept)):
                new[child] = kept.add(new[parent], self.tokens[child], perturbed=self.perturbed[child])
                kept.logprobs[new[child]] = self.logprobs[child]
        for node, row in self.draft_logprobs.items():
            if node in new:
                kept.draft_logprobs[new[node]] = row
        return kept

    def _draws(self, families: Sequence[int], room: int) -> list[tuple[int, int]]:
        """(parent, child) of the draws that one level keeps when `room` more nodes fit."""
        if not self.replacement:
            children = sorted(child for parent in families for child in self.tries[parent])
            return [(self.parents[child], child) for child in children[:room]]
        kept: list[tuple[int, int]] = []
        for parent in families:
            free = room - len({child for _, child in kept})
            kept += [(parent, child) for child in self.tries[parent][:free]]
        return kept
