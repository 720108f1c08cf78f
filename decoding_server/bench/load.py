"""The HTTP load client: a closed loop of completion requests with token-id prompts, counted from `usage`."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from decoding_server.bench.workloads import Prompt

PLAIN: Mapping[str, Any] = {}
"""Further fields of a request: none."""


class LoadError(Exception):
    """The server answered something that can't be counted: an error status, or fewer tokens than were asked for."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One closed loop. seconds: from the first request sent to the last answer. latencies: seconds of each request."""

    tokens: int
    prompt_tokens: int
    seconds: float
    latencies: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def body(model: str, prompt: Prompt, max_tokens: int, *, stream: bool, temperature: float = 0.0) -> dict[str, object]:
    """A completion of exactly `max_tokens` tokens, by default greedy."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "ignore_eos": True,
        "stream": stream,
    }


async def complete(
    client: httpx.AsyncClient,
    model: str,
    prompt: Prompt,
    max_tokens: int,
    temperature: float = 0.0,
    fields: Mapping[str, Any] = PLAIN,
) -> tuple[int, int]:
    """One answer, not streamed, to a request with some more fields. Returns (prompt tokens, completion tokens) as the
    server counted them.

    Raises LoadError, httpx.HTTPError.
    """
    request = body(model, prompt, max_tokens, stream=False, temperature=temperature)
    response = await client.post("/v1/completions", json={**request, **fields})
    if response.status_code != 200:
        raise LoadError(f"status {response.status_code}: {response.text[:300]}")
    usage = response.json()["usage"]
    if usage["completion_tokens"] != max_tokens:
        raise LoadError(f"{usage['completion_tokens']} tokens came back, {max_tokens} were asked for")
    return int(usage["prompt_tokens"]), int(usage["completion_tokens"])


async def closed_loop(
    client: httpx.AsyncClient,
    model: str,
    prompts: Sequence[Prompt],
    max_tokens: int,
    concurrency: int,
    temperature: float = 0.0,
    fields: Mapping[str, Any] = PLAIN,
) -> LoadResult:
    """Sends all prompts, `concurrency` of them in flight at any time.

    Raises an ExceptionGroup of what `complete` raises, at the first fault.
    """
    waiting: Iterator[Prompt] = iter(prompts)
    counts: list[tuple[int, int]] = []
    latencies: list[float] = []

    async def worker() -> None:
        for prompt in waiting:
            sent = time.perf_counter()
            counts.append(await complete(client, model, prompt, max_tokens, temperature, fields))
            latencies.append(time.perf_counter() - sent)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    seconds = time.perf_counter() - started
    return LoadResult(
        tokens=sum(completion for _, completion in counts),
        prompt_tokens=sum(prompt for prompt, _ in counts),
        seconds=seconds,
        latencies=tuple(latencies),
    )


async def time_to_first_token(client: httpx.AsyncClient, model: str, prompt: Prompt, max_tokens: int = 4) -> float:
    """Seconds from sending a streamed request to its first chunk with a choice in it; reads the stream to its end.

    `max_tokens` above 1 keeps the first chunk apart from the last. Raises LoadError, httpx.HTTPError.
    """
    sent = time.perf_counter()
    first: float | None = None
    request = body(model, prompt, max_tokens, stream=True)
    async with client.stream("POST", "/v1/completions", json=request) as response:
        if response.status_code != 200:
            raise LoadError(f"status {response.status_code}: {(await response.aread()).decode()[:300]}")
        async for line in response.aiter_lines():
            if not line.startswith("data:") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data:"))
            if "error" in chunk:
                raise LoadError(f"error in the stream: {chunk['error']}")
            if first is None and chunk.get("choices"):
                first = time.perf_counter() - sent
    if first is None:
        raise LoadError("the stream ended without a choice")
    return first
