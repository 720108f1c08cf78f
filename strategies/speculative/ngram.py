"""Prompt lookup: the draft is what followed the sequence's last tokens where they occurred before (Saxena 2023).

There is no draft distribution: the proposal is certain, so a token x is accepted with probability q(x), and what is
emitted instead is drawn from q without x. That is target matching, exact whatever is proposed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.noise import Noise
from strategies.speculative.rejection import Trials, target_matching


def longest_match(tokens: NDArray[np.int32], max_ngram: int, min_ngram: int) -> tuple[int, int]:
    """(size, end) of the latest earlier occurrence of the longest suffix of max_ngram down to min_ngram tokens: it ends
    before tokens[end]. (0, 0) if there is none. tokens: int [n]."""
    count = len(tokens)
    for size in range(min(max_ngram, count - 1), min_ngram - 1, -1):
        suffix = tokens[count - size :]
        starts = np.flatnonzero(tokens[: count - size] == suffix[0])
        for offset in range(1, size):
            starts = starts[tokens[starts + offset] == suffix[offset]]
        if len(starts):
            return size, int(starts[-1]) + size
    return 0, 0


def continuation(tokens: NDArray[np.int32], max_ngram: int, min_ngram: int, length: int) -> list[int]:
    """`length` tokens that followed the latest earlier occurrence of the longest suffix of max_ngram down to min_ngram
    tokens; empty if there is none. tokens: int [n], prompt and output.

    Where they run into the end of the text they go on from where they began: a text that repeats itself every few
    tokens is guessed to go on so, and its period would else be the longest draft.
    """
    size, begin = longest_match(tokens, max_ngram, min_ngram)
    period = len(tokens) - begin
    return [int(tokens[begin + i % period]) for i in range(length)] if size else []


@dataclass(frozen=True, slots=True)
class PromptLookup:
    """A chain of `length` tokens from the context, fewer if they end the sequence."""

    max_ngram: int
    min_ngram: int
    length: int

    def new_tree(self, root_token: int, ends: frozenset[int] = frozenset()) -> DraftTree:
        """An empty tree to draft into."""
        return DraftTree(root_token, ends)

    def draft(self, tree: DraftTree, tokens: NDArray[np.int32]) -> None:
        """Appends the whole chain, up to the first token that ends the sequence."""
        node = 0
        for token in continuation(tokens, self.max_ngram, self.min_ngram, self.length):
            node = tree.add(node, token)
            if tree.is_end(node):
                break

    def propose(self, tree: DraftTree, logprobs: Tensor, noise: Noise | None) -> None:
        """There is no draft to draw from. Raises TypeError."""
        raise TypeError("prompt lookup drafts from the context, not from a distribution")

    def rule(
        self, draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
    ) -> Trials:
        """Target matching; see `AcceptanceRule`."""
        return target_matching(draft_logprobs, target_probs, tokens, uniforms)
