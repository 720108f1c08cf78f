"""What tools and tool_choice come to, and that forced calls are always parsed."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding_server.errors import InvalidField
from decoding_server.request_body import validate
from decoding_server.tools.choice import ToolPlan, plan_tools
from decoding_server.tools.events import whole_answer
from decoding_server.tools.formats import FORMATS
from decoding_server.tools.protocol import ToolFields

WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "$defs": {"city": {"type": "string"}},
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER, "strict": True},
    },
    {"type": "function", "function": {"name": "now"}},
    {"type": "function", "function": {"name": "anything", "parameters": {}}},
]
FOR_TEMPLATE = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "anything", "parameters": {"type": "object", "properties": {}}}},
]
NOW = {"type": "function", "function": {"name": "now"}}


def plan(choice: Any = None, parallel: bool | None = None, form: str = "hermes", tools: Any = TOOLS) -> ToolPlan:
    fields = validate(ToolFields, {"tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel})
    return plan_tools(fields.tools, fields.tool_choice, fields.parallel_tool_calls, FORMATS[form])


@pytest.mark.parametrize("choice", [None, "auto"])
def test_auto_offers_all_tools_and_forces_nothing(choice: str | None) -> None:
    names = frozenset({"get_weather", "now", "anything"})
    assert plan(choice) == ToolPlan(FOR_TEMPLATE, names, FORMATS["hermes"], True, None)
    assert not plan(choice, parallel=False).parallel


def test_none_hides_the_tools() -> None:
    assert plan("none") == ToolPlan()
    assert plan(None, tools=[]) == plan(None, tools=None) == ToolPlan()


def test_required_forces_any_of_the_tools() -> None:
    forced = plan("required").forced
    assert forced is not None
    assert [call.prefix for call in forced.calls] == [
        '<tool_call>\n{"name": "get_weather", "arguments": ',
        '<tool_call>\n{"name": "now", "arguments": ',
        '<tool_call>\n{"name": "anything", "arguments": ',
    ]
    assert [call.schema for call in forced.calls] == [
        WEATHER,
        {"type": "object", "properties": {}, "additionalProperties": False},
        {"type": "object"},
    ]
    assert {call.suffix for call in forced.calls} == {"}\n</tool_call>"}
    assert forced.separator == "\n"


def test_required_without_parallel_calls_is_one_call() -> None:
    forced = plan("required", parallel=False).forced
    assert forced is not None
    assert forced.separator is None


def test_a_named_function_is_called_once_and_the_template_sees_all_tools() -> None:
    named = plan(NOW)
    assert named.template_tools == FOR_TEMPLATE
    assert named.forced is not None
    assert [call.prefix for call in named.forced.calls] == ['<tool_call>\n{"name": "now", "arguments": ']
    assert named.forced.separator is None
    assert not named.parallel


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_hide_the_others(mode: str) -> None:
    allowed = plan({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [NOW]}})
    assert allowed.template_tools == [FOR_TEMPLATE[1]]
    assert allowed.tool_names == {"now"}
    assert (allowed.forced is not None) == (mode == "required")
    if allowed.forced is not None:
        assert [call.prefix for call in allowed.forced.calls] == ['<tool_call>\n{"name": "now", "arguments": ']


def test_a_model_without_a_format_can_not_be_offered_tools() -> None:
    fields = validate(ToolFields, {"tools": TOOLS})
    with pytest.raises(InvalidField) as caught:
        plan_tools(fields.tools, fields.tool_choice, None, None)
    assert caught.value.param == "tools"
    assert plan_tools(fields.tools, validate(ToolFields, {"tool_choice": "none"}).tool_choice, None, None) == ToolPlan()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=6), values, max_size=3),
    max_leaves=8,
)
OBJECTS = st.builds(
    json.dumps,
    st.dictionaries(st.text(max_size=6) | st.sampled_from(["</tool_call>", "[TOOL_CALLS]", "; {"]), JSON, max_size=3),
    ensure_ascii=st.booleans(),
    indent=st.sampled_from([None, 2]),
)


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    chosen=st.lists(st.tuples(st.sampled_from([0, 1, 2]), OBJECTS), min_size=1, max_size=3),
)
def test_forced_calls_are_parsed(form: str, chosen: list[tuple[int, str]]) -> None:
    required = plan("required", form=form)
    forced = required.forced
    assert forced is not None
    assert forced.separator is not None
    text = forced.begin
    text += forced.separator.join(
        forced.calls[index].prefix + arguments + forced.calls[index].suffix for index, arguments in chosen
    )
    text += forced.end
    parser = FORMATS[form].create_parser(required.tool_names)
    content, calls = whole_answer(parser.push(text) + parser.finish())
    assert content == ""
    names = ["get_weather", "now", "anything"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == [
        (names[index], arguments) for index, arguments in chosen
    ]
