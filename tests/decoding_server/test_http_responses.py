"""/v1/responses through the openai client: shapes, streams, stored conversations, tools, refusals."""

import asyncio
import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from runtime_server import serve_runtime
from scripted_server import distribution

from decoding_server.conversation import chat_request
from decoding_server.protocol.responses import ResponsesRequest
from decoding_server.response_store import ResponseStore
from models.scripted import ByteTokenizer, scripted_runtime

MODEL = "scripted"
STREAM_EVENT = TypeAdapter(ResponseStreamEvent)
EMOJI = "\N{GRINNING FACE}"
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


class ToolTokenizer(ByteTokenizer):
    """Its template knows tools: what a tool returns is a script like a user's message. Remembers what it rendered."""

    def __init__(self):
        super().__init__(pieces=[b"love", b"\xe2\x99"])
        self.seen = []

    def render_chat(self, messages, *, add_generation_prompt=True, template=None, **variables):
        self.seen.append({"messages": messages, **variables})
        shown = []
        for message in messages:
            role = "user" if message["role"] == "tool" else message["role"]
            shown.append({"role": role, "content": message["content"] + str(message.get("tool_calls", ""))})
        return super().render_chat(shown, add_generation_prompt=add_generation_prompt)


def serving(flags=None, store=None):
    runtime = scripted_runtime(distribution, ToolTokenizer(), max_model_len=2048)
    return serve_runtime(runtime, {"tool_call_parser": "hermes"} | (flags or {}), store)


@pytest.fixture(scope="module")
def server():
    with serving() as live:
        yield live


@pytest.fixture(scope="module")
def client(server):
    with server.client() as openai_client:
        yield openai_client


def ask(client, script="hello", **fields):
    return client.responses.create(model=MODEL, input=script, **fields)


def rendered(server):
    return server.runtime.tokenizer.seen[-1]


def roles_and_contents(server):
    return [(message["role"], message["content"]) for message in rendered(server)["messages"]]


def wire_events(server, body):
    """The payloads of a stream, each checked against OpenAI's own type for it."""
    response = server.post("/v1/responses", body | {"stream": True})
    assert response.status_code == 200
    blocks = [block for block in response.text.split("\n\n") if block and not block.startswith(":")]
    payloads = []
    for block in blocks:
        name, data = block.split("\n")
        payloads.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {payloads[-1]['type']}"
        STREAM_EVENT.validate_python(payloads[-1])
    assert [payload["sequence_number"] for payload in payloads] == list(range(len(payloads)))
    return payloads


def kinds(payloads):
    """Types in order, runs of deltas as one."""
    names = [payload["type"].removeprefix("response.") for payload in payloads]
    return [name for i, name in enumerate(names) if not (name.endswith("delta") and names[i - 1] == name)]


def refusal(server, fields, status=400):
    response = server.post("/v1/responses", {"input": "x"} | fields)
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]


# One answer


def test_answer_has_openais_shape(server, client):
    reply = ask(client, f"caf\u00e9 {EMOJI}", metadata={"a": "b"}, user="ann", temperature=0.5, top_p=0.9)
    assert reply.output_text == f"caf\u00e9 {EMOJI}"
    assert (reply.object, reply.status, reply.model, reply.error) == ("response", "completed", MODEL, None)
    assert (reply.metadata, reply.user, reply.temperature, reply.top_p) == ({"a": "b"}, "ann", 0.5, 0.9)
    (item,) = reply.output
    assert (item.type, item.role, item.status, item.content[0].annotations) == ("message", "assistant", "completed", [])
    assert reply.id.startswith("resp_")
    assert item.id.startswith("msg_")
    Response.model_validate(server.post("/v1/responses", {"input": "x", "tools": [WEATHER]}).json())


def test_usage(client):
    usage = ask(client, "hello", metadata={}).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (8, 6, 14)
    assert usage.output_tokens_details.reasoning_tokens == 0
    assert usage.decoding["output_tokens"] == 6
    long = "cached " * 20
    assert ask(client, long, store=False).usage.input_tokens_details.cached_tokens < 140
    assert ask(client, long, store=False).usage.input_tokens_details.cached_tokens >= 140


def test_defaults_in_the_reply(client):
    reply = ask(client)
    assert (reply.temperature, reply.top_p, reply.truncation, reply.tool_choice) == (1.0, 1.0, "disabled", "auto")
    assert (reply.tools, reply.parallel_tool_calls, reply.text.format.type) == ([], True, "text")
    assert (reply.instructions, reply.previous_response_id, reply.incomplete_details) == (None, None, None)


def test_input_items_become_messages(server, client):
    items = [
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "let me see", "annotations": [], "logprobs": []}],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "weather",
            "arguments": '{"city": "Oslo"}',
        },
        {"type": "function_call", "call_id": "call_2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "sun"}]},
    ]
    assert ask(client, items, instructions="obey").output_text == "sun"
    assert roles_and_contents(server) == [
        ("system", "obey"),
        ("system", "be brief"),
        ("user", "a"),
        ("assistant", "let me see"),
        ("tool", "rain"),
        ("tool", "sun"),
    ]
    calls = rendered(server)["messages"][3]["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [
        ("call_1", {"city": "Oslo"}),
        ("call_2", {}),
    ]


def test_cut_off(client):
    reply = ask(client, "hello", max_output_tokens=2)
    assert (reply.output_text, reply.status, reply.max_output_tokens) == ("he", "incomplete", 2)
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.output[0].status == "incomplete"


def test_a_budget_cuts_off_too(client):
    reply = ask(client, "hello", extra_body={"decoding": {"budget": {"output_tokens": 3}}})
    assert (reply.output_text, reply.status) == ("hel", "incomplete")
    assert reply.incomplete_details.model_extra["stop_reason"] == "budget:output_tokens"
    assert reply.usage.decoding["budget_exhausted"] == "output_tokens"


def test_an_empty_answer_is_an_empty_message(server, client):
    body = {"input": "x", "logit_bias": {"256": 100}}  # the end of the sequence
    for response in (server.post("/v1/responses", body).json(), wire_events(server, body)[-1]["response"]):
        assert [content["text"] for item in response["output"] for content in item["content"]] == [""]
        assert response["status"] == "completed"


def test_decoding_in_and_out(client):
    decoding = {"sampler": {"type": "top_k", "k": 5}, "penalty": "dry"}
    one = ask(client, "?", max_output_tokens=12, extra_body={"seed": 5, "decoding": decoding})
    assert one.decoding["seed"] == 5
    assert one.decoding["sampler"] == [{"type": "top_k", "k": 5}]
    again = ask(client, "?", max_output_tokens=12, extra_body={"seed": 5, "decoding": decoding})
    other = ask(client, "?", max_output_tokens=12, extra_body={"seed": 6, "decoding": decoding})
    assert one.output_text == again.output_text != other.output_text
    named = client.responses.create(model=MODEL, input="a", extra_headers={"x-decoding-strategy": "dry"})
    assert named.decoding["penalty"][0]["type"] == "dry"


def test_logprobs(client):
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    content = ask(client, f"h{EMOJI}", **fields).output[0].content[0]
    assert b"".join(bytes(entry.bytes) for entry in content.logprobs).decode() == f"h{EMOJI}"
    assert all(len(entry.top_logprobs) == 2 for entry in content.logprobs)
    assert ask(client).output[0].content[0].logprobs == []
    streamed = [e for e in ask(client, f"h{EMOJI}", stream=True, **fields) if e.type == "response.output_text.delta"]
    assert [entry.token for e in streamed for entry in e.logprobs] == [entry.token for entry in content.logprobs]


def test_sampling_fields_reach_the_sampler(client):
    only = ask(client, "?", max_output_tokens=4, extra_body={"allowed_token_ids": [ord("q")], "min_tokens": 4})
    assert only.output_text == "qqqq"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"type": "text"}, {"type": "text"}),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
        ),
    ],
)
def test_text_format_becomes_a_response_format(given, wanted):
    request = ResponsesRequest.model_validate({"input": "x", "text": {"format": given, "verbosity": "medium"}})
    made = chat_request(request, []).response_format.model_dump(by_alias=True, exclude_none=True)
    assert made == wanted


def test_text_format_comes_back(client):
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {}}}
    reply = ask(client, "{}", text={"format": schema})
    assert reply.text.format.to_dict() == schema
    assert json.loads(reply.output_text) == {}


# Streams


def test_events_of_a_text(server):
    payloads = wire_events(server, {"input": f"a{EMOJI}b"})
    assert kinds(payloads) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    deltas = [payload["delta"] for payload in payloads if payload["type"] == "response.output_text.delta"]
    assert deltas == ["a", EMOJI, "b"]  # never half a character
    created, added, last = payloads[0], payloads[2], payloads[-1]
    assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
    assert (created["response"]["usage"], created["response"]["id"]) == (None, last["response"]["id"])
    assert (added["item"]["status"], added["item"]["content"]) == ("in_progress", [])
    assert last["response"]["output"] == [payloads[-2]["item"]]
    assert last["response"]["usage"]["output_tokens"] == 7
    assert {payload["item_id"] for payload in payloads if "item_id" in payload} == {added["item"]["id"]}


def test_stream_is_ascii_and_ends_without_a_marker(server):
    response = server.post("/v1/responses", {"input": "\u2028\u0085\n", "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.isascii()
    assert "[DONE]" not in response.text
    assert response.text.endswith("\n\n")


def test_the_last_event_has_what_a_plain_reply_has(server):
    body = {"input": "?", "seed": 3, "max_output_tokens": 9, "store": False}
    whole = server.post("/v1/responses", body).json()
    last = wire_events(server, body)[-1]
    assert last["type"] == "response.incomplete"
    changing = {"id", "created_at", "completed_at", "usage", "output"}
    streamed = last["response"]
    assert {k: v for k, v in streamed.items() if k not in changing} == {
        k: v for k, v in whole.items() if k not in changing
    }
    assert streamed["output"][0]["content"] == whole["output"][0]["content"]
    assert (streamed["output"][0]["status"], streamed["incomplete_details"]["reason"]) == (
        "incomplete",
        "max_output_tokens",
    )


def test_the_clients_stream_helper(client):
    with client.responses.stream(model=MODEL, input="hello") as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots == ["h", "he", "hel", "hell", "hello"]
    assert (final.status, final.output_text) == ("completed", "hello")


def test_parsed_output(client):
    class City(BaseModel):
        name: str

    reply = client.responses.parse(model=MODEL, input='{"name":"Oslo"}', text_format=City)
    assert reply.output_parsed == City(name="Oslo")


def test_a_failure_in_a_stream_is_its_last_event(server, client):
    payloads = wire_events(server, {"input": "!"})
    assert kinds(payloads) == ["created", "in_progress", "failed"]
    failed = payloads[-1]["response"]
    assert (failed["status"], failed["error"]["code"], failed["store"]) == ("failed", "server_error", False)
    assert "not finite" in failed["error"]["message"]
    assert server.post("/v1/responses", {"input": "!"}).headers["x-should-retry"] == "false"
    assert ask(client, "still here").output_text == "still here"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(failed["id"])


# Tools


def test_a_call(server, client):
    reply = ask(client, "Let me see." + CALL, tools=[WEATHER])
    text, call = reply.output
    assert text.content[0].text == "Let me see."
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Oslo"})
    assert (call.status, reply.status) == ("completed", "completed")
    assert call.id.startswith("fc_")
    assert call.call_id != call.id
    assert [tool.to_dict() for tool in reply.tools] == [WEATHER]
    definition = {name: WEATHER[name] for name in ("name", "description", "parameters")}
    assert rendered(server)["tools"] == [{"type": "function", "function": definition}]


def test_events_of_text_and_calls(server):
    payloads = wire_events(server, {"input": f"Hm.{CALL}\n{CALL}", "tools": [WEATHER]})
    one_call = [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    text = [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert kinds(payloads) == ["created", "in_progress", *text, *one_call, *one_call, "completed"]
    for index in (1, 2):
        own = [payload for payload in payloads if payload.get("output_index") == index]
        arguments = "".join(payload["delta"] for payload in own if payload["type"].endswith("arguments.delta"))
        assert own[0]["item"]["arguments"] == ""
        assert arguments == own[-2]["arguments"] == own[-1]["item"]["arguments"] == '{"city": "Oslo"}'
        assert own[-1]["item"]["id"] == own[-2]["item_id"]
    assert [item["type"] for item in payloads[-1]["response"]["output"]] == [
        "message",
        "function_call",
        "function_call",
    ]


def test_a_call_that_is_cut_off(client):
    reply = ask(client, CALL, tools=[WEATHER], max_output_tokens=60)
    (call,) = reply.output
    assert (reply.status, call.type, call.status) == ("incomplete", "function_call", "incomplete")
    assert '{"city": "Oslo"}'.startswith(call.arguments)
    assert call.arguments


def test_choice_none_and_one_call_at_most(server, client):
    assert ask(client, CALL, tools=[WEATHER], tool_choice="none").output_text == CALL
    assert "tools" not in rendered(server)
    assert len(ask(client, CALL + CALL, tools=[WEATHER], parallel_tool_calls=False).output) == 1


def test_allowed_tools_are_what_the_template_gets(server, client):
    other = WEATHER | {"name": "other"}
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}
    reply = ask(client, "x", tools=[WEATHER, other], tool_choice=choice)
    assert [tool["function"]["name"] for tool in rendered(server)["tools"]] == ["other"]
    assert reply.tool_choice.to_dict() == choice


def test_the_whole_loop(server, client):
    """The client sends the output of a call, and the answer's own items are still there."""
    first = ask(client, CALL, tools=[WEATHER], instructions="one")
    output = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain"}
    second = ask(client, [output], tools=[WEATHER], previous_response_id=first.id)
    assert second.output_text == "rain"
    by_hand = ask(client, [{"role": "user", "content": CALL}, first.output[0], output], tools=[WEATHER])
    assert by_hand.output_text == "rain"
    before, after = server.runtime.tokenizer.seen[-2:]
    assert before == after
    third = ask(client, "bye", previous_response_id=second.id)
    assert third.output_text == "bye"
    assert [role for role, _ in roles_and_contents(server)] == ["user", "assistant", "tool", "assistant", "user"]


# Stored responses


def test_a_conversation_goes_on(server, client):
    first = ask(client, "one", instructions="be brief")
    second = ask(client, "two", instructions="be verbose", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert roles_and_contents(server) == [
        ("system", "be verbose"),
        ("user", "one"),
        ("assistant", "one"),
        ("user", "two"),
    ]
    branch = ask(client, "three", previous_response_id=first.id)
    assert [content for _, content in roles_and_contents(server)] == ["one", "one", "three"]
    assert branch.output_text == "three"


def test_read_and_delete(client):
    made = ask(client, "keep me", metadata={"k": "v"})
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    follower = ask(client, "next", previous_response_id=made.id)
    client.responses.delete(made.id)
    for gone in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match=made.id) as caught:
            gone(made.id)
        assert (caught.value.param, caught.value.code) == ("response_id", "response_not_found")
    assert ask(client, "still", previous_response_id=follower.id).output_text == "still"


def test_a_streamed_response_is_there_at_its_last_event(client):
    for event in ask(client, "streamed", stream=True):
        if event.type == "response.completed":
            assert client.responses.retrieve(event.response.id).to_dict() == event.response.to_dict()
            assert ask(client, "on", previous_response_id=event.response.id).output_text == "on"


def test_an_incomplete_response_can_be_continued(server, client):
    first = ask(client, "hello", max_output_tokens=3)
    ask(client, "go on", previous_response_id=first.id)
    assert ("assistant", "hel") in roles_and_contents(server)


def test_unknown_previous_response(server, client):
    with pytest.raises(openai.NotFoundError, match="resp_nowhere") as caught:
        ask(client, previous_response_id="resp_nowhere")
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "response_not_found")
    assert len(refusal(server, {"previous_response_id": "x" * 10_000}, 404)["message"]) < 300


def test_not_stored_if_not_wanted(client):
    reply = ask(client, store=False)
    assert reply.model_extra["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(reply.id)
    with pytest.raises(openai.NotFoundError):
        ask(client, previous_response_id=reply.id)


def test_keys_do_not_see_each_others_responses():
    with (
        serving({"api_key": "ann,bob"}) as server,
        server.client("ann") as ann,
        server.client("bob") as bob,
        server.client("eve") as eve,
    ):
        made = ask(ann)
        assert ann.responses.retrieve(made.id).id == made.id
        for call in (bob.responses.retrieve, bob.responses.delete):
            with pytest.raises(openai.NotFoundError):
                call(made.id)
        with pytest.raises(openai.NotFoundError):
            ask(bob, previous_response_id=made.id)
        with pytest.raises(openai.AuthenticationError):
            eve.responses.retrieve(made.id)
        assert ask(ann, "mine", previous_response_id=made.id).output_text == "mine"


def test_the_store_is_bounded():
    with serving(store=ResponseStore(2, 100_000)) as server, server.client() as client:
        first = ask(client, "one")
        second = ask(client, "two", previous_response_id=first.id)
        client.responses.retrieve(first.id)
        third = ask(client, "three", previous_response_id=second.id)
        with pytest.raises(openai.NotFoundError):  # `second` was read last, to be continued
            client.responses.retrieve(first.id)
        ask(client, "four", previous_response_id=third.id)  # what it needs does not depend on those before it
        assert [content for _, content in roles_and_contents(server)][:3] == ["one", "one", "two"]


def test_a_response_that_does_not_fit_says_so():
    with serving(store=ResponseStore(2, 2500)) as server, server.client() as client:
        assert client.responses.retrieve(ask(client, "small").id).output_text == "small"
        large = ask(client, "large", metadata={"key": "v" * 512, "other": "v" * 512})
        assert (large.model_extra["store"], large.output_text) == (False, "large")
        assert "not stored" in large.model_extra["warnings"][0]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(large.id)


def test_a_server_without_a_store():
    with serving(store=ResponseStore(0, 1000)) as server, server.client() as client:
        assert ask(client).model_extra["store"] is False
        assert refusal(server, {"store": True})["param"] == "store"


# Refusals


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": "x"}, {"role": "user"}]}, "input[1].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]}, "input"),
        ({"input": "x" * 3000}, "input"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": "7"}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
        ({"include": ["everything"]}, "include[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
        ({"tools": [WEATHER], "include": ["message.output_text.logprobs"]}, "include"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [WEATHER | {"parameters": {"type": "string"}}]}, "tools[0].parameters"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"decoding": {"sampler": [{"type": "nothing"}]}}, "decoding.sampler[0].type"),
        ({"decoding": {"speed": 1}}, "decoding.speed"),
        ({"decoding": "nothing"}, "decoding"),
        ({"min_tokens": 9, "max_output_tokens": 8}, "min_tokens"),
        ({"chat_template_kwargs": {"template": ""}}, "chat_template_kwargs.template"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stop": "x"}, "stop"),
        ({"n": 2}, "n"),
    ],
)
def test_what_cannot_be_honoured_is_named(server, fields, param):
    error = refusal(server, fields)
    assert error["param"] == param
    assert not {"messages", "max_completion_tokens"} & set(error["message"].replace("'", " ").split()) - {param}


def test_tools_need_a_format():
    with serving({"tool_call_parser": "none"}) as server:
        assert refusal(server, {"tools": [WEATHER]})["param"] == "tools"


def test_values_that_ask_for_nothing_are_accepted(client):
    neutral = {
        "background": False,
        "truncation": "disabled",
        "service_tier": "auto",
        "reasoning": {},
        "include": ["reasoning.encrypted_content"],
        "tools": [],
        "tool_choice": "auto",
        "previous_response_id": None,
        "n": 1,
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "max_output_tokens": None,
        "text": None,
    }
    reply = ask(client, extra_body=neutral)
    assert reply.output_text == "hello"
    assert "warnings" not in reply.model_extra


def test_unknown_fields_are_a_warning_or_with_strict_a_refusal(client):
    assert ask(client, extra_body={"colour": 1}).warnings == ["unknown field 'colour' was ignored"]
    with serving({"strict": True}) as server:
        assert refusal(server, {"colour": 1})["param"] == "colour"


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="gpt-9", input="x")
    assert caught.value.code == "model_not_found"


def test_replaying_a_stream_is_refused(server, client):
    made = ask(client)
    response = httpx.get(f"{server.url}/v1/responses/{made.id}?stream=true", headers={"authorization": "Bearer none"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream")


# Many, and those who leave


async def test_many_at_once_are_each_their_own(server):
    texts = [f"message {number} " + "x" * (number % 7) for number in range(32)]

    async def whole(client, text):
        return (await ask(client, text)).output_text

    async def streamed(client, text):
        events = [event async for event in await ask(client, text, stream=True)]
        return "".join(event.delta for event in events if event.type == "response.output_text.delta")

    async with server.async_client() as client:
        answers = await asyncio.gather(*((whole, streamed)[i % 2](client, text) for i, text in enumerate(texts)))
    assert answers == texts


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_leaves_frees_its_work(server):
    body = {"input": "~", "max_output_tokens": 400}
    status = server.runtime.status
    stored = len(server.app.state.response_store)
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body | {"stream": True}, timeout=30) as response:
        lines = response.iter_lines()  # held: httpx closes the connection when the iterator goes
        assert next(lines) == "event: response.created"
        wait_until(lambda: status().running == 1, 10)
    wait_until(lambda: status().running + status().waiting == 0, 10)
    address = urlsplit(server.url)
    content = json.dumps(body).encode()
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        wait_until(lambda: status().running == 1, 10)
    wait_until(lambda: status().running + status().waiting == 0, 10)
    assert len(server.app.state.response_store) == stored
