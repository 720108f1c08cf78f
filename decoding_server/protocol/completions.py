"""POST /v1/completions: request, response and chunk."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from typing_extensions import TypedDict

from decoding_server.protocol.decoding import ResolvedDecoding
from decoding_server.protocol.generation import GenerationRequest
from decoding_server.protocol.sampling import invalid
from decoding_server.protocol.usage import Usage

DEFAULT_MAX_TOKENS = 16


def _prompts(value: Any) -> list[str | list[int]]:
    """One prompt or several, as text or as token ids, to a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise invalid("must be a string, a list of strings, a list of token ids or a list of such lists")
    if not value:
        raise invalid("must not be an empty list")
    if _are_ids(value):
        return [value]
    for index, prompt in enumerate(value):
        if not isinstance(prompt, str) and not (isinstance(prompt, list) and _are_ids(prompt)):
            raise invalid(f"element {index} is neither a string nor a list of token ids")
    return value


def _are_ids(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)


_TOKENS = {"type": "array", "items": {"type": "integer"}}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        _TOKENS,
        {"type": "array", "items": _TOKENS},
    ]
}


class CompletionRequest(GenerationRequest):
    """Text or token ids to continue. `logprobs` is a number here: 0 means the chosen token's own value."""

    prompt: Annotated[list[str | list[int]], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Generates so many and returns the n with the highest mean log-probability."
    )
    suffix: str | None = Field(None, description="Text after the completion, for models with fill-in-the-middle.")

    @property
    def candidates(self) -> int:
        """Sequences to generate for each prompt."""
        return self.best_of or self.choices_per_prompt

    @model_validator(mode="after")
    def _best_of_is_at_least_n(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of < self.choices_per_prompt:
            raise invalid("must not be less than n", "best_of")
        if self.best_of is not None and self.stream and self.best_of > self.choices_per_prompt:
            raise invalid("can't be greater than n with stream", "best_of")
        return self


class CompletionLogprobs(TypedDict):
    """Four parallel arrays. text_offset counts characters from the start of prompt plus completion."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(TypedDict):
    """vLLM's shape of one candidate for a prompt token; rank 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None] | None]
    prompt_token_ids: NotRequired[list[int]]
    token_ids: NotRequired[list[int]]


class Completion(TypedDict):
    """The response, and each chunk of a stream (`usage` is null in all but the last)."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
    decoding: NotRequired[ResolvedDecoding]
    warnings: NotRequired[list[str]]
    trace: NotRequired[list[dict[str, Any]]]
