"""XTC, "exclude top choices": sometimes drop all likely tokens but the least likely of them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from strategies.randomness import mix64
from strategies.sampling.distribution import log_normalizer
from strategies.sampling.transform import Stage, Transform, column, scatter

if TYPE_CHECKING:
    from strategies.sampling.row import Row


class LineEnds:
    """Ids whose removal calls the whole exclusion off: the newline and the ends of sequence."""

    __slots__ = ("tokens",)

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tuple(tokens)

    def advance(self, token: int) -> None:
        """Nothing depends on the tokens so far."""

    def fork(self) -> Self:
        return self


class ExcludeTopChoices(Transform):
    """With chance `probability` at each token: of the tokens of probability at least `threshold`, keeps the least
    likely one (and its ties) and everything below.

    The sampler of text-generation-webui and llama.cpp. As in the former, a step that would remove the newline or an end
    of sequence is left alone, or lines and answers would never end where they should. The coin is counter-based: the
    same for a seed, branch and position, alone or in a batch. It removes the most likely token by design, so it is off
    at temperature 0.
    """

    name: ClassVar = "xtc"
    slot: ClassVar = "sampler"
    stage: ClassVar = Stage.TRUNCATION
    rank: ClassVar = 60
    greedy: ClassVar = False

    threshold: Annotated[
        float, Field(ge=0, le=1, description="Probability of a top choice; above 0.5 there is never more than one.")
    ] = 0.1
    probability: Annotated[float, Field(ge=0, le=1, description="Chance, at each token, to exclude; 0 is off.")] = 0.5

    def start(self, row: "Row") -> LineEnds:
        if row.tokenizer is None:
            return LineEnds(())
        newline = row.tokenizer.encode("\n", add_special_tokens=False)[-1:]
        return LineEnds(sorted({*newline, *row.tokenizer.eos_token_ids}))

    def wants(self, row: "Row") -> bool:
        return coin(row) < self.probability

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        thresholds = [math.log(stage.threshold) if stage.threshold else -math.inf for stage in stages]
        likely = (logits >= log_normalizer(logits) + column(thresholds, logits)) & (logits > -math.inf)
        least = torch.where(likely, logits, math.inf).amin(-1, keepdim=True)
        excluded = likely & (logits > least)
        index, tokens, _ = scatter(
            ((i, token, 0.0) for i, row in enumerate(rows) for token in _line_ends(row) if token < logits.shape[-1]),
            logits.device,
        )
        excluded[index[excluded[index, tokens]]] = False
        return logits.masked_fill_(excluded, -math.inf)


def coin(row: "Row") -> float:
    """The uniform in (0, 1) of the token that the row draws next.

    It is `randomness.uniform` of the token's key at index -1. The draw uses the indices of the vocabulary, so the coin
    is independent of the noise that picks the token.
    """
    key = row.stream.key(len(row.prompt_ids) + row.num_outputs)
    return ((mix64(key) >> 12) + 0.5) * 2.0**-52


def _line_ends(row: "Row") -> tuple[int, ...]:
    state = row.states[ExcludeTopChoices.name]
    assert isinstance(state, LineEnds)
    return state.tokens
