"""POST /v1/chat/completions: request, response and chunk."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from typing_extensions import TypedDict

from decoding_server.protocol.completions import PromptLogprob
from decoding_server.protocol.decoding import ResolvedDecoding
from decoding_server.protocol.generation import GenerationRequest
from decoding_server.protocol.sampling import invalid
from decoding_server.protocol.usage import Usage
from decoding_server.tools.protocol import AssistantToolCall, ToolCall, ToolCallDelta, ToolFields, check_tool_turn

PART_SEPARATOR = "\n"
"""Between the text parts of one message, which templates take as one string."""


def joined_text(value: Any, kinds: Sequence[str]) -> str | None:
    """A message's text: a string, or the text parts (of these types) of a list. Raises pydantic's error."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid("must be a string or a list of text parts")
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in kinds:
            raise invalid(f"part {index} is not a text part; only parts of type {' or '.join(kinds)} are supported")
        if not isinstance(part.get("text"), str):
            raise invalid(f"part {index} has no text")
        texts.append(part["text"])
    return PART_SEPARATOR.join(texts)


def _content(value: Any) -> str | None:
    return joined_text(value, ("text",))


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
    tool_calls: list[AssistantToolCall] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_text(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in ("function_call", "audio"):
                if value.get(key):
                    raise invalid("is not supported", key)
        return value

    @model_validator(mode="after")
    def _fits_its_role(self) -> "ChatMessage":
        check_tool_turn(self.role, self.content, self.tool_calls, self.tool_call_id)
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as `messages_for_template` takes it."""
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or "",
        }
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        for key in ("name", "tool_call_id"):
            value = getattr(self, key)
            if value is not None:
                message[key] = value
        return message


class ChatCompletionRequest(GenerationRequest, ToolFields):
    """A conversation to answer. `logprobs` is a switch here and `top_logprobs` the number of alternatives."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    add_generation_prompt: bool | None = Field(None, description="Default true, except with continue_final_message.")
    continue_final_message: bool | None = Field(None, description="The answer goes on where the last message ends.")
    chat_template: str | None = Field(None, description="Instead of the model's own; the operator must allow it.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")

    @model_validator(mode="after")
    def _continues_or_begins(self) -> "ChatCompletionRequest":
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid("can't be combined with add_generation_prompt", "continue_final_message")
        return self


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
    """content is null only in an answer that is nothing but tool calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: str | int | None
    token_ids: NotRequired[list[int]]


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    decoding: ResolvedDecoding
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None] | None]
    prompt_token_ids: NotRequired[list[int]]
    warnings: NotRequired[list[str]]
    trace: NotRequired[list[dict[str, Any]]]


class ChatDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str
    tool_calls: list[ToolCallDelta]


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    stop_reason: NotRequired[str | int | None]
    token_ids: NotRequired[list[int]]


class ChatCompletionChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    decoding: NotRequired[ResolvedDecoding]
    prompt_token_ids: NotRequired[list[int]]
    warnings: NotRequired[list[str]]
    trace: NotRequired[list[dict[str, Any]]]
