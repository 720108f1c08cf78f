"""Generations, and what becomes of them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from strategies.runtime import (
    Delta,
    Generation,
    GenerationStream,
    Runtime,
    SamplingParameters,
    StopConditions,
    TokenLogprob,
)

GREEDY = SamplingParameters(temperature=0.0)


@dataclass
class Answer:
    """All deltas of a stream, put together."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    embedding: list[float] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    deltas: int = 0

    def add(self, delta: Delta) -> None:
        assert self.finish_reason is None, "nothing follows the last delta"
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs or []
        self.prompt_logprobs = self.prompt_logprobs or delta.prompt_logprobs
        self.embedding = self.embedding or delta.embedding
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
        self.deltas += 1


def asking(
    runtime: Runtime,
    prompt: str | Sequence[int],
    max_tokens: int | None = 16,
    *,
    sampling: SamplingParameters = GREEDY,
    stopping: dict[str, Any] | None = None,
    **fields: Any,
) -> Generation:
    tokens = runtime.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    return Generation(tokens, sampling, StopConditions(max_tokens=max_tokens, **(stopping or {})), **fields)


async def answer_of(stream: GenerationStream, timeout: float = 120.0) -> Answer:
    answer = Answer()

    async def read() -> None:
        async for delta in stream:
            answer.add(delta)

    await asyncio.wait_for(read(), timeout)
    assert answer.finish_reason is not None
    return answer


async def answers(runtime: Runtime, generations: Sequence[Generation]) -> list[Answer]:
    return list(await asyncio.gather(*map(answer_of, runtime.submit(generations))))


async def answer(runtime: Runtime, generation: Generation) -> Answer:
    return (await answers(runtime, [generation]))[0]
