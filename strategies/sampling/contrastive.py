"""Contrastive search: of the k likeliest tokens, the one that is likely and whose hidden state is least like any before
(Su et al. 2022, A Contrastive Framework for Neural Text Generation, eq. 5).

    x_t = argmax over v in the k likeliest of  (1 - alpha) p(v | x_<t) - alpha max_{j<t} cos(h_v, h_{x_j})

h are the model's last hidden states. The state of a candidate is known only after computing it, so every step costs k
more tokens; the runtime does that, and asks `choose` which one to take.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from strategies.sampling.transform import Stage, Transform

if TYPE_CHECKING:
    from strategies.sampling.row import Row


class Contrastive(Transform):
    """Deterministic: temperature and seed play no part beyond what they do to p."""

    name: ClassVar = "contrastive"
    slot: ClassVar = "sampler"
    stage: ClassVar = Stage.RESHAPE
    rank: ClassVar = 200
    observes: ClassVar = True
    runtimes: ClassVar = ("torch",)

    k: Annotated[int, Field(ge=2, le=32, description="Candidates that are computed at every step.")] = 4
    alpha: Annotated[float, Field(ge=0, le=1, description="Weight of the degeneration penalty.")] = 0.6

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        """Leaves the distribution alone: this is a rule of choice."""
        return logits

    def choose(self, probabilities: Tensor, candidates: Tensor, history: Tensor) -> int:
        """The index of the candidate to take; the likelier of equals, if they come in that order.

        probabilities: [k]. candidates: hidden states [k, hidden]. history: those of all tokens before, [n, hidden].
        """
        unit = functional.normalize(candidates.float(), dim=-1)
        before = functional.normalize(history.float(), dim=-1)
        penalty = (unit @ before.T).amax(-1)
        return int(((1 - self.alpha) * probabilities - self.alpha * penalty).argmax())


def contrastive_of(row: "Row") -> Contrastive | None:
    """The row's contrastive search, if it asked for one."""
    return next((stage for stage in row.stages if isinstance(stage, Contrastive)), None)
