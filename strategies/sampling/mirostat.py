"""Mirostat 2: a truncation whose threshold follows the surprise of the tokens drawn."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field
from torch import Tensor

from strategies.sampling.distribution import log_normalizer
from strategies.sampling.transform import Stage, Transform, column, keep_at_least

if TYPE_CHECKING:
    from strategies.sampling.row import Row

LN2 = math.log(2)


class SurpriseControl:
    """The threshold `mu` in bits, and the distribution that the next token is drawn from.

    surprise: bits of each token under the truncated, renormalized distribution [V], from `apply` to the next token; the
    tensor is never written again, so forks share it.
    """

    __slots__ = ("eta", "mu", "surprise", "tau")

    def __init__(self, tau: float, eta: float) -> None:
        self.tau, self.eta, self.mu = tau, eta, 2 * tau
        self.surprise: Tensor | None = None

    def advance(self, token: int) -> None:
        if self.surprise is None:
            return
        observed = float(self.surprise[token])
        self.surprise = None
        # A token that the distribution excludes was forced from elsewhere: there is nothing to learn from it.
        if math.isfinite(observed):
            self.mu -= self.eta * (observed - self.tau)

    def fork(self) -> "SurpriseControl":
        copy = SurpriseControl(self.tau, self.eta)
        copy.mu, copy.surprise = self.mu, self.surprise
        return copy


class Mirostat(Transform):
    """Keeps the tokens whose surprise -log2 p is at most mu, at least the most likely; after each token,
    mu -= eta (surprise of the token drawn - tau).

    Basu et al. 2021, "Mirostat", algorithm 2 as its authors later simplified it (no estimate of the Zipf exponent);
    mu starts at 2 tau. The surprise observed is that under the truncated, renormalized distribution. Other truncations
    may be combined with it; it is the last of them, so that it observes what is drawn from.
    """

    name: ClassVar = "mirostat"
    slot: ClassVar = "sampler"
    stage: ClassVar = Stage.TRUNCATION
    rank: ClassVar = 70
    greedy: ClassVar = False
    observes: ClassVar = True

    tau: Annotated[float, Field(gt=0, le=100, description="Target surprise, in bits per token.")] = 5.0
    eta: Annotated[float, Field(gt=0, le=1, description="Learning rate of the threshold.")] = 0.1

    def start(self, row: "Row") -> SurpriseControl:
        return SurpriseControl(self.tau, self.eta)

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        states = [surprise_control(row) for row in rows]
        threshold = log_normalizer(logits) - column([state.mu * LN2 for state in states], logits)
        keep_at_least(logits, threshold.minimum(logits.amax(-1, keepdim=True)))
        surprise = (log_normalizer(logits) - logits) / LN2
        for state, bits in zip(states, surprise, strict=True):
            state.surprise = bits
        return logits


def surprise_control(row: "Row") -> SurpriseControl:
    """The row's state."""
    state = row.states[Mirostat.name]
    assert isinstance(state, SurpriseControl)
    return state
