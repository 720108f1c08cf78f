"""Coupled drafting: draft and target are sampled with the same Gumbel noise, so speculation changes no seeded result.

Plain decoding takes the token of largest log q(x) + g_x. A draft that ranks log p(x) + g_x with the very same noise
proposes that token often, and it is accepted if and only if it is the one that plain decoding would have drawn. The
output is plain decoding's, token for token; what it costs is that a likely but different draft is never accepted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from strategies.randomness import Purpose, Stream, signed64, uniform
from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.verify import Verdict, follow


class CoupledNoise:
    """The noise with which plain decoding samples, at every node of a draft tree. Implements `Noise`."""

    def __init__(self, stream: Stream, committed: int, tree: DraftTree) -> None:
        """stream: of the request's samples. committed: tokens before the first one that the tree drafts."""
        self._stream, self._committed, self._tree = stream, committed, tree

    def uniforms(self, purpose: Purpose, nodes: Sequence[int], index: Tensor) -> Tensor:
        """See `Noise.uniforms`: what keys the sample after each node, whatever the purpose."""
        positions = [self._committed + self._tree.depths[node] for node in nodes]
        keys = torch.tensor([signed64(self._stream.key(position)) for position in positions], device=index.device)
        return uniform(keys, index)


def verify_by_samples(tree: DraftTree, samples: Sequence[int]) -> Verdict:
    """The verdict when `samples[node]` is the token that plain decoding draws after each node."""
    path, last = follow(tree, samples)
    return Verdict(tuple(path), (*(tree.tokens[node] for node in path), *(() if last is None else (last,))))
