"""Distributions given by the few tokens that they keep, instead of a logit for every token of the vocabulary."""

from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.randomness import gumbel_at


@dataclass(frozen=True, slots=True, eq=False)
class Support:
    """The kept tokens of R rows; all others are impossible.

    ids: int64 [R, K]. log_q: float32 [R, K], their log-probabilities. Behind the last token of a row that keeps fewer,
    ids and log_q repeat the first. A row from which no token can be drawn has a NaN.
    """

    ids: Tensor
    log_q: Tensor

    def faulty(self) -> Tensor:
        """bool [R]: the rows from which no token can be drawn."""
        return ~torch.isfinite(self.log_q.amax(-1))

    def draw(self, keys: Tensor) -> Tensor:
        """One token per row, int64 [R]; keys: int64 [R], of the noise. A faulty row's token means nothing.

        A token's noise depends on its id alone, so this is the token that `gumbel_argmax` takes from the same
        distribution written out.
        """
        noisy = self.log_q.to(torch.float64) + gumbel_at(keys, self.ids)
        return self.ids.gather(-1, noisy.argmax(-1, keepdim=True))[:, 0]

    def write(self, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """Overwrites the rows of logits [R', V] (rows: int64 [R], None: all) with log q, -inf elsewhere; returns
        logits."""
        log_q = self.log_q.to(logits.dtype)
        if rows is None:
            return logits.fill_(-torch.inf).scatter_(-1, self.ids, log_q)
        logits.index_fill_(0, rows, -torch.inf)
        logits[rows[:, None], self.ids] = log_q
        return logits
