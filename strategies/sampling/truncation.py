"""Temperature, and the truncations top-k, top-p and min-p.

Each truncation keeps the tokens whose logit is at least a per-row threshold, so that rows with different parameters
run as one tensor operation. Tokens that tie with the last one kept are kept too.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from strategies.sampling.distribution import log_normalizer
from strategies.sampling.transform import Stage, Transform, column, keep_at_least

if TYPE_CHECKING:
    from strategies.sampling.row import Row

NUCLEUS_CANDIDATES = 1024
"""How many of the largest logits top-p looks at first: sorting a whole vocabulary is needed only for flat rows."""


class Temperature(Transform):
    """logits / temperature. Temperatures below `row.GREEDY_TEMPERATURE` are greedy decoding instead."""

    name: ClassVar = "temperature"
    stage: ClassVar = Stage.TEMPERATURE
    greedy: ClassVar = False

    temperature: Annotated[float, Field(gt=0)]

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        return logits.div_(column([stage.temperature for stage in stages], logits))


class TopK(Transform):
    """Keeps the k largest logits (Fan et al. 2018)."""

    name: ClassVar = "top_k"
    slot: ClassVar = "sampler"
    stage: ClassVar = Stage.TRUNCATION
    rank: ClassVar = 10
    greedy: ClassVar = False

    k: Annotated[int, Field(ge=1, description="Tokens kept; ties with the last one stay.")]

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        k = [min(stage.k, logits.shape[-1]) for stage in stages]
        largest = logits.topk(max(k), dim=-1).values
        index = torch.tensor(k, device=logits.device)[:, None] - 1
        return keep_at_least(logits, largest.gather(-1, index))


class TopP(Transform):
    """Keeps the smallest set of most likely tokens whose probabilities sum to at least p (Holtzman et al. 2020)."""

    name: ClassVar = "top_p"
    slot: ClassVar = "sampler"
    stage: ClassVar = Stage.TRUNCATION
    rank: ClassVar = 20
    greedy: ClassVar = False

    p: Annotated[float, Field(gt=0, le=1, description="Least probability mass kept; 1 keeps everything.")]

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        p = column([stage.p for stage in stages], logits)
        threshold, complete = nucleus_threshold(logits, p, NUCLEUS_CANDIDATES)
        if not complete:
            threshold, _ = nucleus_threshold(logits, p, logits.shape[-1])
        return keep_at_least(logits, threshold)


def nucleus_threshold(logits: Tensor, p: Tensor, candidates: int) -> tuple[Tensor, bool]:
    """The smallest logit in each row's nucleus, looking at the `candidates` largest logits only.

    logits: [R, V]; p: [R, 1]. Returns the threshold [R, 1], and whether every row's nucleus lies among the candidates.
    """
    candidates = min(candidates, logits.shape[-1])
    largest = logits.topk(candidates, dim=-1).values
    mass = (largest - log_normalizer(logits)).exp()
    before = mass.cumsum(-1) - mass
    size = (before < p).sum(-1, keepdim=True)  # a token is kept while the mass before it is below p; always >= 1
    complete = candidates == logits.shape[-1] or bool((size < candidates).all())
    return largest.gather(-1, (size - 1).clamp_min(0)), complete


class MinP(Transform):
    """Keeps tokens at least `p` times as likely as the most likely one (Nguyen et al. 2024)."""

    name: ClassVar = "min_p"
    slot: ClassVar = "sampler"
    stage: ClassVar = Stage.TRUNCATION
    rank: ClassVar = 30
    greedy: ClassVar = False

    p: Annotated[float, Field(gt=0, le=1, description="Least probability kept, as a share of the largest one.")]

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        threshold = logits.amax(-1, keepdim=True) + column([stage.p for stage in stages], logits).log()
        return keep_at_least(logits, threshold)
