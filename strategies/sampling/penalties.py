"""Transforms that read a row's history: repetition, presence and frequency penalties, logit bias, minimum length.

All work on logits [R, V] in place, touching only the (row, token) pairs concerned.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from strategies.sampling.transform import Stage, Transform, ban, scatter

if TYPE_CHECKING:
    from strategies.sampling.row import Row


class RepetitionPenalty(Transform):
    """Divides positive, multiplies negative logits of tokens in prompt or output (Keskar et al. 2019, CTRL, 4.1)."""

    name: ClassVar = "repetition_penalty"
    slot: ClassVar = "penalty"
    stage: ClassVar = Stage.PENALTY
    rank: ClassVar = 10

    penalty: Annotated[float, Field(gt=0, le=1e6, description="The divisor; 1 is off, below 1 favours repetition.")]

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        index, tokens, penalty = scatter(
            (
                (i, token, stage.penalty)
                for i, (row, stage) in enumerate(zip(rows, stages, strict=True))
                for token in row.prompt | row.counts.keys()
            ),
            logits.device,
        )
        seen = logits[index, tokens]
        logits[index, tokens] = torch.where(seen > 0, seen / penalty, seen * penalty)
        return logits


class CountPenalty(Transform):
    """logits - presence * [count > 0] - frequency * count, counts over the output only (OpenAI's definition)."""

    name: ClassVar = "presence_frequency_penalty"
    slot: ClassVar = "penalty"
    stage: ClassVar = Stage.PENALTY
    rank: ClassVar = 20

    presence: Annotated[float, Field(ge=-2, le=2, description="Subtracted once from each token of the output.")] = 0.0
    frequency: Annotated[float, Field(ge=-2, le=2, description="Subtracted for each time that a token occurs.")] = 0.0

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        index, tokens, penalty = scatter(
            (
                (i, token, stage.presence + stage.frequency * count)
                for i, (row, stage) in enumerate(zip(rows, stages, strict=True))
                for token, count in row.counts.items()
            ),
            logits.device,
        )
        logits[index, tokens] -= penalty
        return logits


class LogitBias(Transform):
    """Adds the request's bias to the logits of the given token ids."""

    name: ClassVar = "logit_bias"
    stage: ClassVar = Stage.BIAS

    bias: Mapping[int, float]

    def token_ids(self) -> Iterable[int]:
        return self.bias

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        index, tokens, bias = scatter(
            ((i, token, value) for i, stage in enumerate(stages) for token, value in stage.bias.items()),
            logits.device,
        )
        logits[index, tokens] += bias
        return logits


class MinTokens(Transform):
    """Masks `endings`, the ids that end a sequence, while fewer than `min_tokens` tokens have been generated."""

    name: ClassVar = "min_tokens"
    stage: ClassVar = Stage.BAN

    min_tokens: int
    endings: tuple[int, ...]

    def wants(self, row: "Row") -> bool:
        return row.num_outputs < self.min_tokens

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        index, tokens, _ = scatter(
            ((i, token, 0.0) for i, stage in enumerate(stages) for token in stage.endings), logits.device
        )
        return ban(logits, index, tokens)
