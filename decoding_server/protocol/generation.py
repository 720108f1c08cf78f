"""The fields that completions and chat completions share: their types, ranges and defaults.

Every field may be null, which means its default. Booleans are not numbers, numbers are not strings.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from decoding_server.protocol.decoding import DecodingOptions
from decoding_server.protocol.sampling import SamplingFields, invalid
from decoding_server.protocol.structure import ResponseFormat, StructuredOutputs


def _stop_strings(value: Any) -> list[str]:
    strings = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise invalid("must be a string or a list of strings")
    if "" in strings:
        raise invalid("an empty string can't be a stop string")
    return strings


class StreamOptions(BaseModel):
    """include_usage: a last chunk without choices carries `usage`. continuous_usage_stats: so does every chunk."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class GenerationRequest(SamplingFields):
    """Fields of a request that generates text, whichever endpoint it is for."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = Field(None, description="A served name; absent means the first one.")
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Wins over max_tokens."
    )
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
    include_stop_str_in_output: bool | None = None
    logprobs_mode: Literal["raw", "processed"] | None = Field(
        None, description="raw: the model's own values; processed: those of the distribution that was drawn from."
    )
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = Field(None, description="Not with stream.")
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = Field(None, description="Smaller ones go first.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Cached prefixes are shared only among requests with the same salt."
    )
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = Field(
        None, description="Longest prompt in tokens; -1: what the context leaves besides max_tokens."
    )
    truncation_side: Literal["left", "right"] | None = Field(None, description="Where tokens are cut; default left.")
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = Field(None, description="Tokens in logprobs read 'token_id:ID'.")
    add_special_tokens: bool | None = None
    skip_special_tokens: bool | None = Field(None, description="Default true.")
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/+=@-]{1,128}$")] | None = Field(
        None, description="Becomes the end of the answer's id."
    )
    t_max_predict_ms: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Time limit; the same as decoding.budget.seconds."
    )
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    decoding: DecodingOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise invalid("is only allowed when stream is true", "stream_options")
        return self

    @model_validator(mode="after")
    def _one_structure(self) -> "GenerationRequest":
        formatted = self.response_format is not None and self.response_format.type != "text"
        if formatted and self.structured_outputs is not None:
            raise invalid("can't be combined with response_format", "structured_outputs")
        return self

    @model_validator(mode="after")
    def _prompt_logprobs_do_not_stream(self) -> "GenerationRequest":
        if self.prompt_logprobs is not None and self.stream:
            raise invalid("is not available with stream", "prompt_logprobs")
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
