"""What openai-python makes of our failures: its exceptions, no retry of what can't succeed, timeouts, a full queue."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from running_server import MAX_NUM_SEQS, MAX_WAITING, Server

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
LONG = {"ignore_eos": True}
CALLS: dict[str, Callable[[openai.OpenAI, str], object]] = {
    "chat": lambda client, model: client.chat.completions.create(model=model, messages=HELLO, max_tokens=2),
    "chat stream": lambda client, model: client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=2, stream=True
    ),
    "completion": lambda client, model: client.completions.create(model=model, prompt="Hello", max_tokens=2),
    "completion stream": lambda client, model: client.completions.create(
        model=model, prompt="Hello", max_tokens=2, stream=True
    ),
    "model": lambda client, model: client.models.retrieve(model),
}


@pytest.fixture
def statuses() -> list[int]:
    """The status of every reply, retried or not, in order."""
    return []


@pytest.fixture
def client(server: Server, statuses: list[int]) -> Iterator[openai.OpenAI]:
    """A client as its users have it: with two retries."""
    http_client = openai.DefaultHttpxClient(
        event_hooks={"response": [lambda response: statuses.append(response.status_code)]}
    )
    with openai.OpenAI(base_url=server.base_url, api_key=server.api_key, http_client=http_client) as client:
        yield client


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI, statuses: list[int], call: str) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        CALLS[call](client, "gpt-unknown")
    error = raised.value
    assert (error.status_code, error.code, error.param) == (404, "model_not_found", "model")
    assert error.type == "invalid_request_error"
    assert "gpt-unknown" in error.message
    assert error.request_id
    assert statuses == [404]


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_key_is_an_authentication_error(
    client: openai.OpenAI, server: Server, statuses: list[int], call: str
) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        CALLS[call](client.with_options(api_key="wrong"), server.model)
    error = raised.value
    assert (error.status_code, error.code, error.type) == (401, "invalid_api_key", "invalid_request_error")
    assert error.request_id
    assert statuses == [401]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"max_tokens": "many"}, "max_tokens", "invalid_type"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "a " * 9000}]}, "messages", "context_length_exceeded"),
        ({"extra_body": {"decoding": {"budgets": {}}}}, "decoding.budgets", "unsupported_parameter"),
    ],
)
def test_a_bad_field_is_a_bad_request_error_that_names_it(
    client: openai.OpenAI,
    server: Server,
    statuses: list[int],
    fields: dict[str, object],
    param: str,
    code: str,
    stream: bool,
) -> None:
    request = {"model": server.model, "messages": HELLO, "stream": stream} | fields
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**request)  # type: ignore[call-overload]
    error = raised.value
    assert (error.status_code, error.param, error.code) == (400, param, code)
    assert error.type == "invalid_request_error"
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert statuses == [400]


def test_a_missing_field_is_a_bad_request_error(client: openai.OpenAI, server: Server, statuses: list[int]) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.post("/completions", body={"model": server.model}, cast_to=object)
    assert (raised.value.param, raised.value.code) == ("prompt", "missing_required_parameter")
    assert statuses == [400]


def test_routes_that_do_not_exist_have_the_same_error_body(client: openai.OpenAI, statuses: list[int]) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt="a lighthouse", model="any")
    assert unknown.value.code == "unknown_url"
    with pytest.raises(openai.APIStatusError) as wrong_method:
        client.get("/chat/completions", cast_to=object)
    assert (wrong_method.value.status_code, wrong_method.value.code) == (405, "method_not_allowed")
    assert statuses == [404, 405]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_side_timeout_frees_the_server(client: openai.OpenAI, server: Server, stream: bool) -> None:
    """A streamed request times out when it must wait for its turn."""
    impatient = client.with_options(timeout=0.5, max_retries=0)
    request = {"model": server.model, "messages": HELLO, "max_tokens": 4000, "extra_body": LONG}
    if not stream:
        with pytest.raises(openai.APITimeoutError):
            impatient.chat.completions.create(**request)  # type: ignore[call-overload]
    else:
        blocking = client.chat.completions.create(**request, n=MAX_NUM_SEQS, stream=True)  # type: ignore[call-overload]
        server.wait_for(lambda running, waiting: running == MAX_NUM_SEQS)
        with pytest.raises(openai.APITimeoutError):
            list(impatient.chat.completions.create(**request, stream=True))  # type: ignore[call-overload]
        server.wait_for(lambda running, waiting: (running, waiting) == (MAX_NUM_SEQS, 0))
        blocking.close()
    server.wait_until_idle()


async def test_a_full_queue_is_a_rate_limit_error_that_a_retry_outlives(server: Server) -> None:
    """The client waits as long as `retry-after` says, and its second or a later try is served."""
    tries: list[tuple[float, int, str]] = []
    refused = asyncio.Event()

    async def note(response: Any) -> None:
        tries.append((time.monotonic(), response.status_code, response.headers.get("retry-after", "")))
        if response.status_code == 429:
            refused.set()

    http_client = openai.DefaultAsyncHttpxClient(event_hooks={"response": [note]})
    client = openai.AsyncOpenAI(
        base_url=server.base_url, api_key=server.api_key, http_client=http_client, max_retries=8
    )
    async with client:
        filling = [
            asyncio.create_task(
                client.chat.completions.create(
                    model=server.model, messages=HELLO, n=n, max_tokens=2000, stream=True, extra_body=LONG
                )
            )
            for n in (MAX_NUM_SEQS, MAX_WAITING)
        ]
        await asyncio.to_thread(server.wait_for, lambda running, waiting: (running, waiting) == (MAX_NUM_SEQS, 48))
        with pytest.raises(openai.RateLimitError) as raised:
            await client.with_options(max_retries=0).completions.create(model=server.model, prompt="Hello")
        assert (raised.value.status_code, raised.value.code) == (429, "queue_full")
        assert int(raised.value.response.headers["retry-after"]) >= 1
        assert raised.value.response.headers.get("x-should-retry") != "false"

        refused.clear()
        del tries[:]
        patient = asyncio.create_task(client.completions.create(model=server.model, prompt="Hello", max_tokens=2))
        await asyncio.wait_for(refused.wait(), 20)
        for task in filling:
            await (await task).close()
        reply = await asyncio.wait_for(patient, 60)
        assert reply.usage is not None
        refusals = [(when, retry_after) for when, status, retry_after in tries if status == 429]
        served = [when for when, status, _ in tries if status == 200][-1]
        assert served - refusals[-1][0] >= float(refusals[-1][1])
    await asyncio.to_thread(server.wait_until_idle)


async def test_more_sequences_than_the_queue_can_ever_hold_are_a_bad_request(server: Server) -> None:
    """No retry can help, so it must not be a 429, which clients retry."""
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as raised:
            await client.completions.create(model=server.model, prompt="Hello", n=MAX_WAITING + 1, max_tokens=2)
        assert raised.value.param == "n"
