"""The wire types: what openai-python sends is taken, what is wrong is a 400 that names the field."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessage
from pydantic import BaseModel, TypeAdapter, model_validator

from decoding_server.errors import InvalidField
from decoding_server.request_body import validate
from decoding_server.tools.events import CallArguments, CallStart, call_delta, whole_answer
from decoding_server.tools.protocol import (
    AssistantToolCall,
    ToolCall,
    ToolChoice,
    ToolFields,
    check_tool_turn,
)


def tool(name: str = "now", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


ALLOWED = {"mode": "auto", "tools": [tool()]}


@pytest.mark.parametrize(
    "choice", [None, "none", "auto", "required", tool(), {"type": "allowed_tools", "allowed_tools": ALLOWED}]
)
def test_choices(choice: Any) -> None:
    parsed = validate(ToolFields, {"tools": [tool()], "tool_choice": choice}).tool_choice
    kind = choice["type"] if isinstance(choice, dict) else choice
    assert (parsed.type if parsed is not None else None) == kind


def test_a_full_definition() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    fields = validate(ToolFields, {"tools": [tool("a.b/c-d_e:f", description="x", parameters=schema, strict=None)]})
    assert fields.tools is not None
    assert fields.tools[0].function.parameters == schema


def test_no_tools_ask_for_nothing() -> None:
    bodies: list[dict[str, Any]] = [
        {},
        {"tools": None},
        {"tools": []},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": False},
    ]
    for body in bodies:
        assert not validate(ToolFields, body).tools


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [tool(f"t{i}") for i in range(129)]}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [tool(), {**tool("b"), "x": 1}]}, "tools[1].x"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool("x" * 129)]}, "tools[0].function.name"),
        ({"tools": [tool("now\n")]}, "tools[0].function.name"),
        ({"tools": [tool(1)]}, "tools[0].function.name"),  # type: ignore[arg-type]
        ({"tools": [tool(), tool()]}, "tools[1].function.name"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters"),
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [tool(argument={})]}, "tools[0].function.argument"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": tool(), "tools": []}, "tool_choice"),
        ({"tool_choice": "any", "tools": [tool()]}, "tool_choice"),
        ({"tool_choice": 1, "tools": [tool()]}, "tool_choice"),
        ({"tool_choice": {}, "tools": [tool()]}, "tool_choice.type"),
        ({"tool_choice": {"type": "auto"}, "tools": [tool()]}, "tool_choice.type"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "now"}}, "tools": [tool()]}, "tool_choice.type"),
        ({"tool_choice": {"type": "function"}, "tools": [tool()]}, "tool_choice.function"),
        ({"tool_choice": {"type": "function", "name": "now"}, "tools": [tool()]}, "tool_choice.function"),
        ({"tool_choice": {**tool(), "x": 1}, "tools": [tool()]}, "tool_choice.x"),
        ({"tool_choice": {**tool(), "allowed_tools": ALLOWED}, "tools": [tool()]}, "tool_choice.allowed_tools"),
        ({"tool_choice": {"type": "function", "function": {}}, "tools": [tool()]}, "tool_choice.function.name"),
        ({"tool_choice": tool("later"), "tools": [tool()]}, "tool_choice.function.name"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {**ALLOWED, "mode": "none"}}, "tools": [tool()]},
            "tool_choice.allowed_tools.mode",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}, "tools": [tool("later")]},
            "tool_choice.allowed_tools.tools[0].function.name",
        ),
    ],
)
def test_faults_name_the_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        validate(ToolFields, body)
    assert caught.value.param == param
    assert f"'{param}'" in str(caught.value)


def test_the_schema_of_a_choice_is_that_of_the_wire() -> None:
    """Not that of the class, which has a `type` for what is a string there."""
    schema = ToolFields.model_json_schema()
    assert {"enum": ["none", "auto", "required"]} in schema["properties"]["tool_choice"]["anyOf"]
    assert ToolChoice.__name__ not in schema.get("$defs", {})


class Turn(BaseModel):
    """A message as the chat endpoint has it."""

    role: str
    content: str | None = None
    tool_calls: list[AssistantToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "Turn":
        check_tool_turn(self.role, self.content, self.tool_calls, self.tool_call_id)
        return self


CALL = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": "Hm.", "tool_calls": [{**CALL, "index": 0}]},
        {"role": "assistant", "content": "Hm.", "tool_calls": []},
        {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "now", "arguments": ""}}]},
        {"role": "tool", "content": "12:00", "tool_call_id": "call_1"},
        {"role": "user", "content": "", "tool_calls": []},
    ],
)
def test_turns(turn: dict[str, Any]) -> None:
    assert validate(Turn, turn).role == turn["role"]


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "tool_calls"),
        ({"role": "tool", "content": "x", "tool_calls": [CALL], "tool_call_id": "call_1"}, "tool_calls"),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        ({"role": "tool", "tool_call_id": "call_1"}, "content"),
        ({"role": "assistant"}, "content"),
        ({"role": "assistant", "tool_calls": []}, "content"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": None}]}, "tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, "tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{"id": "x", "type": "function"}]}, "tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "now", "arguments": {}}}]},
            "tool_calls[0].function.arguments",
        ),
    ],
)
def test_faults_of_turns_name_the_field(turn: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        validate(Turn, turn)
    assert caught.value.param == param


def test_openai_python_reads_our_calls() -> None:
    events: list[CallStart | CallArguments] = [
        CallStart(0, "call_1", "now"),
        CallArguments(0, "{"),
        CallArguments(0, "}"),
    ]
    _, calls = whole_answer(events)
    assert TypeAdapter(list[ToolCall]).validate_python(calls) == [CALL]
    message = ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
    )
    assert message.tool_calls is not None
    assert message.tool_calls[0].type == "function"
    assert message.tool_calls[0].function.arguments == "{}"
    choices = [
        {"index": 0, "delta": {"tool_calls": [call_delta(event)]}, "finish_reason": None, "logprobs": None}
        for event in events
    ]
    chunk = ChatCompletionChunk.model_validate(
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
    )
    deltas = [entry for choice in chunk.choices for entry in choice.delta.tool_calls or []]
    assert [(delta.index, delta.id, delta.function and delta.function.arguments) for delta in deltas] == [
        (0, "call_1", ""),
        (0, None, "{"),
        (0, None, "}"),
    ]
