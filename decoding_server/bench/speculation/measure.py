"""One cell: all prompts of a set, so many at a time, through the engine; and what it reports."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from models.torch_runtime.runtime import TorchRuntime
from strategies.budget import Meter
from strategies.runtime import Generation, StopConditions
from strategies.sampling.standard import sampling
from strategies.speculative.speculation import Speculation


@dataclass(slots=True)
class Counts:
    """Sums over a cell's requests.

    tokens: generated after each sequence's first, which prefill gives. forwards: of the target, each with one or more
    tokens of a sequence, likewise after the first. rounds of them verified a tree; see `strategies.budget.Spend`.
    throughput: tokens that all sequences got in `seconds`, the requests' and those of the requests that kept up the
    load beside the last of them.
    """

    tokens: int = 0
    forwards: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_by_level: list[int] = field(default_factory=list)
    draft_tokens: int = 0
    picked: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    throughput: int = 0

    @property
    def block_efficiency(self) -> float:
        return self.tokens / self.forwards if self.forwards else 1.0

    @property
    def tokens_per_second(self) -> float:
        return self.throughput / self.seconds


def generations(
    prompts: Sequence[Sequence[int]], temperature: float, max_tokens: int, speculation: Speculation | None
) -> list[Generation]:
    stopping = StopConditions(max_tokens=max_tokens)
    return [
        Generation(prompt, sampling(temperature=temperature), stopping, seed=seed, speculation=speculation)
        for seed, prompt in enumerate(prompts)
    ]


def run(runtime: TorchRuntime, requests: Sequence[Generation], concurrency: int) -> Counts:
    """Runs the requests, `concurrency` at a time, until the last of them is done.

    The load stays up till then: whoever finds no request left repeats an early one with another seed. Else sequences
    that end apart, as with speculation, would be timed at a falling load, and those of plain decoding, which end
    together, would not.
    """
    counts = Counts()

    async def loop() -> None:
        order = count()
        left = len(requests)
        done = asyncio.Event()

        async def worker() -> None:
            nonlocal left
            while not done.is_set():
                place = next(order)
                request = requests[place % len(requests)]
                if place >= len(requests):
                    request = replace(request, seed=place, meter=Meter())
                (stream,) = runtime.submit([request])
                first = True
                try:
                    async for delta in stream:
                        counts.throughput += max(0, len(delta.tokens) - first)
                        first = False
                        if done.is_set():
                            return
                finally:
                    stream.cancel()
                if place < len(requests):
                    left -= 1
                    if not left:
                        counts.seconds = time.perf_counter() - started
                        done.set()

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(requests))):
                group.create_task(worker())

    asyncio.run(loop())
    picked: Counter[str] = Counter()
    for request in requests:
        spend = request.meter.spend
        counts.tokens += spend.output_tokens - 1
        counts.forwards += spend.forward_passes - 1
        counts.rounds += spend.rounds
        counts.drafted += spend.drafted_tokens
        counts.accepted += spend.accepted_tokens
        counts.draft_tokens += spend.draft_tokens
        counts.accepted_by_level += [0] * (len(spend.accepted_by_level) - len(counts.accepted_by_level))
        for level, accepted in enumerate(spend.accepted_by_level):
            counts.accepted_by_level[level] += accepted
        picked.update(spend.picked)
    counts.picked = dict(picked)
    return counts


def draft_forwards(counts: Counts, speculation: Speculation | None) -> int:
    """Forwards of the draft, each sequence's counted apart: one per level of each tree; of `auto` what it picked."""
    if speculation is None or speculation.name == "ngram":
        return 0
    if speculation.uses_draft:
        return counts.rounds * speculation.length
    levels = {
        name: name.split()[-1].count("x") + 1 for name in counts.picked if name.split()[0] not in ("off", "ngram")
    }
    return sum(counts.picked[name] * depth for name, depth in levels.items())


def memory_bound_speedup(counts: Counts, forwards: int, ratio: float) -> float:
    """MBSU: tokens per unit of cost, a target forward costing 1, a draft forward `ratio`."""
    cost = counts.forwards + ratio * forwards
    return counts.tokens / cost if cost else 1.0
