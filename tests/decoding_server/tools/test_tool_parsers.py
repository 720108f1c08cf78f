"""Parsers of tool calls: whole answers, every split of them, and what is no call after all."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding_server.tools.events import CallArguments, CallStart, ContentText, Event, call_delta, whole_answer
from decoding_server.tools.formats import FORMATS

TOOLS = ("get_weather", "search", "now")
Calls = list[tuple[str, str]]


def events_of(form: str, pieces: Sequence[str], **options: Any) -> list[list[Event]]:
    """The events of each push, and of finish."""
    numbers = itertools.count()
    parser = FORMATS[form].create_parser(TOOLS, new_id=lambda: f"id{next(numbers)}", **options)
    return [*(parser.push(piece) for piece in pieces), parser.finish()]


def parse(form: str, pieces: Sequence[str], **options: Any) -> tuple[str, Calls]:
    content, calls = whole_answer(itertools.chain(*events_of(form, pieces, **options)))
    assert [call["id"] for call in calls] == [f"id{index}" for index in range(len(calls))]
    return content, [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def assert_parsed(form: str, text: str, content: str, calls: Calls) -> None:
    """The result, for the whole text, for the text in two pieces at every position, and character by character."""
    expected = (content, calls)
    assert parse(form, [text]) == expected
    assert parse(form, list(text)) == expected
    for cut in range(1, len(text)):
        assert parse(form, [text[:cut], text[cut:]]) == expected, cut


TRICKY = (
    '{"q": "a \\"quoted\\" } ] </tool_call> [TOOL_CALLS] \\\\", "deep": {"x": [{"y": {}}, []]}, "ü": "日本 \\u00e9 🎉"}'
)
"""Brackets, quotes, escapes, markers and Unicode where they mean nothing."""

HERMES = {
    "one call": (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        "",
        [("get_weather", '{"city": "Paris"}')],
    ),
    "white space of the arguments is kept": (
        '<tool_call>{"name":"search","arguments":{ "a" :\n1 }\n}</tool_call>',
        "",
        [("search", '{ "a" :\n1 }')],
    ),
    "several calls": (
        '<tool_call>{"name":"now","arguments":{}}</tool_call>\n<tool_call>\n{"name":"search","arguments":{"q":1}}\n'
        "</tool_call>\n",
        "",
        [("now", "{}"), ("search", '{"q":1}')],
    ),
    "text before, between and after": (
        'Let me see.\n\n<tool_call>{"name":"now","arguments":{}}</tool_call>\nAnd:\n'
        '<tool_call>{"name":"search","arguments":{}}</tool_call> Done. ',
        "Let me see.\nAnd: Done. ",
        [("now", "{}"), ("search", "{}")],
    ),
    "tricky strings": (
        f'<tool_call>{{"name":"search","arguments":{TRICKY}}}</tool_call>',
        "",
        [("search", TRICKY)],
    ),
    "arguments before the name": (
        '<tool_call>{"arguments": {"q": "x"}, "name": "search"}</tool_call>',
        "",
        [("search", '{"q": "x"}')],
    ),
    "keys that mean nothing here": (
        '<tool_call>{"id": "c1", "x": [1, {"name": "now"}], "name": "search", "arguments": {"q": 1}, "z": null}'
        "</tool_call>",
        "",
        [("search", '{"q": 1}')],
    ),
    "arguments in a string": (
        '<tool_call>{"name":"search","arguments":"{\\"q\\": \\"a\\\\nb\\"}"}</tool_call>',
        "",
        [("search", '{"q": "a\\nb"}')],
    ),
    "a string that holds no object": (
        '<tool_call>{"name":"search","arguments":"Paris"}</tool_call>',
        "",
        [("search", '"Paris"')],
    ),
    "a string with half a surrogate pair": (
        '<tool_call>{"name":"search","arguments":"{\\"a\\": \\"\\ud800\\"}"}</tool_call>',
        "",
        [("search", '"{\\"a\\": \\"\\ud800\\"}"')],
    ),
    "no arguments, in four ways": (
        '<tool_call>{"name":"now","arguments":{}}</tool_call><tool_call>{"name":"now"}</tool_call>'
        '<tool_call>{"name":"now","arguments":null}</tool_call><tool_call>{"arguments":"","name":"now"}</tool_call>',
        "",
        [("now", "{}")] * 4,
    ),
    "a list or a number as arguments": (
        '<tool_call>{"name":"search","arguments":[1, "]"]}</tool_call><tool_call>{"name":"now","arguments":-1.5e3}'
        "</tool_call>",
        "",
        [("search", '[1, "]"]'), ("now", "-1.5e3")],
    ),
    "an unknown tool": (
        '<tool_call>{"name":"fly","arguments":{"to":"Mars"}}</tool_call>',
        "",
        [("fly", '{"to":"Mars"}')],
    ),
    "closing tags missing": (
        '<tool_call>{"name":"now","arguments":{}}<tool_call>{"name":"search","arguments":{}}',
        "",
        [("now", "{}"), ("search", "{}")],
    ),
    "one bracket too many": (
        '<tool_call>{"name":"now","arguments":{}}}</tool_call>\n<tool_call>{"name":"search","arguments":{}}</tool_call>',
        "}",
        [("now", "{}"), ("search", "{}")],
    ),
    "cut off in the closing tag": ('<tool_call>{"name":"now","arguments":{}}\n</tool_c', "", [("now", "{}")]),
    "cut off before the outer bracket": ('<tool_call>{"name":"now","arguments":{} ', "", [("now", "{}")]),
    "cut off in the arguments": (
        '<tool_call>{"name":"search","arguments":{"q": "x\\',
        "",
        [("search", '{"q": "x\\')],
    ),
    "cut off in the name": ('Hm. <tool_call>{"name":"sea', 'Hm. <tool_call>{"name":"sea', []),
    "cut off in the second call": (
        '<tool_call>{"name":"now","arguments":{}}</tool_call>\n<tool_call>{"name":',
        '\n<tool_call>{"name":',
        [("now", "{}")],
    ),
    "cut off in the tag": ("a <tool_", "a <tool_", []),
    "wrong brackets in the arguments": (
        '<tool_call>{"name":"search","arguments":{"q": [1}}</tool_call> on',
        "}} on",
        [("search", '{"q": [1')],
    ),
    "no JSON": ("<tool_call>search(q)</tool_call>", "<tool_call>search(q)</tool_call>", []),
    "JSON without a name": (
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        [],
    ),
    "a bad call before a good one": (
        '<tool_call>{oops}</tool_call>\n<tool_call>{"name":"now","arguments":{}}</tool_call>',
        "<tool_call>{oops}</tool_call>",
        [("now", "{}")],
    ),
    "a name that never ends": (
        '<tool_call>{"name":"se</tool_call>\n<tool_call>{"name":"now","arguments":{}}</tool_call>',
        '<tool_call>{"name":"se</tool_call>',
        [("now", "{}")],
    ),
    "look-alikes": (
        "if a < b: <<tool_call <tool_calls> </tool_call> <tool> {'name': 1}\n",
        "if a < b: <<tool_call <tool_calls> </tool_call> <tool> {'name': 1}\n",
        [],
    ),
    "a doubled bracket before the tag": ('<<tool_call>{"name":"now"}', "<", [("now", "{}")]),
    "white space only": (" \n ", " \n ", []),
    "nothing": ("", "", []),
}

CODE = """Here:
```c
int main(void) {
  if (x) { return "{}"[0]; }
{
}
{"key": 1}
{ "names": 2 }
{"name": "Bob", "parameters": {}}
```
f"{name}" {{x}} {"name": "now", "parameters": {}}
"""

LLAMA3 = {
    "one call": (
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        "",
        [("get_weather", '{"city": "Paris"}')],
    ),
    "behind the tag": ('<|python_tag|>{"name": "now", "parameters": {}}', "", [("now", "{}")]),
    "several calls": (
        '{"name":"now","parameters":{}}; {"name":"search","parameters":{"q":";"}};{"name":"now","parameters":{}}',
        "",
        [("now", "{}"), ("search", '{"q":";"}'), ("now", "{}")],
    ),
    "several calls behind tags": (
        '<|python_tag|>{"name":"now","parameters":{}};<|python_tag|>{"name":"search","parameters":{}}; '
        '{"name":"fly","parameters":{}}',
        "",
        [("now", "{}"), ("search", "{}"), ("fly", "{}")],
    ),
    "several calls without a separator": (
        '{"name":"now","parameters":{}}\n\n{"name":"search","parameters":{}}{"name":"now","parameters":{}}',
        "",
        [("now", "{}"), ("search", "{}"), ("now", "{}")],
    ),
    "arguments and type": (
        '{"type": "function", "name": "search", "arguments": {"q": 1}}',
        "",
        [("search", '{"q": 1}')],
    ),
    "text before and after": (
        'I look it up.\n  {"name": "search", "parameters": {"q": 1}} That is it.',
        "I look it up. That is it.",
        [("search", '{"q": 1}')],
    ),
    "text before the tag": (
        'Well: <|python_tag|>{"name": "search", "parameters": {}}',
        "Well:",
        [("search", "{}")],
    ),
    "tricky strings": (f'{{"name":"search","parameters":{TRICKY}}}', "", [("search", TRICKY)]),
    "parameters first": ('{"parameters": {"q": 1}, "name": "search"}', "", [("search", '{"q": 1}')]),
    "parameters in a string": (
        '{"name": "search", "parameters": "{\\"q\\": 1}"}',
        "",
        [("search", '{"q": 1}')],
    ),
    "an unknown tool": (
        '{"name": "fly", "parameters": {"to": "Mars"}}',
        '{"name": "fly", "parameters": {"to": "Mars"}}',
        [],
    ),
    "a tool whose name another begins with": ('{"name": "no", "parameters": {}}',) * 2 + ([],),
    "an unknown tool behind the tag": ('<|python_tag|>{"name":"fly","parameters":{}}', "", [("fly", "{}")]),
    "cut off in the parameters": ('{"name":"search","parameters":{"q": 1', "", [("search", '{"q": 1')]),
    "cut off before the parameters": ('{"name":"search","parameters"', '{"name":"search","parameters"', []),
    "cut off after a separator": ('{"name":"now","parameters":{}}; ', "", [("now", "{}")]),
    "text after a separator": ('{"name":"now","parameters":{}}; done', "; done", [("now", "{}")]),
    "cut off in the second call": (
        '{"name":"now","parameters":{}}; {"name": "se',
        '; {"name": "se',
        [("now", "{}")],
    ),
    "code": (CODE, CODE, []),
    "code behind the tag": ('<|python_tag|>print("{}")', '<|python_tag|>print("{}")', []),
    "look-alikes": ("a <|python b <|python_tag| c", "a <|python b <|python_tag| c", []),
}

MISTRAL = {
    "one call": (
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        "",
        [("get_weather", '{"city": "Paris"}')],
    ),
    "several calls, ids, white space": (
        '[TOOL_CALLS] [{"name":"now","arguments":{},"id":"abcdefghi"} , {"arguments":{"q":"]"},"name":"search"}]\n',
        "",
        [("now", "{}"), ("search", '{"q":"]"}')],
    ),
    "text before and after": (
        'See [1].\n[TOOL_CALLS][{"name":"now","arguments":{}}] Done.',
        "See [1]. Done.",
        [("now", "{}")],
    ),
    "by name": ('[TOOL_CALLS]search{"q": 1}', "", [("search", '{"q": 1}')]),
    "by name, several": (
        'Hm.[TOOL_CALLS]search[ARGS]{"q": {"x": "[TOOL_CALLS]"}}[TOOL_CALLS]now[CALL_ID]a1b2c3d4e[ARGS]{} \n'
        "[TOOL_CALLS] now {}",
        "Hm.",
        [("search", '{"q": {"x": "[TOOL_CALLS]"}}'), ("now", "{}"), ("now", "{}")],
    ),
    "one object without a list": ('[TOOL_CALLS]{"name":"now","arguments":{}}', "", [("now", "{}")]),
    "tricky strings": (f'[TOOL_CALLS][{{"name":"search","arguments":{TRICKY}}}]', "", [("search", TRICKY)]),
    "tricky strings by name": (f"[TOOL_CALLS]search[ARGS]{TRICKY}", "", [("search", TRICKY)]),
    "arguments in a string": (
        '[TOOL_CALLS][{"name":"search","arguments":"{\\"q\\": 1}"}]',
        "",
        [("search", '{"q": 1}')],
    ),
    "an unknown tool": (
        '[TOOL_CALLS][{"name":"fly","arguments":{}}][TOOL_CALLS]fly[ARGS]{}',
        "",
        [("fly", "{}"), ("fly", "{}")],
    ),
    "cut off in the arguments": (
        '[TOOL_CALLS][{"name":"search","arguments":{"q": [',
        "",
        [("search", '{"q": [')],
    ),
    "cut off in the arguments by name": ("[TOOL_CALLS]search{", "", [("search", "{")]),
    "cut off after the name": ("[TOOL_CALLS]search[ARGS]", "[TOOL_CALLS]search[ARGS]", []),
    "cut off before the last bracket": ('[TOOL_CALLS][{"name":"now","arguments":{}}', "", [("now", "{}")]),
    "cut off in the second call": (
        '[TOOL_CALLS][{"name":"now","arguments":{}}, {"name":',
        ', {"name":',
        [("now", "{}")],
    ),
    "no calls": ("[TOOL_CALLS][] so", "[TOOL_CALLS][] so", []),
    "prose after the marker": ("[TOOL_CALLS]I can't.", "[TOOL_CALLS]I can't.", []),
    "arguments by name that are no object": ("[TOOL_CALLS]now[ARGS][1]",) * 2 + ([],),
    "look-alikes": ("[TOOL_CALLS [TOOL_CALL] [[TOOL] a[0] = [1, 2] [TOOL_",) * 2 + ([],),
    "a doubled bracket before the marker": ("[[TOOL_CALLS]now{}", "[", [("now", "{}")]),
}


@pytest.mark.parametrize("case", HERMES)
def test_hermes(case: str) -> None:
    assert_parsed("hermes", *HERMES[case])


@pytest.mark.parametrize("case", LLAMA3)
def test_llama3(case: str) -> None:
    assert_parsed("llama3", *LLAMA3[case])


@pytest.mark.parametrize("case", MISTRAL)
def test_mistral(case: str) -> None:
    assert_parsed("mistral", *MISTRAL[case])
    assert_parsed("mistral-v11", *MISTRAL[case])


FRAGMENTS = {
    "hermes": ["<tool_call>", "</tool_call>", "<", "tool_call>"],
    "llama3": ["<|python_tag|>", "<|", ";", "; "],
    "mistral": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[", "]", "now"],
}
COMMON = [
    '{"name": "now", "arguments": {}}',
    '{"arguments": {"a": [1]}, "name": "search"}',
    '{"name": "search", "parameters": {"q": "x',
    '"}}',
    '{"name": "fly", "parameters": "{}"}',
    '{"name": ',
    "{",
    "}",
    '"',
    "\\",
    " ",
    "\n",
    ",",
    "text",
    "é🎉",
]


@st.composite
def answers_in_pieces(draw: st.DrawFn, form: str) -> list[str]:
    """An answer made of markers, calls and parts of both, cut anywhere."""
    text = "".join(draw(st.lists(st.sampled_from(FRAGMENTS[form] * 3 + COMMON), max_size=14)))
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]


@pytest.mark.parametrize("form", FRAGMENTS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_splits_do_not_matter(form: str, data: st.DataObject) -> None:
    pieces = data.draw(answers_in_pieces(form))
    text = "".join(pieces)
    content, calls = parse(form, [text])
    assert parse(form, pieces) == (content, calls)
    if not calls:
        assert content == text


@pytest.mark.parametrize("form", ["hermes", "mistral-v11", "mistral"])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    turns=st.lists(
        st.tuples(
            st.text(alphabet="ab {}:\"',;\n\\é").filter(str.strip),
            st.sampled_from(TOOLS),
            st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none(), max_size=3),
        ),
        max_size=4,
    ),
    end=st.text(alphabet="ab {}:\"',;\n\\é").filter(str.strip),
)
def test_text_and_calls_in_turn(form: str, turns: list[tuple[str, str, dict[str, Any]]], end: str) -> None:
    layout = FORMATS[form].layout
    calls = [(name, json.dumps(arguments, ensure_ascii=False)) for _, name, arguments in turns]
    text = "".join(
        words
        + (layout.begin + layout.before_name + name + layout.after_name + arguments + layout.after_arguments)
        + layout.end
        for (words, _, _), (name, arguments) in zip(turns, calls, strict=True)
    )
    assert parse(form, [text + end]) == ("".join(words.rstrip(" \n") for words, _, _ in turns) + end, calls)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(alphabet="ab <>{}[]\"':,;\n|/\\é"))
def test_ordinary_text_is_left_alone(text: str) -> None:
    for form in FRAGMENTS:
        assert parse(form, [text]) == (text, [])


def test_arguments_come_as_they_are_written() -> None:
    pieces = ['<tool_call>{"name": "search", "arguments": ', '{"q"', ': "a', 'b"}', "}", "</tool_call>"]
    assert events_of("hermes", pieces) == [
        [],
        [CallStart(0, "id0", "search"), CallArguments(0, '{"q"')],
        [CallArguments(0, ': "a')],
        [CallArguments(0, 'b"}')],
        [],
        [],
        [],
    ]


def test_only_what_may_become_a_call_is_held_back() -> None:
    assert events_of("hermes", ["Hello", " ", "<b", ">", "<tool", "_x"]) == [
        [ContentText("Hello")],
        [],
        [ContentText(" <b")],
        [ContentText(">")],
        [],
        [ContentText("<tool_x")],
        [],
    ]
    assert events_of("llama3", ['{"na', "x", " {", '{"name": "s', "ing"]) == [
        [],
        [ContentText('{"nax')],
        [ContentText(" {")],
        [ContentText('{"name": "s')],  # not at the beginning of a line
        [ContentText("ing")],
        [],
    ]
    assert events_of("llama3", ['{"name": "s', "ing"]) == [[], [ContentText('{"name": "sing')], []]
    assert events_of("mistral", ["a[", "0]", "[TOOL_CALLS]", "no", "w?"]) == [
        [ContentText("a")],
        [ContentText("[0]")],
        [],
        [],
        [ContentText("[TOOL_CALLS]now?")],
        [],
    ]


def test_without_parallel_calls_only_the_first_is_reported() -> None:
    text = '[TOOL_CALLS][{"name":"now","arguments":{}},{"name":"search","arguments":{"q":1}},{"name":"now"}] end'
    assert parse("mistral", list(text), parallel=False) == (" end", [("now", "{}")])


def test_has_calls() -> None:
    parser = FORMATS["hermes"].create_parser(TOOLS)
    parser.push('<tool_call>{"name":"now"')
    assert not parser.has_calls
    parser.push("}")
    assert parser.has_calls


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ('{"name":"search","arguments":{"q":1}}', True),
        ('{"name":"search","arguments":{"q":1}', True),  # the arguments are whole
        ('{"name":"search","arguments":{"q":', False),
        ('{"name":"search","arguments":{"q":"a', False),
        ('{"name":"search","arguments":{"q":]}} text', True),  # the model's own fault, and not the end
        ('{"name":"search"', False),  # no call yet
    ],
)
def test_a_text_that_ends_within_arguments_has_no_calls_to_run(text: str, whole: bool) -> None:
    parser = FORMATS["hermes"].create_parser(TOOLS)
    parser.push(f"<tool_call>{text}")
    parser.finish()
    assert parser.ends_in_calls is whole
    first = FORMATS["mistral"].create_parser(TOOLS, parallel=False)
    first.push(f'[TOOL_CALLS][{{"name":"now","arguments":{{}}}},{text}')
    first.finish()
    assert first.ends_in_calls


def test_names_are_bounded() -> None:
    text = f'<tool_call>{{"name":"{"x" * 1000}"}}'
    assert parse("hermes", [text]) == (text, [])


@pytest.mark.parametrize("form", ["hermes", "mistral"])
def test_many_broken_calls_take_linear_time(form: str) -> None:
    """Each marker begins something that only the end of the text refutes; a rescan for each would take minutes."""
    marker = FORMATS[form].markers[0]
    text = f'{marker}{{"x":"' * 20_000
    assert parse(form, [text]) == (text, [])


def test_deep_arguments() -> None:
    arguments = '{"a":' * 50_000 + "1" + "}" * 50_000
    text = f'<tool_call>{{"name":"search","arguments":{arguments}}}</tool_call>'
    assert parse("hermes", [text]) == ("", [("search", arguments)])
    in_a_string = f'<tool_call>{{"name":"search","arguments":{json.dumps(arguments)}}}</tool_call>'
    assert parse("hermes", [in_a_string]) == ("", [("search", json.dumps(arguments))])


def test_deltas_of_a_stream() -> None:
    assert call_delta(CallStart(1, "call_x", "now")) == {
        "index": 1,
        "id": "call_x",
        "type": "function",
        "function": {"name": "now", "arguments": ""},
    }
    assert call_delta(CallArguments(1, '{"a"')) == {"index": 1, "function": {"arguments": '{"a"'}}
