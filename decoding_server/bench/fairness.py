"""`python -m decoding_server.bench.fairness`: how fast plain requests stay beside searches.

Twenty plain requests run beside ten searches of different kinds, and, in turns with that, beside ten more plain ones:
that is what they would get if every request had an equal share. The ratio of the two speeds, request by request, says
how much of its fair share a plain request keeps although a search runs many branches.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoding_server.bench import workload_file
from decoding_server.openmp import configure_openmp

if TYPE_CHECKING:
    from strategies.runtime import Generation, GenerationStream, Runtime

PLAIN = 20
SEARCHES: tuple[dict[str, Any], ...] = (
    {"type": "majority", "samples": 8},
    {"type": "best-of-n", "samples": 8},
    {"type": "weighted-majority", "samples": 8},
    {"type": "phi", "beams": 2, "rollouts": 2},
    {"type": "predictive", "rollouts": 4},
    {"type": "litesearch"},
    {"type": "rebase", "samples": 8},
    {"type": "step-beam"},
    {"type": "mcts"},
    {"type": "tot-dfs"},
)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m decoding_server.bench.fairness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--model", help="what `decoding-server serve` takes (default: the embedded model)")
    result.add_argument("--max-tokens", type=int, default=96, help="of a plain request (default %(default)s)")
    result.add_argument("--repeats", type=int, default=3)
    result.add_argument("--output", type=Path, help="JSON lines of all speeds")
    return result


async def speed(stream: "GenerationStream", began: float) -> float:
    """Tokens per second from submission to the end."""
    tokens = 0
    async for delta in stream:
        tokens += len(delta.tokens)
    return tokens / (time.perf_counter() - began)


async def together(runtime: "Runtime", searches: Sequence[dict[str, Any]], others: int, max_tokens: int) -> list[float]:
    """Speeds of PLAIN plain requests, submitted behind the searches and before `others` more plain ones. The searches
    are begun anew as long as the plain requests run, so that nobody is ever alone."""
    from decoding_server.bench.passages import PASSAGES
    from decoding_server.bench.search_study.contenders import Contender
    from decoding_server.bench.search_study.scorers import loaded
    from strategies.budget import Meter
    from strategies.runtime import Generation, StopConditions
    from strategies.sampling.standard import sampling
    from strategies.search.run import SearchRun

    def request(number: int, limit: int, *, ends: bool) -> "Generation":
        prompt = runtime.tokenizer.encode(f"{number}. {PASSAGES[number % len(PASSAGES)][:400]}")
        stopping = StopConditions(max_tokens=limit, ignore_eos=not ends)
        return Generation(prompt, sampling(temperature=0.8), stopping, seed=number, meter=Meter())

    scorers = loaded(runtime, None)

    async def search_again(number: int, body: dict[str, Any]) -> None:
        search = Contender("", 0.8, body).build()
        assert search is not None
        while True:
            asked = request(100 + number, 200, ends=True)
            run = SearchRun(search, runtime, asked, scorers=scorers, question="What comes next?")
            async for _ in run.streams[0]:
                pass

    busy = [asyncio.create_task(search_again(number, body)) for number, body in enumerate(searches)]
    await asyncio.sleep(1.0 if busy else 0.0)  # the searches have branched
    began = time.perf_counter()
    streams = runtime.submit([request(number, max_tokens, ends=False) for number in range(PLAIN + others)])
    speeds = await asyncio.gather(*(speed(stream, began) for stream in streams))
    for task in busy:
        task.cancel()
    failed = [
        one for one in await asyncio.gather(*busy, return_exceptions=True) if type(one) is not asyncio.CancelledError
    ]
    if failed:
        raise RuntimeError(f"a search failed: {failed[0]!r}")
    return speeds[:PLAIN]


def main(given: Sequence[str] | None = None) -> int:
    arguments = workload_file.parsed(parser(), given)
    configure_openmp()
    from models.loading import resolve
    from models.torch_runtime.load import EngineOptions, load_runtime

    runtime = load_runtime(resolve(arguments.model), EngineOptions())
    medians, least = [], []
    try:
        for repeat in range(arguments.repeats):
            fair = asyncio.run(together(runtime, (), len(SEARCHES), arguments.max_tokens))
            beside = asyncio.run(together(runtime, SEARCHES, 0, arguments.max_tokens))
            ratios = [b / f for b, f in zip(beside, fair, strict=True)]
            medians.append(statistics.median(ratios))
            least.append(min(ratios))
            if arguments.output is not None:
                with arguments.output.open("a", encoding="utf-8") as sink:
                    sink.write(json.dumps({"repeat": repeat, "fair": fair, "beside": beside}) + "\n")
            print(f"repeat {repeat}: median {medians[-1]:.2f}, least {least[-1]:.2f} of the fair share", flush=True)
    finally:
        runtime.close()
    print(f"plain requests keep {statistics.median(medians):.2f} of their fair share (least of all: {min(least):.2f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
