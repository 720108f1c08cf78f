"""What the tests of the tree searches share: a scripted model that solves problems line by line, and value functions.

A solution is two to five lines of three letters each, then `#### d` with a digit, then the end. The chances depend on
the text so far, so equal paths have equal chances and different ones do not.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.scripted import ByteTokenizer, ScriptedModel, scripted_runtime
from models.torch_runtime.runtime import TorchRuntime
from strategies.budget import Budget, Meter
from strategies.runtime import Delta, Generation, StopConditions
from strategies.sampling.standard import sampling
from strategies.scoring.value import ValueFunction
from strategies.search.context import SearchContext
from strategies.search.node import Node
from strategies.search.run import SearchRun
from strategies.search.search import Search

TOKENIZER = ByteTokenizer()
END = 256
QUESTION = "a question:"
PROMPT = TOKENIZER.encode(QUESTION)
NEWLINE = ord("\n")


def noise(text: str, salt: str = "") -> float:
    """A number in 0..1 that looks random and depends on the text alone."""
    return zlib.crc32((salt + text).encode()) / 2**32


def solving(context: Sequence[int]) -> Tensor:
    """The model described above. Asked to judge a solution (self-evaluation), it says A or B by the text's noise."""
    text = TOKENIZER.decode(list(context)).removeprefix(QUESTION)
    logits = torch.full((TOKENIZER.vocab_size,), -30.0)
    if text.endswith("Reply:"):
        logits[ord("A")], logits[ord("B")] = 4 * noise(text), 1.0
        return logits
    *lines, line = text.split("\n")
    if lines and lines[-1].startswith("####"):
        logits[END] = 30.0
    elif line.startswith("####"):
        rest = "#### "[len(line) :]
        if rest:
            logits[ord(rest[0])] = 30.0
        elif line == "#### ":
            for digit in "123":
                logits[ord(digit)] = 2 * noise(text, digit)
        else:
            logits[NEWLINE] = 30.0
    elif line.startswith("#"):
        logits[ord("#### "[len(line)])] = 30.0
    elif len(line) == 3:
        logits[NEWLINE] = 30.0
    else:
        for letter in "abcd":
            logits[ord(letter)] = 2 * noise(text, letter)
        if not line and len(lines) >= 2:
            logits[ord("#")] = 30.0 if len(lines) >= 5 else 2.0
    return logits


@dataclass
class Scripted:
    """A value function of the text. asked: the texts that were scored."""

    value: Callable[[str], float] = noise
    calibrated: bool = True
    asked: list[str] = field(default_factory=list)

    async def values(self, context: SearchContext, nodes: Sequence[Node]) -> list[float]:
        self.asked += [node.text for node in nodes]
        return [self.value(node.text) for node in nodes]


@contextmanager
def serving(distribution: Callable[[Sequence[int]], Tensor] = solving, **options: Any) -> Iterator[TorchRuntime]:
    runtime = scripted_runtime(distribution, TOKENIZER, **options)
    try:
        yield runtime
    finally:
        runtime.close()


def asking(*, max_tokens: int | None = 60, budget: Budget | None = None, **changes: Any) -> Generation:
    stopping = changes.pop("stopping", StopConditions(max_tokens=max_tokens))
    temperature = changes.pop("temperature", 1.0)
    return Generation(
        PROMPT,
        sampling=sampling(temperature=temperature),
        stopping=stopping,
        meter=Meter(budget or Budget()),
        **changes,
    )


@dataclass
class Found:
    """What a search answered, and what it did. texts, tokens: per choice; reports: what the trace says."""

    run: SearchRun
    deltas: list[list[Delta]]

    @property
    def context(self) -> SearchContext:
        return self.run.context

    @property
    def texts(self) -> list[str]:
        return ["".join(delta.text for delta in choice) for choice in self.deltas]

    @property
    def tokens(self) -> list[list[int]]:
        return [[token for delta in choice for token in delta.tokens] for choice in self.deltas]

    @property
    def reasons(self) -> list[tuple[str | None, str | int | None]]:
        return [(choice[-1].finish_reason, choice[-1].stop_reason) for choice in self.deltas]

    @property
    def tree(self) -> list[str]:
        """The text of every node but the root, in order of creation."""
        return [node.text for node in self.context.nodes[1:]]

    @property
    def facts(self) -> dict[str, Any]:
        return self.run.trace.facts


async def find(
    runtime: TorchRuntime, search: Search, generation: Generation, value: ValueFunction | None = None, n: int = 1
) -> Found:
    """Runs a search to its end. value: the value function called "head"."""
    scorers = {} if value is None else {"head": value}
    run = SearchRun(search, runtime, generation, n=n, scorers=scorers, prompt_text=QUESTION)

    async def one(stream: Any) -> list[Delta]:
        return [delta async for delta in stream]

    deltas = await asyncio.wait_for(asyncio.gather(*(one(stream) for stream in run.streams)), 60)
    return Found(run, deltas)


def found(
    search: Search,
    *,
    value: ValueFunction | None = None,
    n: int = 1,
    distribution: Callable[[Sequence[int]], Tensor] = solving,
    runtime: TorchRuntime | None = None,
    **request: Any,
) -> Found:
    """The same on a runtime of its own, or a given one."""
    generation = asking(**request)
    if runtime is not None:
        return asyncio.run(find(runtime, search, generation, value, n))
    with serving(distribution) as own:
        return asyncio.run(find(own, search, generation, value, n))


class Steps:
    """Samples steps from a runtime without any search: what the reference implementations grow their trees with."""

    def __init__(self, runtime: TorchRuntime, seed: int = 0) -> None:
        self.runtime = runtime
        self.seed = seed

    def sample(self, tokens: Sequence[int], lineage: tuple[int, ...], temperature: float = 1.0) -> list[int]:
        """The next step behind an answer so far, up to and with a new line or the end."""
        generation = Generation(
            PROMPT,
            sampling=sampling(temperature=temperature),
            stopping=StopConditions(max_tokens=60, step_ends=("\n",)),
            seed=self.seed,
            branch=lineage,
            answer=tuple(tokens),
        )

        async def collect() -> list[int]:
            (stream,) = self.runtime.submit([generation])
            return [token async for delta in stream for token in delta.tokens]

        return asyncio.run(collect())


def text_of(tokens: Sequence[int]) -> str:
    return TOKENIZER.decode(list(tokens))


def is_final(text: str) -> bool:
    """Whether the last line carries the answer."""
    return text.rstrip("\n").split("\n")[-1].startswith("####")


def forward_tokens(runtime: TorchRuntime) -> int:
    """What the model itself counted."""
    model = runtime.engine.model
    assert isinstance(model, ScriptedModel)
    return model.forward_tokens


def idle(runtime: TorchRuntime) -> bool:
    """Whether nothing runs and nothing but the cache holds slots."""
    status = runtime.status()
    return status.running == 0 and status.waiting == 0 and status.kv_slots_used == status.kv_slots_cached
