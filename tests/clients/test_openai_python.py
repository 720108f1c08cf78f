"""openai-python, synchronous and asynchronous: answers, streams, raw responses, the `.stream()` helper, models."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from running_server import Server

PARIS: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
CONTINUED = "The three primary colours are"


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=0) as client:
        yield client


@pytest.fixture
def answer(client: openai.OpenAI, server: Server) -> str:
    """The greedy answer, which every way of asking must give."""
    reply = client.chat.completions.create(model=server.model, messages=PARIS, temperature=0, max_tokens=40)
    return reply.choices[0].message.content or ""


def test_a_chat_reply_fills_the_typed_object(client: openai.OpenAI, server: Server) -> None:
    reply = client.chat.completions.create(
        model=server.model, messages=PARIS, temperature=0, max_completion_tokens=40, user="someone"
    )
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")
    assert reply.model == server.model
    assert reply.system_fingerprint
    choice = reply.choices[0]
    assert (choice.index, choice.message.role, choice.message.refusal) == (0, "assistant", None)
    assert choice.finish_reason == "stop"
    assert "Paris" in (choice.message.content or "")
    assert choice.logprobs is None
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details is not None
    assert "warnings" not in (reply.model_extra or {})


def test_text_parts_and_a_developer_message_are_understood(client: openai.OpenAI, server: Server) -> None:
    def ask(messages: list[ChatCompletionMessageParam]) -> str | None:
        reply = client.chat.completions.create(model=server.model, messages=messages, temperature=0, max_tokens=16)
        return reply.choices[0].message.content

    plain = ask([{"role": "system", "content": "Answer in French."}, {"role": "user", "content": "Who are you?"}])
    parts = ask(
        [
            {"role": "developer", "content": "Answer in French."},
            {"role": "user", "content": [{"type": "text", "text": "Who are you?"}]},
        ]
    )
    assert parts == plain


def test_completions_of_several_prompts_are_ordered_prompt_by_prompt(client: openai.OpenAI, server: Server) -> None:
    prompts = [CONTINUED, "One, two, three, four, five, six,"]
    reply = client.completions.create(model=server.model, prompt=prompts, n=2, temperature=0, max_tokens=8)
    assert reply.object == "text_completion"
    assert reply.id.startswith("cmpl-")
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    alone = [
        client.completions.create(model=server.model, prompt=prompt, temperature=0, max_tokens=8).choices[0].text
        for prompt in prompts
    ]
    assert [choice.text for choice in reply.choices] == [alone[0], alone[0], alone[1], alone[1]]
    assert " seven" in alone[1]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4 * 8


def test_completion_logprobs_are_four_parallel_lists_over_echo_and_answer(
    client: openai.OpenAI, server: Server
) -> None:
    reply = client.completions.create(
        model=server.model, prompt=CONTINUED, temperature=0, max_tokens=4, echo=True, logprobs=2
    )
    choice = reply.choices[0]
    assert choice.text.startswith(CONTINUED)
    logprobs: Any = choice.logprobs  # the package's types leave out the first token's null
    assert "".join(logprobs.tokens) == choice.text
    assert logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    placed = zip(logprobs.text_offset, logprobs.tokens, strict=True)
    assert all(choice.text.startswith(token, offset) for offset, token in placed)
    generated = zip(logprobs.token_logprobs[-4:], logprobs.top_logprobs[-4:], strict=True)
    assert all(value == max(top.values()) for value, top in generated)


def test_a_chat_stream_has_the_shape_that_openai_documents(client: openai.OpenAI, server: Server, answer: str) -> None:
    stream = client.chat.completions.create(
        model=server.model,
        messages=PARIS,
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert (stream.response.headers["content-type"]).startswith("text/event-stream")
    *chunks, last = list(stream)
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    first = chunks[0].choices[0]
    assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 0


def test_a_completion_stream_with_two_choices_gives_each_its_text_and_one_end(
    client: openai.OpenAI, server: Server
) -> None:
    texts, ends = ["", ""], [0, 0]
    for chunk in client.completions.create(
        model=server.model, prompt=CONTINUED, n=2, seed=5, max_tokens=12, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] += choice.finish_reason is not None
    whole = client.completions.create(model=server.model, prompt=CONTINUED, n=2, seed=5, max_tokens=12)
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [1, 1]


def test_the_stream_helper_accumulates_content_and_logprobs(client: openai.OpenAI, server: Server, answer: str) -> None:
    with client.chat.completions.stream(
        model=server.model,
        messages=PARIS,
        temperature=0,
        max_tokens=40,
        logprobs=True,
        top_logprobs=2,
        stream_options={"include_usage": True},
    ) as stream:
        events = list(stream)
    final = stream.get_final_completion()
    assert final.choices[0].message.content == answer
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert "".join(event.delta for event in events if event.type == "content.delta") == answer
    assert [event.content for event in events if event.type == "content.done"] == [answer]
    scored = [event for event in events if event.type == "logprobs.content.done"]
    assert len(scored) == 1
    assert b"".join(bytes(token.bytes or []) for token in scored[0].content).decode() == answer


def test_raw_responses_show_ids_and_timing(client: openai.OpenAI, server: Server, answer: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=server.model,
        messages=PARIS,
        temperature=0,
        max_tokens=40,
        extra_headers={"x-request-id": "client-chosen-7"},
    )
    assert raw.status_code == 200
    assert raw.request_id == raw.headers["x-request-id"] == "client-chosen-7"
    assert raw.headers["content-type"] == "application/json"
    assert int(raw.headers["openai-processing-ms"]) > 0
    assert raw.parse().choices[0].message.content == answer
    unnamed = client.models.list()
    assert unnamed._request_id
    assert unnamed._request_id != "client-chosen-7"


def test_a_raw_stream_is_plain_server_sent_events(client: openai.OpenAI, server: Server, answer: str) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=server.model, messages=PARIS, temperature=0, max_tokens=40, stream=True
    ) as response:
        assert response.request_id
        lines = list(response.iter_lines())
    data = [line.removeprefix("data: ") for line in lines if line]
    assert all(line.startswith("data: ") for line in lines if line)
    assert all(line == "" for line in lines[1::2])  # a blank line ends each event
    assert data[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in data[:-1]]
    assert "".join(deltas) == answer


def test_models_are_listed_and_found(client: openai.OpenAI, server: Server) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed[0] == server.model
    model = client.models.retrieve(server.model)
    assert (model.id, model.object) == (server.model, "model")
    assert model.created > 0


def test_fields_outside_the_api_go_through_extra_body(client: openai.OpenAI, server: Server) -> None:
    reply = client.chat.completions.create(
        model=server.model,
        messages=PARIS,
        temperature=0,
        max_tokens=40,
        extra_body={"decoding": {"budget": {"output_tokens": 4}}, "top_k": 5, "min_p": 0.1, "made_up": 1},
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4
    assert reply.choices[0].finish_reason == "length"
    assert "made_up" in reply.model_extra["warnings"][0]  # type: ignore[index]


async def test_asynchronous_requests_run_together(
    async_client: openai.AsyncOpenAI, server: Server, answer: str
) -> None:
    async def streamed() -> str:
        text = ""
        async for chunk in await async_client.chat.completions.create(
            model=server.model, messages=PARIS, temperature=0, max_tokens=40, stream=True
        ):
            text += chunk.choices[0].delta.content or ""
        return text

    async def helped() -> str | None:
        async with async_client.chat.completions.stream(
            model=server.model, messages=PARIS, temperature=0, max_tokens=40
        ) as stream:
            return (await stream.get_final_completion()).choices[0].message.content

    async def whole() -> str | None:
        raw = await async_client.chat.completions.with_raw_response.create(
            model=server.model, messages=PARIS, temperature=0, max_tokens=40
        )
        return raw.parse().choices[0].message.content

    assert await asyncio.gather(*(ask() for ask in (streamed, helped, whole) * 4)) == [answer] * 12


async def test_a_stream_that_is_closed_early_frees_the_server(async_client: openai.AsyncOpenAI, server: Server) -> None:
    stream = await async_client.chat.completions.create(
        model=server.model, messages=PARIS, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    assert (await asyncio.to_thread(server.sequences))[0] == 1
    await stream.close()
    await asyncio.to_thread(server.wait_until_idle)
