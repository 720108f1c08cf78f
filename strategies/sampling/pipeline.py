"""The sampling pipeline: an ordered list of logits transforms, and the draw from what they leave.

The order is fixed and the same everywhere: penalties, bias, minimum length, temperature, top-k, top-p, min-p. The
distribution after it is *the* target distribution.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from strategies.randomness import gumbel_argmax, signed64
from strategies.sampling.penalties import CountPenalty, LogitBias, MinTokens, RepetitionPenalty
from strategies.sampling.row import Row
from strategies.sampling.truncation import MinP, Temperature, TopK, TopP


class LogitsTransform(Protocol):
    """A stage of the pipeline, batched over the rows that want it."""

    name: str

    def wants(self, row: Row) -> bool:
        """Whether the row asks for this transform now; rows that don't pay nothing."""

    def apply(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """Logits [R, V] of exactly the rows that want it -> [R, V]; may write in place. -inf must stay -inf."""


DEFAULT_ORDER: tuple[LogitsTransform, ...] = (
    RepetitionPenalty(),
    CountPenalty(),
    LogitBias(),
    MinTokens(),
    Temperature(),
    TopK(),
    TopP(),
    MinP(),
)


class Pipeline:
    """Applies transforms in order, each to the rows that want it."""

    def __init__(self, transforms: Sequence[LogitsTransform] = DEFAULT_ORDER) -> None:
        self.transforms = tuple(transforms)

    def process(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """Logits float32 [R, V] (owned by the caller, overwritten) -> the target distribution's logits [R, V]."""
        for transform in self.transforms:
            picked = [i for i, row in enumerate(rows) if transform.wants(row)]
            if not picked:
                continue
            if len(picked) == len(rows):
                logits = transform.apply(logits, rows)
            else:
                index = torch.tensor(picked, device=logits.device)
                logits[index] = transform.apply(logits[index], [rows[i] for i in picked])
        return logits


def sample(
    logits: Tensor,
    rows: Sequence[Row],
    positions: Sequence[int],
    draw: Callable[[Tensor, Tensor], Tensor] = gumbel_argmax,
) -> Tensor:
    """One token per row, int64 [R], from processed logits [R, V].

    positions: tokens before the one drawn, which key the noise. Greedy rows take the arg-max (lowest id among equals).
    draw: `gumbel_argmax` or an equivalent (logits [S, V], keys int64 [S]) -> int64 [S].
    """
    sampled = [i for i, row in enumerate(rows) if not row.greedy]
    if not sampled:
        return logits.argmax(-1)
    keys = torch.tensor([signed64(rows[i].stream.key(positions[i])) for i in sampled], device=logits.device)
    if len(sampled) == len(rows):
        return draw(logits, keys)
    tokens = logits.argmax(-1)
    index = torch.tensor(sampled, device=logits.device)
    tokens[index] = draw(logits[index], keys)
    return tokens


def faulty_rows(logits: Tensor) -> Tensor:
    """bool [R]: rows that hold NaN or +inf, or nothing but -inf; no token can be drawn from them."""
    return ~torch.isfinite(logits.amax(-1))
