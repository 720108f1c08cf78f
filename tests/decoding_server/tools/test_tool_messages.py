"""A call's arguments on the way to the template: JSON in a string becomes an object."""

import copy
from typing import Any

import pytest

from decoding_server.errors import InvalidField
from decoding_server.tools.messages import messages_for_template
from models.chat_template import ChatTemplate


def call(arguments: str, name: str = "search") -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_arguments_become_objects_and_the_rest_stays() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call('{"a": {"b": [1, "é"]}}'), call(" "), call("")]},
        {"role": "tool", "content": "r", "tool_call_id": "call_1"},
    ]
    before = copy.deepcopy(messages)
    converted = messages_for_template(messages)
    assert messages == before
    assert [converted[0], converted[2]] == [messages[0], messages[2]]
    assert [entry["function"]["arguments"] for entry in converted[1]["tool_calls"]] == [{"a": {"b": [1, "é"]}}, {}, {}]
    assert converted[1]["tool_calls"][0]["id"] == "call_1"
    assert converted[1]["tool_calls"][0]["function"]["name"] == "search"


@pytest.mark.parametrize("none", [None, []])
def test_a_message_without_calls_has_no_such_key(none: Any) -> None:
    """Templates ask whether `tool_calls` is defined."""
    assert messages_for_template([{"role": "assistant", "content": "x", "tool_calls": none}]) == [
        {"role": "assistant", "content": "x"}
    ]


def test_a_template_renders_them() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}{% endfor %})"
        "{% endfor %}{% endfor %}",
        {},
    )
    messages = [{"role": "assistant", "content": "", "tool_calls": [call('{"q": "a\\nb"}')]}]
    assert template.render(messages_for_template(messages)) == 'search(q="a\\nb")'


@pytest.mark.parametrize(
    "arguments",
    ['{"a": ', "{'a': 1}", "[1]", '"x"', "null", "1", '{"a": NaN}', '{"a": "\\ud800"}', '{"a":' * 100_000, "{} {}"],
)
def test_other_arguments_are_refused_by_name(arguments: str) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call("{}"), call(arguments)]},
    ]
    with pytest.raises(InvalidField) as caught:
        messages_for_template(messages)
    assert caught.value.param == "messages[1].tool_calls[1].function.arguments"
    assert str(caught.value).isprintable()
