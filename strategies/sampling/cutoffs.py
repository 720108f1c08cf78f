"""Truncations by a threshold of each row's own: epsilon and eta sampling, and top-n-sigma."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from strategies.sampling.distribution import entropy, log_normalizer, row_sum
from strategies.sampling.transform import Stage, Transform, column, keep_at_least

if TYPE_CHECKING:
    from strategies.sampling.row import Row


class TopNSigma(Transform):
    """Keeps the tokens whose logit is at most `n` standard deviations below the largest one.

    Tang et al. 2024, "Top-nσ: Not All Logits Are You Need". The deviation is that of all logits that are not masked
    (divided by their number). Dividing logits by a temperature scales the deviation and the distances alike, so the set
    is the same before and after temperature; it is the first of the truncations because the deviation of what another
    one has left would mean something else. Penalties and biases do count.
    """

    name: ClassVar = "top_n_sigma"
    slot: ClassVar = "sampler"
    stage: ClassVar = Stage.TRUNCATION
    rank: ClassVar = 5
    greedy: ClassVar = False

    n: Annotated[float, Field(gt=0, le=100, description="How many standard deviations below the largest logit.")]

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        possible = logits > float("-inf")
        count = row_sum(possible.to(logits.dtype))
        mean = row_sum(torch.where(possible, logits, 0.0)) / count
        deviation = (row_sum(torch.where(possible, logits - mean, 0.0).square()) / count).sqrt()
        threshold = logits.amax(-1, keepdim=True) - column([stage.n for stage in stages], logits) * deviation
        return keep_at_least(logits, threshold)


class EpsilonCutoff(Transform):
    """Keeps the tokens of probability at least `epsilon`; where there is none, the most likely one.

    Hewitt, Manning, Liang 2022, "Truncation Sampling as Language Model Desmoothing", section 4.1.
    """

    name: ClassVar = "epsilon_cutoff"
    slot: ClassVar = "sampler"
    stage: ClassVar = Stage.TRUNCATION
    rank: ClassVar = 40
    greedy: ClassVar = False

    epsilon: Annotated[float, Field(gt=0, lt=1, description="Least probability; the paper uses 3e-4 to 9e-4.")]

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        threshold = log_normalizer(logits) + column([math.log(stage.epsilon) for stage in stages], logits)
        return keep_at_least(logits, threshold.minimum(logits.amax(-1, keepdim=True)))


class EtaCutoff(Transform):
    """Keeps the tokens of probability at least min(epsilon, sqrt(epsilon) exp(-entropy)); where there is none, the
    most likely one.

    Hewitt, Manning, Liang 2022, "Truncation Sampling as Language Model Desmoothing", equation 5, with alpha the square
    root of epsilon; entropy in nats.
    """

    name: ClassVar = "eta_cutoff"
    slot: ClassVar = "sampler"
    stage: ClassVar = Stage.TRUNCATION
    rank: ClassVar = 50
    greedy: ClassVar = False

    epsilon: Annotated[float, Field(gt=0, lt=1, description="Largest cutoff; the paper uses 3e-4 to 4e-3.")]

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        log_epsilon = column([math.log(stage.epsilon) for stage in stages], logits)
        normalizer = log_normalizer(logits)
        cutoff = log_epsilon.minimum(log_epsilon / 2 - entropy(logits - normalizer))
        return keep_at_least(logits, (normalizer + cutoff).minimum(logits.amax(-1, keepdim=True)))
