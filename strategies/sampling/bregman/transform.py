"""Bregman decoding as a stage of the pipeline: the last one, since nothing may rescale probabilities after it."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor

from strategies.sampling.bregman.decode import kept, write_log_q
from strategies.sampling.bregman.native import kernel
from strategies.sampling.bregman.parameters import BregmanParameters
from strategies.sampling.bregman.plan import Plan, plan
from strategies.sampling.support import Support
from strategies.sampling.transform import Stage, Transform

if TYPE_CHECKING:
    from strategies.sampling.row import Row
    from strategies.text import Tokenizer

K_MAX = 1024
"""Bound of the adaptive k where the request sets none: a tiny price on a flat distribution would search for seconds."""

SPARSE = 8
"""A row keeps few tokens if this many times as many would fit into the vocabulary."""


class Bregman(BregmanParameters, Transform):
    """Keeps the k tokens, and gives them the probabilities, that a Bregman divergence with a price per token chooses
    (Noarov et al. 2025, Foundations of Top-k Decoding).

    alpha 1 is top-k's own renormalisation, with an adaptive k; larger alphas lift the unlikely among the kept tokens.
    """

    name: ClassVar = "bregman"
    slot: ClassVar[Literal["sampler"]] = "sampler"
    stage: ClassVar = Stage.RESHAPE
    greedy: ClassVar = False

    @cached_property
    def bounded(self) -> BregmanParameters:
        """These parameters with a bound of k. Always a copy: pydantic compares what is cached, too, and would compare
        an object that caches itself for ever."""
        if self.k is not None or self.k_max is not None or not self.penalty:
            return self.model_copy()
        return self.model_copy(update={"k_max": max(K_MAX, self.k_min)})

    @classmethod
    def prepare(cls, tokenizer: "Tokenizer", device: torch.device) -> None:
        """Compiles the kernel."""
        if device.type == "cpu":
            kernel()

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        return write_log_q(logits, _plan_of(stages, logits))

    @classmethod
    def support(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Support | None:
        batch = _plan_of(stages, logits)
        return kept(logits, batch) if batch.K * SPARSE <= batch.V else None


def _plan_of(stages: Sequence[Bregman], logits: Tensor) -> Plan:
    return _plan(tuple(stage.bounded for stage in stages), logits.shape[-1], logits.device)


@lru_cache(maxsize=64)
def _plan(parameters: tuple[BregmanParameters, ...], vocab_size: int, device: torch.device) -> Plan:
    """Made once for as long as a batch stays together."""
    return plan(parameters, vocab_size, device)
