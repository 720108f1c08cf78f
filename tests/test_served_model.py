"""The embedded model behind the real command, over a real socket, through the real `openai` client."""

import asyncio
import contextlib
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import openai
import psutil
import pytest

MODEL = "smollm2-135m-instruct"
PARIS = [{"role": "user", "content": "What is the capital of France?"}]
KV_MEMORY = "96MiB"  # 2184 slots: small enough that the cache is full, and evicting, after a few dozen requests


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, psutil.Process]]:
    """(base URL, process) of `decoding-server serve`."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "decoding_server", "serve", "--port", str(port), "--kv-cache-memory", KV_MEMORY]
    process = subprocess.Popen([*command, "--max-num-seqs", "32"], env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240  # the first start downloads and converts the model
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            assert process.poll() is None, "the server ended while starting"
            assert time.monotonic() < deadline, "the server did not become healthy"
            time.sleep(0.1)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.fixture
def client(server: tuple[str, psutil.Process]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="unused", max_retries=0)


def test_a_chat_answer_knows_the_capital_of_france(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=PARIS, temperature=0, max_tokens=40)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    spent = answer.usage.model_extra["decoding"]
    assert (
        spent["target_tokens"] + spent["cached_tokens"] == answer.usage.total_tokens - 1
    )  # the last is never computed
    assert spent["output_tokens"] == answer.usage.completion_tokens
    assert spent["flops"] > 2 * 100e6 * spent["target_tokens"]


def test_a_streamed_answer_is_the_same_and_ends_with_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=PARIS, temperature=0, max_tokens=40)
    stream = client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=0, max_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 5
    assert chunks[-1].choices == []
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_three_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    first, second = (
        client.chat.completions.create(model=MODEL, messages=PARIS, n=3, seed=11, temperature=1.5, max_tokens=24)
        for _ in range(2)
    )
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in second.choices]


def test_logprobs_of_a_greedy_answer_are_the_largest(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=0, max_tokens=12, logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content
    for entry in choice.logprobs.content:
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert len(entry.top_logprobs) == 3
    joined = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content)
    assert joined.decode() == choice.message.content


def test_bad_requests_are_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=PARIS, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-unknown", messages=PARIS)
    assert unknown.value.code == "model_not_found"


def test_a_budget_ends_the_answer_and_is_never_exceeded(client: openai.OpenAI) -> None:
    budget = {"decoding": {"budget": {"output_tokens": 6}}}
    answer = client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=0, max_tokens=40, extra_body=budget
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].model_extra["stop_reason"] == "budget:output_tokens"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


PENS = "Mia has 3 boxes of 17 pens and gives away 9 pens. How many pens are left? Write one step per line."


@pytest.mark.parametrize("search", ["phi", "predictive"])
def test_searches_by_steps_answer_within_a_budget_and_repeat_with_a_seed(client: openai.OpenAI, search: str) -> None:
    parameters = {"phi": {"beams": 2, "rollouts": 2, "t_min": 2, "t_max": 3}, "predictive": {"rollouts": 3, "t_max": 3}}
    decoding = {
        "search": {"type": search, "trace": "full", **parameters[search]},
        "budget": {"output_tokens": 1200},  # a plan that doesn't depend on what is cached
    }
    first, second = (
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": PENS}],
            max_tokens=96,
            seed=5,
            extra_body={"decoding": decoding},
        )
        for _ in range(2)
    )
    text = first.choices[0].message.content
    assert text
    assert first.usage is not None
    assert first.usage.model_extra is not None
    spent = first.usage.model_extra["decoding"]
    assert first.usage.completion_tokens < spent["output_tokens"] <= 1200
    assert spent["search"]["steps"] >= 1
    assert second.choices[0].message.content == text
    assert first.model_extra is not None
    (trace,) = first.model_extra["trace"]
    assert any(node["text"] and text.startswith(node["text"]) and node.get("chosen") for node in trace["tree"])


WORDS = ("river", "stone", "paper", "engine", "orchard", "window", "signal", "harbour", "winter", "lantern", "bridge")


def mixed_requests(seed: int, count: int) -> list[dict[str, object]]:
    """Completions and chats, streamed or not, greedy or sampled, with stop strings and n, short and long prompts."""
    rng = random.Random(seed)
    requests: list[dict[str, object]] = []
    for number in range(count):
        words = " ".join(rng.choices(WORDS, k=rng.choice((3, 12, 60))))
        request: dict[str, object] = {
            "model": MODEL,
            "seed": number,
            "max_tokens": rng.choice((4, 9, 16)),
            "min_tokens": 3,
            "temperature": rng.choice((0, 0.7, 1.0)),
            "stream": rng.random() < 0.5,
        }
        if rng.random() < 0.5:
            request["messages"] = [{"role": "user", "content": f"Write about: {words}"}]
        else:
            request["prompt"] = f"A story about {words}. Once upon a time"
        if rng.random() < 0.3:
            request["stop"] = ["\n\n", " the "]
        if rng.random() < 0.2:
            request["n"] = 2
        requests.append(request)
    return requests


async def answer(client: openai.AsyncOpenAI, request: dict[str, object]) -> tuple[str, ...]:
    """Texts of all choices."""
    extra = {"min_tokens": request["min_tokens"]}
    known = {key: value for key, value in request.items() if key != "min_tokens"}
    kind = client.chat.completions if "messages" in request else client.completions
    reply = await kind.create(**known, extra_body=extra)  # type: ignore[call-overload]
    texts = [""] * int(request.get("n", 1))  # type: ignore[call-overload]
    if not request["stream"]:
        for choice in reply.choices:
            texts[choice.index] = choice.message.content if "messages" in request else choice.text
        return tuple(texts)
    finished = set()
    async for chunk in reply:
        for choice in chunk.choices:
            texts[choice.index] += (choice.delta.content or "") if "messages" in request else choice.text
            if choice.finish_reason:
                finished.add(choice.index)
    assert finished == set(range(len(texts)))
    return tuple(texts)


def test_64_mixed_requests_at_once_equal_each_alone(server: tuple[str, psutil.Process]) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server[0]}/v1", api_key="unused", max_retries=0) as client:
            requests = mixed_requests(1, 64)
            alone = [await answer(client, request) for request in requests]
            assert all(text for texts in alone for text in texts)
            different = 0
            for round_number in range(3):
                order = random.Random(round_number).sample(range(64), 64)
                got = await asyncio.gather(*(answer(client, requests[i]) for i in order))
                assert all(text for texts in got for text in texts)
                different += sum(texts != alone[i] for i, texts in zip(order, got, strict=True))
            # About 2,000 tokens a round; only a floating-point near-tie (gap below 1e-5 or so) may part two runs.
            assert different <= 3

    asyncio.run(run())


def test_memory_is_flat_over_500_requests_and_nothing_is_left(server: tuple[str, psutil.Process]) -> None:
    url, process = server

    async def burst(seed: int, count: int) -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
            for request in (requests := mixed_requests(seed, count)):
                request["max_tokens"], request["min_tokens"] = 3, 1
            gate = asyncio.Semaphore(32)

            async def one(request: dict[str, object]) -> None:
                async with gate:
                    await answer(client, request)

            await asyncio.gather(*map(one, requests))

    asyncio.run(burst(100, 400))  # the cache fills, allocators reach their size
    before = process.memory_info().rss
    asyncio.run(burst(200, 500))
    grown = process.memory_info().rss - before
    assert grown < 0.03 * before, f"{grown >> 20} MiB more after 500 requests"
    health = httpx.get(f"{url}/health").json()
    assert (health["running"], health["waiting"]) == (0, 0)


def test_a_client_that_leaves_frees_its_sequence(server: tuple[str, psutil.Process]) -> None:
    url, _ = server
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 1500, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        while not re.match(r"data: .*text", next(lines)):
            pass
        assert httpx.get(f"{url}/health").json()["running"] == 1
    deadline = time.monotonic() + 10
    while httpx.get(f"{url}/health").json()["running"]:
        assert time.monotonic() < deadline, "still running 10 s after the client went"
        time.sleep(0.05)
