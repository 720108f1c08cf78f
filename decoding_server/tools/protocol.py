"""The wire format of tool calling: fields of a chat request, and the entries of `tool_calls` in an answer.

    class ChatCompletionRequest(GenerationRequest, ToolFields): ...
    class ChatMessage(BaseModel):
        tool_calls: list[AssistantToolCall] | None = None   # with `check_tool_turn` in an after-validator

What a client makes for us (tools, tool_choice) is closed: an unknown key is refused. What it merely sends back (a
message's tool calls, which other servers decorate) is open.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator
from typing_extensions import TypedDict

from decoding_server.protocol.sampling import invalid

MAX_TOOLS = 128
NAME_PATTERN = r"^[A-Za-z0-9_.:/-]{1,128}$"
"""Of tool names. OpenAI's (letters, digits, `_`, `-`, at most 64) and those of tool servers that use dots or paths."""

ToolName = Annotated[str, Field(pattern=NAME_PATTERN)]


class FunctionDefinition(BaseModel):
    """A tool: `parameters` is the JSON schema of its arguments; absent means that it takes none.

    strict: the arguments of a forced call always follow the schema; of a call that the model chose to make, never for
    certain. The field is accepted and changes neither.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _describes_an_object(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value.get("type", "object") != "object":
            raise invalid("must be a JSON schema with 'type': 'object'")
        return value


class Tool(BaseModel):
    """Something that the model may call."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: str


class ToolReference(BaseModel):
    """A tool of the request, by name."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    function: FunctionName


class AllowedTools(BaseModel):
    """A subset of the request's tools; the others are treated as absent."""

    model_config = ConfigDict(strict=True, extra="forbid")

    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolReference], Field(min_length=1)]


class ToolChoice(BaseModel):
    """Whether the model calls tools: "none", "auto", "required", a function to call, or a subset of the tools.

    A string on the wire becomes the `type` here.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["none", "auto", "required", "function", "allowed_tools"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_the_wire(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in ("none", "auto", "required"):
                raise invalid("must be 'none', 'auto', 'required' or an object")
            return {"type": value}
        if not isinstance(value, dict):
            return value
        kind = value.get("type")
        if kind not in ("function", "allowed_tools"):
            raise invalid("must be 'function' or 'allowed_tools'", "type")
        if value.get(kind) is None:
            raise invalid("is missing", kind)
        for other in {"function", "allowed_tools"} - {kind}:
            if value.get(other) is not None:
                raise invalid(f"is not allowed when the type is '{kind}'", other)
        return value


_REFERENCE_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
            "additionalProperties": False,
        },
    },
    "required": ["type", "function"],
    "additionalProperties": False,
}
_TOOL_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        _REFERENCE_SCHEMA,
        {
            "type": "object",
            "properties": {
                "type": {"const": "allowed_tools"},
                "allowed_tools": {
                    "type": "object",
                    "properties": {
                        "mode": {"enum": ["auto", "required"]},
                        "tools": {"type": "array", "items": _REFERENCE_SCHEMA, "minItems": 1},
                    },
                    "required": ["mode", "tools"],
                    "additionalProperties": False,
                },
            },
            "required": ["type", "allowed_tools"],
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}


class ToolFields(BaseModel):
    """The fields of a chat request that are about tools. An empty list of tools is none."""

    model_config = ConfigDict(strict=True, extra="ignore")

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[ToolChoice | None, WithJsonSchema(_TOOL_CHOICE_SCHEMA)] = Field(
        None, description="Absent means 'auto' if there are tools."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: the answer has one call at most.")

    @model_validator(mode="after")
    def _tools_and_choice_agree(self) -> "ToolFields":
        names = [tool.function.name for tool in self.tools or []]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise invalid(f"is '{name}', the name of an earlier tool", f"tools[{index}].function.name")
        choice = self.tool_choice
        if choice is None or choice.type in ("none", "auto"):
            return self
        if not names:
            raise invalid("is only allowed when tools are given", "tool_choice")
        if choice.function is not None and choice.function.name not in names:
            raise invalid(f"'{choice.function.name}' is not one of the tools", "tool_choice.function.name")
        for index, reference in enumerate(choice.allowed_tools.tools if choice.allowed_tools is not None else []):
            if reference.function.name not in names:
                field = f"tool_choice.allowed_tools.tools[{index}].function.name"
                raise invalid(f"'{reference.function.name}' is not one of the tools", field)
        return self


class CalledFunction(BaseModel):
    """`arguments` is JSON in a string."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str
    arguments: str


class AssistantToolCall(BaseModel):
    """A call that an earlier answer made, sent back by the client."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


def check_tool_turn(
    role: str, content: str | None, tool_calls: list[AssistantToolCall] | None, tool_call_id: str | None
) -> None:
    """Raises pydantic's error, naming the field, unless a message's fields fit its role.

    Only an assistant makes calls, and then needs no content; a `tool` message needs content and the call it answers.
    """
    if tool_calls and role != "assistant":
        raise invalid("is only allowed in an assistant message", "tool_calls")
    if role == "tool" and tool_call_id is None:
        raise invalid("is missing", "tool_call_id")
    if content is None and not tool_calls:
        raise invalid("is missing", "content")


class FunctionCall(TypedDict):
    name: str
    arguments: str


class ToolCall(TypedDict):
    """An entry of an answer's `message.tool_calls`."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class FunctionCallDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """An entry of a chunk's `delta.tool_calls`; clients join the pieces by `index`."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionCallDelta
