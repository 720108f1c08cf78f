"""Locally typical sampling: keep the tokens whose surprise is closest to the expected one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field
from torch import Tensor

from strategies.sampling.distribution import entropy, log_probabilities
from strategies.sampling.transform import Stage, Transform, column

if TYPE_CHECKING:
    from strategies.sampling.row import Row

TYPICAL_CANDIDATES = 1024
"""How many of the most typical tokens are looked at first; only rows whose set is larger are sorted as a whole."""


class TypicalP(Transform):
    """Keeps the smallest set of tokens of mass at least `mass` whose surprise -log p(v) is closest to the entropy.

    Meister, Pimentel, Wiher, Cotterell 2022, "Locally Typical Sampling", equation 10. Tokens as typical as the last
    one kept are kept too. The most likely token is dropped where the entropy is far above its surprise, so this is off
    at temperature 0.
    """

    name: ClassVar = "typical_p"
    slot: ClassVar = "sampler"
    stage: ClassVar = Stage.TRUNCATION
    rank: ClassVar = 15
    greedy: ClassVar = False

    mass: Annotated[float, Field(gt=0, le=1, description="Probability mass of the typical set; 1 keeps everything.")]

    def wants(self, row: "Row") -> bool:
        return self.mass < 1

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        mass = column([stage.mass for stage in stages], logits)
        logprobs = log_probabilities(logits)
        distance = (logprobs + entropy(logprobs)).abs()
        threshold, complete = typical_threshold(distance, logprobs, mass, TYPICAL_CANDIDATES)
        rest = (~complete).nonzero()[:, 0]
        if len(rest):
            threshold[rest], _ = typical_threshold(distance[rest], logprobs[rest], mass[rest], logits.shape[-1])
        return logits.masked_fill_(distance > threshold, float("-inf"))


def typical_threshold(distance: Tensor, logprobs: Tensor, mass: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """The largest distance in each row's typical set, looking at the `candidates` most typical tokens only.

    distance: |surprise - entropy| [R, V]; logprobs: [R, V]; mass: [R, 1]. Returns the threshold [R, 1], and whether
    the set lies among the candidates, bool [R].
    """
    candidates = min(candidates, distance.shape[-1])
    nearest, tokens = distance.topk(candidates, dim=-1, largest=False, sorted=True)
    probabilities = logprobs.gather(-1, tokens).exp()
    before = probabilities.cumsum(-1) - probabilities
    size = (before < mass).sum(-1, keepdim=True)
    complete = (size[:, 0] < candidates) | (candidates == distance.shape[-1])
    # Impossible tokens are infinitely far, so a set that reaches them, by rounding, has all the others.
    return nearest.gather(-1, (size - 1).clamp_min(0)), complete
