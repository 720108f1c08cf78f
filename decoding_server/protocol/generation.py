"""The fields that completions and chat completions share: their types, ranges and defaults.

Every field may be null, which means its default. Booleans are not numbers, numbers are not strings.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

INT64_MIN, UINT64_MAX = -(2**63), 2**64 - 1


def invalid(message: str, field: str = "") -> PydanticCustomError:
    """A validator's way of refusing a value. `field` names the culprit when the validator looks at a whole object."""
    return PydanticCustomError("value", "{message}", {"message": message, "field": field})


def _stop_strings(value: Any) -> list[str]:
    strings = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise invalid("must be a string or a list of strings")
    if "" in strings:
        raise invalid("an empty string can't be a stop string")
    return strings


def _logit_bias(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid("must be an object of token ids and biases")
    biases: dict[int, float] = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdecimal() and len(token) < 12):
            raise invalid(f"{token!r} is not a token id")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise invalid(f"the bias of token {token} must be a number from -100 to 100")
        biases[int(token)] = float(bias)
    return biases


class StreamOptions(BaseModel):
    """include_usage: a last chunk without choices carries `usage`. continuous_usage_stats: so does every chunk."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class BudgetOptions(BaseModel):
    """Limits of one request over all its choices; at the limit the best answer so far is returned.

    forward_tokens and flops count what the model computes (prompt tokens from the prefix cache are free),
    output_tokens what it generates, seconds the wall time since submission.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    forward_tokens: Annotated[int, Field(gt=0, le=2**63)] | None = None
    output_tokens: Annotated[int, Field(gt=0, le=2**63)] | None = None
    flops: Annotated[float, Field(gt=0)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None


class DecodingOptions(BaseModel):
    """How the answer is decoded. This object is strict: a key that can't be honoured is refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

    budget: BudgetOptions | None = None


class GenerationRequest(BaseModel):
    """Fields of a request that generates text, whichever endpoint it is for."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = Field(None, description="A served name; absent means the first one.")
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Wins over max_tokens."
    )
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[
        list[str],
        PlainValidator(_stop_strings),
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}
        ),
    ] = Field(default_factory=list, description="Strings at which the text ends; they are not part of it.")
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    ignore_eos: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="-1, 0 and null switch it off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[
        dict[int, float],
        PlainValidator(_logit_bias),
        WithJsonSchema({"type": ["object", "null"], "additionalProperties": {"type": "number"}}),
    ] = Field(default_factory=dict, description="Token id (as a string) to a bias from -100 to 100.")
    seed: Annotated[int, Field(ge=INT64_MIN, le=UINT64_MAX)] | None = None
    decoding: DecodingOptions | None = None

    @field_validator("decoding", mode="before")
    @classmethod
    def _decoding_is_an_object(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise invalid("strategies by name are not supported; the only key supported is 'budget'")
        return value

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise invalid("is only allowed when stream is true", "stream_options")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return (
            self.include_usage and self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)
        )
