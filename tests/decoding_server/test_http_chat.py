"""POST /v1/chat/completions through the openai client, sync and async, and the bytes of its streams."""

import asyncio
import json

import openai
import pytest

MODEL = "scripted"
EMOJI = "\N{GRINNING FACE}"


def chat(client, text="hello", **fields):
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}], **fields)


def events(server, body):
    """The raw stream, as text, and its payloads."""
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 200
    lines = [line for line in response.text.split("\n") if line]
    return response, lines


def test_answers(client):
    reply = chat(client, "caf\u00e9 " + EMOJI)
    assert (reply.object, reply.model) == ("chat.completion", MODEL)
    assert reply.id.startswith("chatcmpl-")
    choice = reply.choices[0]
    assert (choice.message.role, choice.message.content, choice.message.refusal) == (
        "assistant",
        f"caf\u00e9 {EMOJI}",
        None,
    )
    assert (choice.finish_reason, choice.stop_reason, choice.logprobs) == ("stop", None, None)
    assert reply.usage.prompt_tokens == len(f"caf\u00e9 {EMOJI}".encode()) + 3


def test_content_parts_and_roles(client):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "refusal": None},
        {"role": "user", "content": parts, "name": "ann"},
    ]
    reply = client.chat.completions.create(model=MODEL, messages=messages)
    assert reply.choices[0].message.content == "a\nb"


def test_a_template_failure_is_the_clients(client):
    with pytest.raises(openai.BadRequestError, match="unknown to the template") as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}])
    assert caught.value.param == "messages"


def test_logprobs_have_real_bytes(client):
    text = f"h\u00e9 {EMOJI}"
    content = chat(client, text, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == text  # without the end-of-sequence token
    for entry in content:
        assert len(entry.top_logprobs) == 2
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)


def test_logprobs_without_alternatives(client):
    content = chat(client, "hi", logprobs=True).choices[0].logprobs.content
    assert [entry.token for entry in content] == ["h", "i"]
    assert all(entry.top_logprobs == [] for entry in content)


def test_budget_and_length(client):
    reply = chat(client, "hello", max_completion_tokens=2, max_tokens=4)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("he", "length")


def test_stream_has_role_content_finish(client):
    chunks = list(chat(client, f"a{EMOJI}b", stream=True))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.content for delta in deltas[1:-1]] == ["a", EMOJI, "b"]  # never half a character
    assert all(delta.role is None for delta in deltas[1:])
    assert (deltas[-1].content, chunks[-1].choices[0].finish_reason) == (None, "stop")
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-1])


def test_stream_never_shows_part_of_a_stop_string(client):
    pieces = [c.choices[0].delta.content or "" for c in chat(client, "XDEFGHZ", stop=["DEFGH"], stream=True)]
    assert "".join(pieces) == "X"


def test_interleaved_choices(client):
    texts, roles, finishes = ["", "", ""], [0, 0, 0], [0, 0, 0]
    for chunk in chat(client, "?", n=3, seed=1, max_tokens=20, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role is not None
        finishes[choice.index] += choice.finish_reason is not None
    assert roles == finishes == [1, 1, 1]
    assert texts == [choice.message.content for choice in chat(client, "?", n=3, seed=1, max_tokens=20).choices]


def test_usage_in_streams(client):
    *body, last = chat(client, "abc", stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in body)
    assert (last.choices, last.usage.completion_tokens) == ([], 4)
    assert last.usage.decoding["output_tokens"] == 4
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [chunk.usage.completion_tokens for chunk in chat(client, "abc", stream=True, stream_options=options)]
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_streamed_logprobs_equal_the_whole_ones(client):
    whole = chat(client, "h\u00e9!", logprobs=True, top_logprobs=1).choices[0].logprobs.content
    chunks = chat(client, "h\u00e9!", logprobs=True, top_logprobs=1, stream=True)
    assert [entry for c in chunks if c.choices[0].logprobs for entry in c.choices[0].logprobs.content] == whole


def test_stream_on_the_wire(server):
    body = {"messages": [{"role": "user", "content": "\u2028\u0085\n"}], "stream": True}
    response, lines = events(server, body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.isascii()
    assert response.text.endswith("data: [DONE]\n\n")
    payloads = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(choice["delta"].get("content", "") for payload in payloads for choice in payload["choices"])
    assert text == "\u2028\u0085\n"
    assert "usage" not in payloads[0]


def test_a_failure_after_the_first_byte_is_an_event(server):
    body = {"messages": [{"role": "user", "content": "!"}], "stream": True}
    _, lines = events(server, body)
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["type"] == "server_error"
    assert lines[-1] == "data: [DONE]"
    with pytest.raises(openai.APIError, match="not finite"), server.client() as client:
        list(chat(client, "!", stream=True))


def test_a_failed_request_is_not_worth_retrying(server, client):
    response = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "!"}]})
    assert (response.status_code, response.headers["x-should-retry"]) == (500, "false")
    assert chat(client, "still here").choices[0].message.content == "still here"


def test_keep_alive_comments(serve):
    server = serve({"sse_keep_alive": 0.05})
    server.runtime.engine.step = _delayed(server.runtime.engine.step, 0.3)
    body = {"messages": [{"role": "user", "content": "abc"}], "stream": True}
    _, lines = events(server, body)
    assert lines.count(": keep-alive") >= 3
    with server.client() as client:
        assert "".join(c.choices[0].delta.content or "" for c in chat(client, "abc", stream=True)) == "abc"


def _delayed(process, seconds):
    import time

    def slow(*arguments):
        time.sleep(seconds)
        return process(*arguments)

    return slow


async def test_many_at_once_are_each_their_own(server):
    """Requests in flight together: streamed and not, with different fields; each gets its own answer."""
    texts = [f"message {number} " + "x" * (number % 7) for number in range(48)]

    async def whole(client, text):
        return (await chat(client, text)).choices[0].message.content

    async def streamed(client, text):
        return "".join([chunk.choices[0].delta.content or "" async for chunk in await chat(client, text, stream=True)])

    async with server.async_client() as client:
        kinds = [whole, streamed]
        answers = await asyncio.gather(*(kinds[i % 2](client, text) for i, text in enumerate(texts)))
    assert answers == texts


def test_headers(client, server):
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": "x"}], extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.parse().choices[0].message.content == "x"
    for bad in ("x" * 200, "a b\tc"):
        assert server.post("/v1/models", {}, headers={"x-request-id": bad}).headers["x-request-id"].startswith("req_")
