"""Structured output and forced tool calls over HTTP: whatever the model would write, the text has the form asked for.

The scripted model draws letters at random, so every form below is the grammar's doing.
"""

import json
import re
from dataclasses import replace

import pytest

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RANDOM = {"prompt": "?|", "max_tokens": 200, "seed": 1}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "additionalProperties": False}}},
]
CALL = {"messages": [{"role": "user", "content": "?"}], "tools": TOOLS, "max_tokens": 200, "seed": 1}


def complete(server, **fields):
    response = server.post(COMPLETIONS, {**RANDOM, **fields})
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def refused(server, path=COMPLETIONS, base=None, **fields):
    response = server.post(path, {**(RANDOM if base is None else base), **fields})
    assert response.status_code == 400, response.text
    return response.json()["error"]["param"]


def valid(text):
    value = json.loads(text)
    assert set(value) == {"name", "age"}
    assert 0 <= value["age"] <= 9
    return value


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}


def test_json_schema_with_n_and_samplers(server):
    choices = complete(server, n=4, response_format=schema_format(SCHEMA), top_p=0.95)
    assert [choice["finish_reason"] for choice in choices] == ["stop"] * 4
    assert len({valid(choice["text"])["name"] for choice in choices}) > 1


def test_json_schema_streams_and_equals_the_whole(server):
    fields = {"response_format": schema_format(SCHEMA)}
    (whole,) = complete(server, **fields)
    reply = server.post(COMPLETIONS, {**RANDOM, **fields, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in reply.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.0}, {"min_tokens": 60}, {"top_k": 1}, {"logit_bias": {"123": -100}}]
)
def test_the_form_wins_over_whatever_else_is_asked(server, fields):
    """min_tokens yields to a form that has ended; a bias against `{` can't keep the object from beginning."""
    (choice,) = complete(server, response_format=schema_format(SCHEMA), max_tokens=450, **fields)
    valid(choice["text"])


def test_the_other_kinds(server):
    (choice,) = complete(server, structured_outputs={"regex": r"[a-c]{3}-\d{2}"})
    assert re.fullmatch(r"[a-c]{3}-\d{2}", choice["text"])
    (choice,) = complete(server, structured_outputs={"choice": ["yes", "no", "nobody"]})
    assert choice["text"] in ("yes", "no", "nobody")
    (choice,) = complete(server, structured_outputs={"grammar": 'start: "(" ("a" | "b")~2..3 ")"'})
    assert re.fullmatch(r"\([ab]{2,3}\)", choice["text"])
    (choice,) = complete(server, structured_outputs={"json": json.dumps(SCHEMA)})
    valid(choice["text"])
    (choice,) = complete(server, response_format={"type": "json_object"}, max_tokens=400)
    assert choice["text"].startswith("{")
    assert choice["finish_reason"] == "length" or isinstance(json.loads(choice["text"]), dict)


def test_text_is_no_form(server):
    assert complete(server, response_format={"type": "text"})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": schema_format({"type": "nonsense"})}, "response_format.json_schema.schema"),
        ({"response_format": schema_format(False)}, "response_format.json_schema.schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "start: nowhere"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "5"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_what_cannot_be_enforced_is_refused(server, fields, param):
    assert refused(server, **fields) == param


@pytest.fixture(scope="module")
def tool_server():
    from live_server import live_server

    with live_server({"tool_call_parser": "hermes"}, max_model_len=2048) as server:
        yield server


def calls_of(server, **fields):
    response = server.post(CHAT, {**CALL, **fields})
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice


@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_are_calls(tool_server, parallel):
    choice = calls_of(tool_server, tool_choice="required", parallel_tool_calls=parallel)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    calls = choice["message"]["tool_calls"]
    assert len(calls) == 1 or parallel
    for call in calls:
        arguments = call["function"]["arguments"]
        assert valid(arguments) if call["function"]["name"] == "weather" else json.loads(arguments) == {}


def test_a_named_function_is_called_and_streams(tool_server):
    named = {"tool_choice": {"type": "function", "function": {"name": "weather"}}}
    (call,) = calls_of(tool_server, **named)["message"]["tool_calls"]
    valid(call["function"]["arguments"])
    with tool_server.client() as client:
        stream = client.chat.completions.create(model="scripted", stream=True, **CALL, **named)
        name, arguments, reason = "", "", None
        for chunk in stream:
            delta = chunk.choices[0].delta
            for piece in delta.tool_calls or ():
                name += piece.function.name or ""
                arguments += piece.function.arguments or ""
            reason = chunk.choices[0].finish_reason or reason
    assert (name, reason) == ("weather", "tool_calls")
    assert arguments == call["function"]["arguments"]


def test_a_call_that_the_model_writes_is_found(tool_server):
    script = '<tool_call>{"name": "stop", "arguments": {}}</tool_call>'
    choice = calls_of(tool_server, messages=[{"role": "user", "content": script}])
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["stop"]
    plain = calls_of(tool_server, messages=[{"role": "user", "content": "just text"}])
    assert (plain["message"]["content"], plain["finish_reason"]) == ("just text", "stop")
    assert "tool_calls" not in plain["message"]
    hidden = calls_of(tool_server, messages=[{"role": "user", "content": script}], tool_choice="none")
    assert hidden["message"]["content"] == script


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_calls_are_counted_as_calls(tool_server, path, stream):
    """In the metrics, and so in the log and in traces, a reply ends as the client is told."""

    def count():
        lines = tool_server.get("/metrics").text.splitlines()
        wanted = (
            'decoding:request_success_total{finished_reason="tool_calls",model_name="scripted",strategy="standard"}'
        )
        return next(float(line.split()[-1]) for line in lines if line.startswith(wanted))

    script = '<tool_call>{"name": "stop", "arguments": {}}</tool_call>'
    bodies = {
        CHAT: {**CALL, "messages": [{"role": "user", "content": script}]},
        "/v1/responses": {"input": script, "tools": [{"type": "function", "name": "stop", "parameters": {}}]},
    }
    before = count()
    assert tool_server.post(path, {**bodies[path], "stream": stream}).status_code == 200
    assert count() == before + 1


@pytest.mark.parametrize(("stop", "reason"), [('"age"', "stop"), ("</tool_call>", "tool_calls")])
def test_a_stop_string_within_arguments_leaves_no_call_to_run(tool_server, stop, reason):
    """A client that is told "tool_calls" runs them, and these arguments are no JSON."""
    script = '<tool_call>{"name": "weather", "arguments": {"name": "x", "age": 3}}</tool_call>'
    asked = {**CALL, "messages": [{"role": "user", "content": script}], "stop": [stop]}
    (choice,) = tool_server.post(CHAT, asked).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == (reason, stop)
    lines = tool_server.post(CHAT, {**asked, "stream": True}).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [reason]


def test_the_arguments_of_earlier_calls_must_be_json(tool_server):
    call = {"id": "call_1", "type": "function", "function": {"name": "stop", "arguments": "{"}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    assert refused(tool_server, CHAT, CALL, messages=messages) == "messages[1].tool_calls[0].function.arguments"
    call["function"]["arguments"] = "{}"
    done = [*messages, {"role": "user", "content": "abc"}]
    response = tool_server.post(CHAT, {**CALL, "messages": done})
    assert response.json()["choices"][0]["message"]["content"] == "abc"


def test_markers_that_are_special_tokens_reach_the_parser(monkeypatch):
    """Special tokens have no text in an answer, unless they are what a call is written with."""
    from live_server import live_server
    from scripted_server import TOKENIZER

    from decoding_server.tools import formats

    marked = replace(formats.FORMATS["mistral"], markers=("<|system|>",))
    monkeypatch.setitem(formats.FORMATS, "mistral", marked)
    with live_server({"tool_call_parser": "mistral"}, max_model_len=2048) as server:
        assert server.runtime.tokenizer is TOKENIZER
        script = {"messages": [{"role": "user", "content": "a<|system|>b"}], "max_tokens": 20}
        with_tools = server.post(CHAT, {**script, "tools": TOOLS}).json()
        assert with_tools["choices"][0]["message"]["content"] == "a<|system|>b"
        without = server.post(CHAT, script).json()
        assert without["choices"][0]["message"]["content"] == "ab"


def test_tools_need_a_format(server, tool_server):
    assert refused(server, CHAT, CALL) == "tools"
    both = {"tool_choice": "required", "response_format": {"type": "json_object"}}
    assert refused(tool_server, CHAT, CALL, **both) == "response_format"
