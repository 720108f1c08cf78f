"""Temperature, and the truncations top-k, top-p and min-p.

Each truncation keeps the tokens whose logit is at least a per-row threshold, so that rows with different parameters
run as one tensor operation. Tokens that tie with the last one kept are kept too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from strategies.sampling.row import Row

NUCLEUS_CANDIDATES = 1024
"""How many of the largest logits top-p looks at first: sorting a whole vocabulary is needed only for flat rows."""


def _column(values: Sequence[float], logits: Tensor) -> Tensor:
    return torch.tensor(values, dtype=logits.dtype, device=logits.device)[:, None]


def _keep(logits: Tensor, threshold: Tensor) -> Tensor:
    """Masks, in place, logits [R, V] below threshold [R, 1]."""
    return logits.masked_fill_(logits < threshold, float("-inf"))


class Temperature:
    """logits / temperature; greedy rows are left as they are."""

    name = "temperature"

    def wants(self, row: Row) -> bool:
        return not row.greedy and row.parameters.temperature != 1.0

    def apply(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        return logits.div_(_column([row.parameters.temperature for row in rows], logits))


class TopK:
    """Keeps the k largest logits (Fan et al. 2018)."""

    name = "top_k"

    def wants(self, row: Row) -> bool:
        return not row.greedy and row.parameters.top_k > 0

    def apply(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        k = [min(row.parameters.top_k, logits.shape[-1]) for row in rows]
        largest = logits.topk(max(k), dim=-1).values
        index = torch.tensor(k, device=logits.device)[:, None] - 1
        return _keep(logits, largest.gather(-1, index))


class TopP:
    """Keeps the smallest set of most likely tokens whose probabilities sum to at least p (Holtzman et al. 2020)."""

    name = "top_p"

    def wants(self, row: Row) -> bool:
        return not row.greedy and row.parameters.top_p < 1.0

    def apply(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        p = _column([row.parameters.top_p for row in rows], logits)
        threshold, complete = nucleus_threshold(logits, p, NUCLEUS_CANDIDATES)
        if not complete:
            threshold, _ = nucleus_threshold(logits, p, logits.shape[-1])
        return _keep(logits, threshold)


def nucleus_threshold(logits: Tensor, p: Tensor, candidates: int) -> tuple[Tensor, bool]:
    """The smallest logit in each row's nucleus, looking at the `candidates` largest logits only.

    logits: [R, V]; p: [R, 1]. Returns the threshold [R, 1], and whether every row's nucleus lies among the candidates.
    """
    candidates = min(candidates, logits.shape[-1])
    largest = logits.topk(candidates, dim=-1).values
    mass = (largest - logits.logsumexp(-1, keepdim=True)).exp()
    before = mass.cumsum(-1) - mass
    size = (before < p).sum(-1, keepdim=True)  # a token is kept while the mass before it is below p; always >= 1
    complete = candidates == logits.shape[-1] or bool((size < candidates).all())
    return largest.gather(-1, (size - 1).clamp_min(0)), complete


class MinP:
    """Keeps tokens at least `min_p` times as likely as the most likely one (Nguyen et al. 2024)."""

    name = "min_p"

    def wants(self, row: Row) -> bool:
        return not row.greedy and row.parameters.min_p > 0.0

    def apply(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        threshold = logits.amax(-1, keepdim=True) + _column([row.parameters.min_p for row in rows], logits).log()
        return _keep(logits, threshold)
