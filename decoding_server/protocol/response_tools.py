"""Tools of /v1/responses, which are flat where those of chat completions are nested, and their way to the latter."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from decoding_server.protocol.sampling import invalid
from decoding_server.tools.protocol import (
    MAX_TOOLS,
    AllowedTools,
    FunctionDefinition,
    FunctionName,
    Tool,
    ToolChoice,
    ToolReference,
)


class ResponseTool(FunctionDefinition):
    """A function that the model may call; no other type of tool is supported."""

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def _is_a_function(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") != "function":
            raise invalid("only tools of the type 'function' are supported", "type")
        return value

    def as_chat_tool(self) -> Tool:
        definition = self.model_dump(exclude={"type"}, exclude_unset=True)
        return Tool(type="function", function=FunctionDefinition(**definition))


class NamedTool(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    name: str

    def as_chat_reference(self) -> ToolReference:
        return ToolReference(type=self.type, function=FunctionName(name=self.name))


class ResponseToolChoice(BaseModel):
    """ "none", "auto", "required", {"type": "function", "name"}, or {"type": "allowed_tools", "mode", "tools"}.

    A string on the wire becomes the `type` here.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["none", "auto", "required", "function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[NamedTool], Field(min_length=1)] | None = None

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
        needed = {"function": {"name"}, "allowed_tools": {"mode", "tools"}}.get(kind) if isinstance(kind, str) else None
        if needed is None:
            raise invalid("must be 'function' or 'allowed_tools'", "type")
        for name in ("name", "mode", "tools"):
            if (value.get(name) is None) == (name in needed):
                raise invalid("is missing" if name in needed else f"is not allowed with the type '{kind}'", name)
        return value

    def on_the_wire(self) -> Any:
        given: dict[str, Any] = self.model_dump(exclude_none=True)
        return given if len(given) > 1 else self.type

    def as_chat_choice(self) -> ToolChoice:
        if self.name is not None:
            return ToolChoice(type="function", function=FunctionName(name=self.name))
        if self.tools is not None and self.mode is not None:
            references = [tool.as_chat_reference() for tool in self.tools]
            return ToolChoice(type="allowed_tools", allowed_tools=AllowedTools(mode=self.mode, tools=references))
        return ToolChoice.model_validate(self.type)


_REFERENCE_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "name": {"type": "string"}},
    "required": ["type", "name"],
    "additionalProperties": False,
}
_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        _REFERENCE_SCHEMA,
        {
            "type": "object",
            "properties": {
                "type": {"const": "allowed_tools"},
                "mode": {"enum": ["auto", "required"]},
                "tools": {"type": "array", "items": _REFERENCE_SCHEMA, "minItems": 1},
            },
            "required": ["type", "mode", "tools"],
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}


class ResponseToolFields(BaseModel):
    """The fields of a request that are about tools. An empty list of tools is none."""

    model_config = ConfigDict(strict=True, extra="ignore")

    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[ResponseToolChoice | None, WithJsonSchema(_CHOICE_SCHEMA)] = Field(
        None, description="Absent means 'auto'."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: the answer has one call at most.")

    @model_validator(mode="after")
    def _tools_and_choice_agree(self) -> "ResponseToolFields":
        names = [tool.name for tool in self.tools or []]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise invalid(f"is '{name}', the name of an earlier tool", f"tools[{index}].name")
        choice = self.tool_choice
        if choice is None or choice.type in ("none", "auto"):
            return self
        if not names:
            raise invalid("is only allowed when tools are given", "tool_choice")
        if choice.name is not None and choice.name not in names:
            raise invalid(f"'{choice.name}' is not one of the tools", "tool_choice.name")
        for index, tool in enumerate(choice.tools or []):
            if tool.name not in names:
                raise invalid(f"'{tool.name}' is not one of the tools", f"tool_choice.tools[{index}].name")
        return self
