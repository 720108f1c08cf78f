"""POST /v1/embeddings: request and response."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from typing_extensions import TypedDict

from decoding_server.protocol.sampling import invalid
from decoding_server.protocol.usage import DecodingUsage

NOT_HONOURED: Mapping[str, tuple[Any, ...]] = {
    "decoding": (),
    "dimensions": (),  # a generating model's hidden states are not made to be cut
    "truncate_prompt_tokens": (),
}
"""Fields that are not honoured here, and the values with which they ask for nothing."""


def _inputs(value: Any) -> list[str | list[int]]:
    """One input or several, as text or as token ids, to a list of inputs."""
    if isinstance(value, str) or (isinstance(value, list) and value and _are_ids(value)):
        value = [value]
    if not isinstance(value, list):
        raise invalid("must be a string, a list of strings, a list of token ids or a list of such lists")
    if not value:
        raise invalid("must not be an empty list")
    for index, one in enumerate(value):
        if not isinstance(one, str) and not (isinstance(one, list) and _are_ids(one)):
            raise invalid(f"element {index} is neither a string nor a list of token ids")
        if not one:
            raise invalid(f"element {index} is empty")
    return value


def _are_ids(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)


_TOKENS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_TEXT = {"type": "string", "minLength": 1}
_INPUT_SCHEMA = {
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1},
    ]
}


class EmbeddingRequest(BaseModel):
    """Texts or token ids, each to become one vector: hidden states of the served model after its last norm, pooled over
    the tokens. Every field may be null, which means its default."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = Field(None, description="A served name; absent means the first one.")
    input: Annotated[list[str | list[int]], PlainValidator(_inputs), WithJsonSchema(_INPUT_SCHEMA)]
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian float32. Default float."
    )
    pooling: Literal["mean", "last"] | None = Field(
        None, description="The mean over all tokens, or the last one's state. Default mean."
    )
    normalize: bool | None = Field(None, description="Default true: vectors have unit length.")
    add_special_tokens: bool | None = Field(None, description="Of texts, not of token ids. Default true.")
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = Field(None, description="Smaller ones go first.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Cached prefixes are shared only among requests with the same salt."
    )


class EmbeddingEntry(TypedDict):
    """embedding: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int
    decoding: DecodingUsage


class EmbeddingList(TypedDict):
    """pooling and normalize say how the vectors were made: a generating model is not trained for this."""

    object: Literal["list"]
    data: list[EmbeddingEntry]
    model: str
    usage: EmbeddingUsage
    pooling: Literal["mean", "last"]
    normalize: bool
    warnings: NotRequired[list[str]]
