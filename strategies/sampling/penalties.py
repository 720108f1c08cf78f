"""Transforms that read a row's history: repetition, presence and frequency penalties, logit bias, minimum length.

All work on logits [R, V] in place, touching only the (row, token) pairs concerned.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from strategies.sampling.row import Row


def _scatter(pairs: Iterable[tuple[int, int, float]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(row, token, value) triples as index tensors int64 [N], int64 [N] and values float32 [N]."""
    listed = list(pairs)
    rows = torch.tensor([p[0] for p in listed], dtype=torch.int64, device=device)
    tokens = torch.tensor([p[1] for p in listed], dtype=torch.int64, device=device)
    values = torch.tensor([p[2] for p in listed], dtype=torch.float32, device=device)
    return rows, tokens, values


class RepetitionPenalty:
    """Divides positive, multiplies negative logits of tokens in prompt or output (Keskar et al. 2019, CTRL, 4.1)."""

    name = "repetition_penalty"

    def wants(self, row: Row) -> bool:
        return row.parameters.repetition_penalty != 1.0

    def apply(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        index, tokens, penalty = _scatter(
            (
                (i, token, row.parameters.repetition_penalty)
                for i, row in enumerate(rows)
                for token in row.prompt | row.output.keys()
            ),
            logits.device,
        )
        seen = logits[index, tokens]
        logits[index, tokens] = torch.where(seen > 0, seen / penalty, seen * penalty)
        return logits


class CountPenalty:
    """logits - presence * [count > 0] - frequency * count, counts over the output only (OpenAI's definition)."""

    name = "presence_frequency_penalty"

    def wants(self, row: Row) -> bool:
        return row.parameters.presence_penalty != 0.0 or row.parameters.frequency_penalty != 0.0

    def apply(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        index, tokens, penalty = _scatter(
            (
                (i, token, row.parameters.presence_penalty + row.parameters.frequency_penalty * count)
                for i, row in enumerate(rows)
                for token, count in row.output.items()
            ),
            logits.device,
        )
        logits[index, tokens] -= penalty
        return logits


class LogitBias:
    """Adds the request's bias to the logits of the given token ids."""

    name = "logit_bias"

    def wants(self, row: Row) -> bool:
        return bool(row.parameters.logit_bias)

    def apply(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        index, tokens, bias = _scatter(
            ((i, token, value) for i, row in enumerate(rows) for token, value in row.parameters.logit_bias.items()),
            logits.device,
        )
        logits[index, tokens] += bias
        return logits


class MinTokens:
    """Masks end-of-sequence and stop ids while fewer than `min_tokens` tokens have been generated."""

    name = "min_tokens"

    def wants(self, row: Row) -> bool:
        return row.num_outputs < row.min_tokens and bool(row.masked_until)

    def apply(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        index, tokens, _ = _scatter(
            ((i, token, 0.0) for i, row in enumerate(rows) for token in row.masked_until), logits.device
        )
        logits[index, tokens] = float("-inf")
        return logits
