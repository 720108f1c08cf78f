"""Parameters of the three kinds of text that phi-decoding and predictive decoding generate: steps, foresight, answers.

Each has a temperature of its own. The request's other transforms (top_p, penalties, bias, bans) act in every stage, so
that whatever becomes the answer keeps to them; a temperature of None is the request's own.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from strategies.search.context import BLANK_LINE, NEWLINE

StepRule = Literal["newline", "blank", "chunk"]
Temperature = Annotated[float, Field(ge=0.0, le=2.0)]

LONGEST_STEP = 1024
CHUNK = 64


class StepOptions(BaseModel):
    """What a step is: up to a line's end, up to a blank line, or a number of tokens.

    end: a newline, or a blank line, behind something that is not blank; "chunk" counts tokens alone, for text without
    lines. max_tokens: where a step is cut if nothing ends it (1024), or the length of a chunk (64). temperature: of the
    rollouts. A greedy request makes all rollouts alike, so this one is not the request's unless it is null.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    end: Annotated[StepRule, Field(description="What ends a step: a line, a blank line, or a number of tokens.")] = (
        "newline"
    )
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Where a step is cut, 1024; the length of a chunk, 64."
    )
    temperature: Temperature | None = Field(default=0.6, description="Of the rollouts; null: the request's.")

    @property
    def step_ends(self) -> tuple[str, ...]:
        """The strings that end a step."""
        return {"newline": NEWLINE, "blank": BLANK_LINE, "chunk": ()}[self.end]

    @property
    def cap(self) -> int:
        """The most tokens of a step."""
        return self.max_tokens or (CHUNK if self.end == "chunk" else LONGEST_STEP)


class ForesightOptions(BaseModel):
    """The continuation that tells where a step leads: to the end of the answer, at most max_tokens (0: no foresight,
    steps are chosen by their own likelihood: the paper's ablation)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    max_tokens: Annotated[
        int,
        Field(ge=0, le=16384, description="Most tokens of a look ahead; 0: steps are drawn by their own likelihood."),
    ] = 1024
    temperature: Temperature | None = Field(default=1.0, description="Null: the request's.")


class CompletionOptions(BaseModel):
    """How an answer is completed behind its chosen steps: max_tokens more at most (null: as the request allows)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    max_tokens: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        default=None, description="Of the completions; null: what the request allows."
    )
    temperature: Temperature | None = Field(default=None, description="Null: the request's.")
