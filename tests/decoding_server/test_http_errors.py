"""Every failure has a status of its own kind, the one error body, and the name of the field at fault."""

import json

import httpx
import openai
import pytest

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def error_of(response, status):
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert response.headers["x-request-id"]
    return body["error"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": [str(i) for i in range(17)]}, "stop"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"logit_bias": {"10000": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"model": 5}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"user": "x", "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream_options": {"nonsense": True}}, "stream_options.nonsense"),
        ({"decoding": "telepathy"}, "decoding"),
        ({"decoding": {"search": {"type": "telepathy"}}}, "decoding.search.type"),
        ({"decoding": {"search": {"type": "majority", "samples": 0}}}, "decoding.search.samples"),
        ({"decoding": {"search": {"type": "best-of-n", "value": "head"}}}, "decoding.search.value"),
        ({"decoding": {"search": {"type": "majority", "samples": 2}}, "n": 3}, "n"),
        ({"decoding": {"budget": {"tokens": 3}}}, "decoding.budget.tokens"),
        ({"decoding": {"budget": {"seconds": 0}}}, "decoding.budget.seconds"),
        ({"decoding": {"budget": {"output_tokens": True}}}, "decoding.budget.output_tokens"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_bad_values_name_their_field(server, path, fields, param, stream):
    """Alike for both endpoints, and before the first byte of a stream."""
    base = {"messages": MESSAGES} if path == CHAT else {"prompt": "hi|"}
    error = error_of(server.post(path, {**base, "stream": stream, **fields}), 400)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {}, "prompt"),
        (COMPLETIONS, {"prompt": None}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": ""}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", ""]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1], []]}, "prompt"),
        (COMPLETIONS, {"prompt": [1, True]}, "prompt"),
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt"),
        (COMPLETIONS, {"prompt": [10**6]}, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt"),
        (COMPLETIONS, {"prompt": {"a": 1}}, "prompt"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "logprobs": -1}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "best_of": 129}, "best_of"),
        (COMPLETIONS, {"prompt": "a", "best_of": 2, "n": 3}, "best_of"),
        (COMPLETIONS, {"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix"),
        (COMPLETIONS, {"prompt": "a", "stream_options": {}}, "stream_options"),
        (COMPLETIONS, {"prompt": ["a"] * 9, "n": 128}, "n"),
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hi"}, "messages"),
        (CHAT, {"messages": ["hi"]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        (CHAT, {"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [{}]}]}, "messages[1].tool_calls[0].id"),
        (CHAT, {"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"messages": MESSAGES, "logprobs": 1}, "logprobs"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
def test_bad_bodies_name_their_field(server, path, body, param):
    assert error_of(server.post(path, body), 400)["param"] == param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("guided_json", {"type": "object"}),
        ("regex", "[0-9]+"),
        ("ebnf", 'root ::= "a"'),
        ("json_schema", {"type": "object"}),
        ("grammar", 'root ::= "a"'),
        ("stop_regex", ["[0-9]"]),
        ("use_beam_search", True),
        ("length_penalty", 0.5),
        ("audio", {"voice": "x", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}),
        ("store", True),
        ("store", 0),
        ("service_tier", "flex"),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("echo", True),
        ("suffix", "x"),
    ],
)
def test_what_is_not_honoured_is_refused(server, field, value):
    error = error_of(server.post(CHAT, {"messages": MESSAGES, field: value}), 400)
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")


def test_neutral_values_are_fine(server):
    body = {
        "messages": MESSAGES,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "store": False,
        "service_tier": "auto",
        "reasoning_effort": None,
        "use_beam_search": False,
        "length_penalty": 1.0,
        "grammar": "",
        "audio": None,
        "user": "ann",
        "metadata": {"a": "b"},
        "logit_bias": None,
        "stop": None,
        "n": None,
        "temperature": None,
        "decoding": None,
        "decoding_": None,
    }
    reply = server.post(CHAT, body)
    assert reply.status_code == 200
    assert reply.json()["warnings"] == ["unknown field 'decoding_' was ignored"]


def test_unknown_fields_warn(server):
    body = {"messages": [{"role": "user", "content": "hi", "mood": "good"}], "tok_k": 5}
    warnings = ["unknown field 'tok_k' was ignored", "unknown field 'messages[0].mood' was ignored"]
    assert server.post(CHAT, body).json()["warnings"] == warnings
    stream = server.post(CHAT, {**body, "stream": True}).text
    payloads = [json.loads(line[6:]) for line in stream.split("\n") if line.startswith("data: {")]
    assert [payload.get("warnings") for payload in payloads] == [warnings, *[None] * (len(payloads) - 1)]
    assert "warnings" not in server.post(CHAT, {"messages": MESSAGES}).json()


def test_strict_refuses_unknown_fields(serve):
    strict = serve({"strict": True})
    error = error_of(strict.post(COMPLETIONS, {"prompt": "a|", "tok_k": 5}), 400)
    assert (error["param"], error["code"]) == ("tok_k", "unknown_parameter")
    assert strict.post(COMPLETIONS, {"prompt": "a|", "user": "x"}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "max_tokens": ' + b"9" * 30 + b"}",
        b'{"prompt": "\\ud83d"}',
        b'{"prompt": "a", "stop": ["\\udc00"]}',
        b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompt": "\xff"}',
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"prompt": "a", "x": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    ],
)
def test_malformed_bodies(server, body):
    error_of(httpx.post(server.url + COMPLETIONS, content=body), 400)


def test_a_body_that_is_too_large(serve):
    small = serve({"max_body": "2KiB"})
    error_of(small.post(COMPLETIONS, {"prompt": "x" * 3000}), 413)

    def pieces():  # chunked, so that no content-length announces the size
        for _ in range(300):
            yield b" " * 10

    error_of(httpx.post(small.url + COMPLETIONS, content=pieces()), 413)


@pytest.mark.parametrize(("length", "status"), [(511, 200), (512, 400), (513, 400)])
def test_prompts_around_the_context_length(server, length, status):
    response = server.post(COMPLETIONS, {"prompt": [97] * length, "max_tokens": 1})
    if status == 200:
        assert response.json()["usage"]["total_tokens"] == 512
    else:
        error = error_of(response, status)
        assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


def test_a_conversation_that_is_too_long_names_messages(server):
    error = error_of(server.post(CHAT, {"messages": [{"role": "user", "content": "x" * 600}]}), 400)
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    error = error_of(server.post(CHAT, {"messages": MESSAGES, "max_tokens": 5000}), 400)
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")


def test_unknown_model_route_method(server, client):
    for body in ({"model": "gpt-x", "messages": MESSAGES}, {"model": "", "messages": MESSAGES}):
        error = error_of(server.post(CHAT, body), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
    error_of(httpx.get(server.url + "/v1/models/none/such"), 404)
    assert error_of(httpx.get(server.url + "/v1/nothing"), 404)["code"] == "unknown_url"
    assert error_of(httpx.get(server.url + "/health/"), 404)["code"] == "unknown_url"  # no redirect either
    assert error_of(httpx.get(server.url + "/v1/models/"), 404)["code"] == "model_not_found"
    response = httpx.get(server.url + CHAT)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-x")
    assert caught.value.code == "model_not_found"


def test_a_full_queue_asks_to_come_back(serve):
    tiny = serve({"max_waiting": 2}, max_num_seqs=1)
    body = {"prompt": "~|", "max_tokens": 300, "stream": True}
    with httpx.Client(base_url=tiny.url, timeout=30) as http, http.stream("POST", COMPLETIONS, json=body) as running:
        lines = running.iter_lines()
        assert next(lines)
        with http.stream("POST", COMPLETIONS, json={**body, "n": 2}):
            response = tiny.post(COMPLETIONS, {"prompt": "a|"})
            assert error_of(response, 429)["code"] == "queue_full"
            assert int(response.headers["retry-after"]) > 0
    assert error_of(tiny.post(COMPLETIONS, {"prompt": "a|", "n": 3}), 400)["param"] == "n"  # could never be queued


def test_a_draining_runtime_is_unavailable(serve):
    drained = serve()
    drained.runtime.drain()
    response = drained.post(COMPLETIONS, {"prompt": "a|"})
    assert error_of(response, 503)["code"] == "unavailable"
    assert response.headers["retry-after"]
    health = httpx.get(drained.url + "/health")
    assert (health.status_code, health.json()["status"]) == (503, "draining")
