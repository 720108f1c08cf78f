"""Items of /v1/responses: what a conversation consists of, on its way in and on its way out.

What a client sends back from an earlier answer (ids, statuses, annotations, log-probabilities) is accepted and ignored,
so that an answer's `output` can be put into the next `input` as it is.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, PlainValidator, WithJsonSchema, model_validator
from typing_extensions import TypedDict

from decoding_server.protocol.chat import TokenLogprobEntry, joined_text
from decoding_server.protocol.sampling import invalid

TEXT_PARTS = ("input_text", "output_text")


def _text(value: Any) -> str | None:
    return joined_text(value, TEXT_PARTS)


_TEXT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"enum": list(TEXT_PARTS)}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
    ]
}
Text = Annotated[str | None, PlainValidator(_text), WithJsonSchema(_TEXT_SCHEMA)]

REQUIRED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}


class InputItem(BaseModel):
    """A message (role and content), a call that the model made (call_id, name, arguments), or what came of one
    (call_id, output). Without a type it is a message."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["message", "function_call", "function_call_output"] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Text = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Text = None

    @property
    def kind(self) -> str:
        return self.type or "message"

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> "InputItem":
        for name in REQUIRED[self.kind]:
            if getattr(self, name) is None:
                raise invalid("is missing", name)
        return self


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprobEntry]


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(TypedDict):
    """content has one part once the item is there."""

    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class FunctionCallItem(TypedDict):
    """A call for the client to run; `call_id` goes into the function_call_output item."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | FunctionCallItem


class ResponseEvent(TypedDict):
    """One event of a stream. Which of the optional fields it has depends on its type; see OpenAI's reference."""

    type: str
    sequence_number: int
    response: NotRequired[dict[str, Any]]
    item: NotRequired[OutputItem]
    item_id: NotRequired[str]
    output_index: NotRequired[int]
    content_index: NotRequired[int]
    part: NotRequired[OutputText]
    delta: NotRequired[str]
    text: NotRequired[str]
    name: NotRequired[str]
    arguments: NotRequired[str]
    logprobs: NotRequired[list[TokenLogprobEntry]]
