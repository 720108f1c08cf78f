"""Searches on the real engine around a model that tells stories: whole answers of known probability."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.scripted import ByteTokenizer, Distribution
from models.torch_runtime.runtime import TorchRuntime
from strategies.budget import Budget, Meter
from strategies.runtime import Delta, Generation, GenerationStream, SamplingParameters, StopConditions
from strategies.search.run import SearchRun
from strategies.search.search import Search

TOKENIZER = ByteTokenizer()
END = 256
PROMPT = TOKENIZER.encode("Q:")
NEVER = -200.0


def logits(probabilities: Mapping[int, float], size: int) -> Tensor:
    """Logits float32 [size] of the next token."""
    values = torch.full((size,), NEVER)
    for token, probability in probabilities.items():
        values[token] = math.log(probability)
    return values


def story(
    answers: Mapping[str, float], tokenizer: ByteTokenizer = TOKENIZER, prompt: int = len(PROMPT)
) -> Distribution:
    """A model that gives each of these answers with this probability, in bytes, and then ends."""
    texts = {(*TOKENIZER.encode(text), END): weight for text, weight in answers.items()}
    known: dict[tuple[int, ...], Tensor] = {}

    def distribution(context: Sequence[int]) -> Tensor:
        so_far = tuple(context[len(PROMPT) :])
        if so_far not in known:
            following: dict[int, float] = {}
            for text, weight in texts.items():
                if text[: len(so_far)] == so_far and len(text) > len(so_far):
                    following[text[len(so_far)]] = following.get(text[len(so_far)], 0.0) + weight
            known[so_far] = logits(following or {END: 1.0}, TOKENIZER.vocab_size)
        return known[so_far]

    return distribution


def rambling(context: Sequence[int], known: dict[tuple[int, ...], Tensor] = {}) -> Tensor:  # noqa: B006  # a cache
    """Random letters in lines of about ten, an end after about three lines; a pure function of the last two tokens."""
    last = tuple(context[-2:])
    if last not in known:
        generator = torch.Generator().manual_seed(31 * last[-1] + last[0])
        values = torch.full((TOKENIZER.vocab_size,), NEVER)
        values[97:123] = torch.randn(26, generator=generator) * 1.5
        values[32] = 1.0
        newline = last[-1] == 10
        values[10], values[END] = (-1.0, 2.5) if newline else (1.5, -3.0)
        known[last] = values
    return known[last]


@dataclass
class Solved:
    """What came of a search: per choice its text, tokens and last delta; all pieces of the first one's text."""

    run: SearchRun
    texts: list[str]
    tokens: list[list[int]]
    ends: list[Delta]
    pieces: list[str]

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """The full trace's nodes."""
        report = self.run.trace.report()
        assert report is not None
        found: list[dict[str, Any]] = report["tree"]
        return found

    @property
    def counts(self) -> dict[str, int]:
        return self.run.trace.summary()

    @property
    def meter(self) -> Meter:
        return self.run.generation.meter


def generation(
    *,
    seed: int = 1,
    max_tokens: int | None = 80,
    temperature: float = 1.0,
    stop: Sequence[str] = (),
    budget: Budget | None = None,
    **fields: Any,
) -> Generation:
    return Generation(
        prompt=PROMPT,
        sampling=SamplingParameters(temperature=temperature),
        stopping=StopConditions(max_tokens=max_tokens, stop=tuple(stop)),
        seed=seed,
        meter=Meter(budget or Budget()),
        **fields,
    )


async def collected(stream: GenerationStream) -> list[Delta]:
    return [delta async for delta in stream]


async def solve(runtime: TorchRuntime, search: Search, n: int = 1, **fields: Any) -> Solved:
    """Runs a search, its trace in full."""
    run = SearchRun(search.model_copy(update={"trace": "full"}), runtime, generation(**fields), n=n)
    choices = await asyncio.gather(*(collected(stream) for stream in run.streams))
    return Solved(
        run,
        ["".join(delta.text for delta in deltas) for deltas in choices],
        [[token for delta in deltas for token in delta.tokens] for deltas in choices],
        [deltas[-1] for deltas in choices],
        [delta.text for delta in choices[0] if delta.text],
    )


async def plain(runtime: TorchRuntime, n: int = 1, **fields: Any) -> list[str]:
    """The texts of a request without a search."""
    base = generation(**fields)
    streams = runtime.submit([Generation(**{**_fields(base), "branch": (i,)}) for i in range(n)])
    return ["".join(delta.text for delta in await collected(stream)) for stream in streams]


def _fields(base: Generation) -> dict[str, Any]:
    return {name: getattr(base, name) for name in Generation.__dataclass_fields__}


@dataclass
class CallCounter:
    """Counts what is submitted to a runtime, call by call."""

    runtime: TorchRuntime
    calls: list[list[Generation]] = field(default_factory=list)

    def __enter__(self) -> "CallCounter":
        submit: Callable[..., Any] = self.runtime.submit

        def counted(generations: Sequence[Generation], **options: Any) -> Any:
            self.calls.append(list(generations))
            return submit(generations, **options)

        self.runtime.submit = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        del self.runtime.submit  # the class's own again


async def is_idle(runtime: TorchRuntime) -> bool:
    """Whether soon nothing runs or waits, and every KV slot is free or cached."""
    engine = runtime.engine
    for _ in range(500):
        status = runtime.status()
        if status.running == status.waiting == 0:
            return engine.pool.num_free + engine.scheduler.cache.size == engine.pool.num_slots
        await asyncio.sleep(0.01)
    return False
