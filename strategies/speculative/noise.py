"""Where the random numbers of a speculation round come from: pure functions of what they are used for."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from strategies.randomness import Purpose, Stream, signed64, uniform


class Noise(Protocol):
    """Uniforms of one request in one round. The draws of two purposes, nodes or indices are independent."""

    def uniforms(self, purpose: Purpose, nodes: Sequence[int], index: Tensor) -> Tensor:
        """float64 [len(nodes), N] in the open interval (0, 1), on index's device.

        purpose: DRAFT, ACCEPT or RESIDUAL. nodes: node indices of the draft tree. index: int64 [N], what the draw is
        for at that node: a vocabulary index (Gumbel noise) or the number of a try.
        """


class RoundNoise:
    """Noise keyed by (seed, branch, committed length, purpose, node, index), hence independent of the batch.

    The committed length grows every round, so no round sees another's noise; siblings' families differ by the node.
    """

    def __init__(self, seed: int, branch: Sequence[int], committed: int) -> None:
        path = (*branch, committed)
        self._streams = {
            purpose: Stream(seed, path, purpose) for purpose in (Purpose.DRAFT, Purpose.ACCEPT, Purpose.RESIDUAL)
        }

    def uniforms(self, purpose: Purpose, nodes: Sequence[int], index: Tensor) -> Tensor:
        """See `Noise.uniforms`. Raises KeyError for another purpose."""
        stream = self._streams[purpose]
        keys = torch.tensor([signed64(stream.key(node)) for node in nodes], dtype=torch.int64, device=index.device)
        return uniform(keys, index)


def categorical(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draws from rows of weights by inversion, int64 [R, N]; a zero weight is never drawn.

    weights: float64 [R, V], non-negative, not all zero in a row, of any sum. uniforms: float64 [R, N] in (0, 1).
    """
    cumulated = weights.cumsum(-1)
    drawn = torch.searchsorted(cumulated, uniforms * cumulated[:, -1:], right=True).clamp_(max=weights.shape[-1] - 1)
    if bool((weights.gather(-1, drawn) > 0).all()):
        return drawn
    # Rounding: the product reached the total, or a parallel scan was not monotone. Take the nearest token at or below
    # that has weight, else the first one.
    index = torch.arange(weights.shape[-1], device=weights.device).expand_as(weights)
    below = torch.where(weights > 0, index, -1).cummax(-1).values.gather(-1, drawn)
    first = (weights > 0).to(torch.int8).argmax(-1, keepdim=True)
    return torch.where(below >= 0, below, first)
