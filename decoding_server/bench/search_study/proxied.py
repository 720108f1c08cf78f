"""The same searches as a proxy in front of a server would run them: every continuation is an HTTP request of its own.

`ProxiedRuntime` has the interface of a runtime and turns each generation into a completion request with token ids, so a
search runs on it unchanged. It can't read hidden states, and ends a step at the first separator, blank or not.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence

import httpx

from strategies.errors import InvalidRequest, RequestFailed
from strategies.runtime import Delta, FinishReason, Generation, ModelInfo, Runtime, RuntimeStatus, TokenLogprob
from strategies.sampling.transform import Stage
from strategies.text import Tokenizer

TIMEOUT = 600.0  # seconds
TOKEN_ID = re.compile(r"token_id:([0-9]+)")


class ProxiedStream:
    """One request's answer, in one piece."""

    def __init__(self, answer: "asyncio.Task[Delta]") -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[Delta]:
        yield await self._answer

    def cancel(self) -> None:
        self._answer.cancel()


class ProxiedRuntime:
    """Implements `Runtime` over /v1/completions. local: the same model in this process, for its tokenizer and
    its description only; nothing is computed there. requests: how many were made."""

    def __init__(self, url: str, local: Runtime) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=httpx.Limits(max_connections=64))
        self._local = local
        self.requests = 0

    @property
    def info(self) -> ModelInfo:
        return self._local.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._local.tokenizer

    def submit(self, generations: Sequence[Generation], *, admitted: bool = False) -> list[ProxiedStream]:
        """Sends all of them at once. Raises InvalidRequest for what a completion request can't say."""
        bodies = [(generation, body(generation)) for generation in generations]
        return [ProxiedStream(asyncio.ensure_future(self._ask(generation, asked))) for generation, asked in bodies]

    async def _ask(self, generation: Generation, asked: dict[str, object]) -> Delta:
        self.requests += 1
        try:
            response = await self._client.post("/v1/completions", json=asked)
        except httpx.HTTPError as error:
            raise RequestFailed(f"the server can't be reached: {error}") from error
        if response.status_code != 200:
            raise RequestFailed(f"the server answers {response.status_code}: {response.text[:300]}")
        reply = response.json()
        spent, spend = reply["usage"]["decoding"], generation.meter.spend
        spend.target_tokens += spent["target_tokens"]
        spend.output_tokens += spent["output_tokens"]
        spend.cached_tokens += spent["cached_tokens"]
        spend.flops += spent["flops"]
        return delta(reply["choices"][0], generation)

    def status(self) -> RuntimeStatus:
        return self._local.status()

    def drain(self) -> None:
        return None

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().create_task(self._client.aclose())


def body(generation: Generation) -> dict[str, object]:
    """The completion request. Raises InvalidRequest for transforms and pooled states."""
    if generation.pooling is not None or generation.prompt_logprobs is not None:
        raise InvalidRequest("a completion request can't read hidden states or score a text")
    if any(transform.stage != Stage.TEMPERATURE for transform in generation.sampling.transforms):
        raise InvalidRequest("only temperature is sent")
    stopping = generation.stopping
    if stopping.max_tokens == 0:
        # What a search computes first, the prompt alone, has no meaning for a server without a prefix cache.
        stopping_tokens = 1
    else:
        stopping_tokens = stopping.max_tokens if stopping.max_tokens is not None else 1024
    asked: dict[str, object] = {
        "prompt": generation.tokens,
        "max_tokens": stopping_tokens,
        "temperature": generation.sampling.temperature,
        "seed": hash((generation.seed, generation.branch)) % 2**53,
        "stop": [*stopping.stop, *stopping.step_ends],
        "include_stop_str_in_output": bool(stopping.step_ends),
        "ignore_eos": stopping.ignore_eos,
        "return_token_ids": True,
    }
    if generation.logprobs is not None:
        asked["logprobs"] = generation.logprobs
        asked["return_tokens_as_token_ids"] = True
    return asked


def delta(choice: dict[str, object], generation: Generation) -> Delta:
    """A completion's choice as the one delta of a stream."""
    tokens = choice["token_ids"]
    assert isinstance(tokens, list)
    reason: FinishReason = "stop" if choice["finish_reason"] == "stop" else "length"
    found = Delta(text=str(choice["text"]), tokens=tokens, finish_reason=reason)
    found.step_end = choice["stop_reason"] in generation.stopping.step_ends
    if not found.step_end:
        found.stop_reason = choice["stop_reason"]  # type: ignore[assignment]  # a string, an id or nothing
    entries = choice.get("logprobs")
    if isinstance(entries, dict) and generation.logprobs is not None:
        tops = entries["top_logprobs"] or [{}] * len(entries["token_logprobs"])
        found.logprobs = [
            TokenLogprob(token, logprob, tuple((token_id(name), value) for name, value in (top or {}).items()))
            for token, logprob, top in zip(tokens, entries["token_logprobs"], tops, strict=False)
        ]
    return found


def token_id(name: str) -> int:
    """The id in `token_id:ID`."""
    match = TOKEN_ID.fullmatch(name)
    assert match is not None
    return int(match.group(1))
