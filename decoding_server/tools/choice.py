"""From a request's tools and tool_choice to what the template, the decoder and the parser need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decoding_server.errors import InvalidField
from decoding_server.tools.formats import ToolCallFormat
from decoding_server.tools.protocol import FunctionDefinition, Tool, ToolChoice

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """A call of one tool: prefix, then JSON that follows `schema`, then suffix.

    `schema` is the tool's own, not part of a larger one, so that references inside it (`#/$defs/...`) hold.
    """

    prefix: str
    schema: dict[str, Any]
    suffix: str


@dataclass(frozen=True, slots=True)
class ForcedCalls:
    """The language of an answer that must be calls: begin, call (separator call)*, end, each call one of `calls`.

    separator: None where exactly one call is allowed. Every text of this language is parsed into calls only.
    """

    begin: str
    calls: tuple[ForcedCall, ...]
    separator: str | None
    end: str


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """What a request's tools come to.

    template_tools: for the chat template, None if the model is not to know any. parser_format: None if the answer is
    all content. forced: None if the model is free not to call.
    """

    template_tools: list[dict[str, Any]] | None = None
    tool_names: frozenset[str] = frozenset()
    parser_format: ToolCallFormat | None = None
    parallel: bool = True
    forced: ForcedCalls | None = None


def plan_tools(
    tools: Sequence[Tool] | None,
    tool_choice: ToolChoice | None,
    parallel_tool_calls: bool | None,
    form: ToolCallFormat | None,
) -> ToolPlan:
    """Takes fields that agree with each other (`ToolFields` has checked them) and the served model's format, if it has
    one. With the choice "none" the model does not see the tools.

    A function by name is called exactly once; "required" means once or more, as far as parallel calls are allowed.
    Raises InvalidField if tools are to be used and the model has no format to call them in.
    """
    if not tools or (tool_choice is not None and tool_choice.type == "none"):
        return ToolPlan()
    if form is None:
        raise InvalidField(
            "'tools' is not supported for this model: its chat template has no known format of tool calls.",
            "tools",
            "unsupported_parameter",
        )
    parallel = parallel_tool_calls is not False
    offered = [tool.function for tool in tools]
    forced = None
    if tool_choice is not None:
        callable_, required = offered, tool_choice.type == "required"
        if tool_choice.allowed_tools is not None:
            allowed = {reference.function.name for reference in tool_choice.allowed_tools.tools}
            offered = callable_ = [function for function in offered if function.name in allowed]
            required = tool_choice.allowed_tools.mode == "required"
        elif tool_choice.function is not None:
            callable_ = [function for function in offered if function.name == tool_choice.function.name]
            required, parallel = True, False
        if required:
            forced = forced_calls(callable_, form, parallel=parallel)
    return ToolPlan(
        [_for_template(function) for function in offered],
        frozenset(function.name for function in offered),
        form,
        parallel,
        forced,
    )


def forced_calls(functions: Sequence[FunctionDefinition], form: ToolCallFormat, *, parallel: bool) -> ForcedCalls:
    """The answers that are calls of the given functions in the given format."""
    layout = form.layout
    calls = tuple(
        ForcedCall(
            layout.before_name + function.name + layout.after_name, _arguments_schema(function), layout.after_arguments
        )
        for function in functions
    )
    return ForcedCalls(layout.begin, calls, layout.separator if parallel else None, layout.end)


def _arguments_schema(function: FunctionDefinition) -> dict[str, Any]:
    if function.parameters is None:
        return NO_PARAMETERS
    return {"type": "object", **function.parameters}


def _for_template(function: FunctionDefinition) -> dict[str, Any]:
    """The tool in the shape that templates are written for: always with parameters, never with `strict`."""
    definition: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        definition["description"] = function.description
    definition["parameters"] = {"type": "object", "properties": {}} | (function.parameters or {})
    return {"type": "function", "function": definition}
