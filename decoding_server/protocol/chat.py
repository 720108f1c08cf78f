"""POST /v1/chat/completions: request, response and chunk."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from typing_extensions import TypedDict

from decoding_server.protocol.generation import GenerationRequest, invalid
from decoding_server.protocol.usage import Usage

MAX_TOP_LOGPROBS = 20
PART_SEPARATOR = "\n"
"""Between the text parts of one message, which templates take as one string."""


def _content(value: Any) -> str | None:
    """A message's text: a string, or the text parts of a list."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid("must be a string or a list of text parts")
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise invalid(f"part {index} is not a text part; only {{'type': 'text', 'text': ...}} is supported")
        if not isinstance(part.get("text"), str):
            raise invalid(f"part {index} has no text")
        texts.append(part["text"])
    return PART_SEPARATOR.join(texts)


_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
        {"type": "null"},
    ]
}


class ChatMessage(BaseModel):
    """One turn. `developer` is given to the template as `system`, whose successor it is in OpenAI's API."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, PlainValidator(_content), WithJsonSchema(_CONTENT_SCHEMA)] = None
    name: str | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_text(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in ("tool_calls", "function_call", "audio"):
                if value.get(key):
                    raise invalid("is not supported", key)
        return value

    @model_validator(mode="after")
    def _has_content(self) -> "ChatMessage":
        if self.content is None:
            raise invalid("is missing", "content")
        return self

    def for_template(self) -> dict[str, str]:
        message = {"role": "system" if self.role == "developer" else self.role, "content": self.content or ""}
        for key in ("name", "tool_call_id"):
            value = getattr(self, key)
            if value is not None:
                message[key] = value
        return message


class ChatCompletionRequest(GenerationRequest):
    """A conversation to answer. `logprobs` is a switch here and `top_logprobs` the number of alternatives."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class TopLogprob(TypedDict):
    """`bytes` are the token's real bytes: joined over tokens they are the text, whole characters or not."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobEntry(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprobEntry]
    refusal: None


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    warnings: NotRequired[list[str]]


class ChatDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: NotRequired[str | int | None]


class ChatCompletionChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    warnings: NotRequired[list[str]]
