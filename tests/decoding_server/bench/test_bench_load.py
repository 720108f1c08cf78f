"""The load client against a real HTTP server whose answers are known."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from decoding_server.bench.load import LoadError, closed_loop, time_to_first_token
from decoding_server.bench.process import free_port
from decoding_server.bench.workloads import STRATEGIES

DELAY = 0.05


class Completions:
    """Answers after `DELAY`. A prompt that starts with 13 gets one token too few, one that starts with 14 an error."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def __call__(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(DELAY)
        self.in_flight -= 1
        prompt, tokens = body["prompt"], body["max_tokens"]
        if prompt[0] == 14:
            return JSONResponse({"error": {"message": "no"}}, 400)
        if body["stream"]:
            return StreamingResponse(self.chunks(), media_type="text/event-stream")
        tokens -= prompt[0] == 13
        usage = {"prompt_tokens": len(prompt), "completion_tokens": tokens, "total_tokens": len(prompt) + tokens}
        return JSONResponse({"choices": [{"text": "x"}], "usage": usage})

    async def chunks(self) -> AsyncIterator[str]:
        yield ": a comment\n\n"
        yield "data: " + json.dumps({"choices": []}) + "\n\n"
        await asyncio.sleep(DELAY)
        yield "data: " + json.dumps({"choices": [{"text": "a"}]}) + "\n\n"
        await asyncio.sleep(4 * DELAY)
        yield "data: " + json.dumps({"choices": [{"text": "b"}]}) + "\n\ndata: [DONE]\n\n"


@pytest.fixture
def completions() -> Completions:
    return Completions()


@pytest.fixture
def url(completions: Completions) -> Iterator[str]:
    app = Starlette(routes=[Route("/v1/completions", completions.__call__, methods=["POST"])])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


async def test_a_closed_loop_counts_the_servers_tokens_and_keeps_its_concurrency(
    url: str, completions: Completions
) -> None:
    prompts = [[index, *range(index)] for index in range(1, 8)]
    async with httpx.AsyncClient(base_url=url) as client:
        result = await closed_loop(client, "smol", prompts, 5, 3)
    assert result.tokens == 7 * 5
    assert result.prompt_tokens == sum(len(prompt) for prompt in prompts)
    assert completions.most_in_flight == 3
    assert len(result.latencies) == 7
    assert min(result.latencies) >= DELAY
    assert result.seconds >= 3 * DELAY  # 7 requests, 3 at a time
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds)
    assert sorted(request["prompt"] for request in completions.requests) == prompts
    assert all(
        (request["temperature"], request["ignore_eos"], request["max_tokens"]) == (0, True, 5)
        for request in completions.requests
    )


async def test_a_strategy_is_a_field_of_every_request(url: str, completions: Completions) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        await closed_loop(client, "smol", [[1], [2]], 5, 2, 1.0, STRATEGIES["bregman"])
    assert [request["decoding"]["sampler"]["type"] for request in completions.requests] == ["bregman"] * 2
    assert [request["temperature"] for request in completions.requests] == [1.0] * 2


@pytest.mark.parametrize(("first", "message"), [(13, "4 tokens came back, 5 were asked for"), (14, "status 400")])
async def test_an_answer_that_cannot_be_counted_fails_the_cell(url: str, first: int, message: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        with pytest.raises(ExceptionGroup) as caught:
            await closed_loop(client, "smol", [[1], [first], [2]], 5, 2)
    assert isinstance(caught.value.exceptions[0], LoadError)
    assert message in str(caught.value.exceptions[0])


async def test_the_first_token_is_the_first_chunk_with_a_choice(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        started = time.perf_counter()
        seconds = await time_to_first_token(client, "smol", [1, 2], 2)
        whole = time.perf_counter() - started
    assert seconds >= 2 * DELAY  # the comment and the chunk without a choice came before
    assert whole - seconds >= 4 * DELAY - 0.01  # what comes after does not count


async def test_a_refused_stream_is_an_error(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        with pytest.raises(LoadError, match="status 400"):
            await time_to_first_token(client, "smol", [14], 2)
