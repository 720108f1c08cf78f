"""`python -m decoding_server.bench.overload`: many times more requests than the server can serve, of mixed strategies.

First the rate at which the server answers such requests is measured, then requests come at a multiple of it, whatever
becomes of those before them. It passes only if every request was answered whole or refused with 429 and a
`retry-after`, no admitted one took longer than the queue before it explains, no state was left, and the server then
serves as it did before. Only a server process of its own, on the loopback interface.
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from decoding_server.bench import loops
from decoding_server.bench.own_server import NotReady, server
from decoding_server.bench.soak import Check, left_over, log_is_clean

PATIENCE_SECONDS = 300.0
"""The longest a request may take; one that is not answered by then is lost."""
SLACK = 3.0
"""How many times longer than a full queue takes at the measured rate an admitted request may take: strategies differ in
cost, and the machine is shared."""
MAX_SEQS, MAX_WAITING = 8, 24
FLAGS = (
    *("--kv-cache-memory", "192MiB", "--max-model-len", "1024"),
    *("--max-num-seqs", str(MAX_SEQS), "--max-waiting", str(MAX_WAITING)),
)
DECODINGS: tuple[Any, ...] = (
    None,
    {"sampler": {"type": "bregman", "alpha": 1.5, "tau": 0.02}},
    {"sampler": {"type": "min_p", "p": 0.1}, "penalty": {"type": "dry"}},
    {"penalty": {"type": "grammar", "language": "python"}},
    {"speculation": {"type": "ngram", "length": 4}},
    {"search": {"type": "best-of-n", "samples": 2}},
    {"search": {"type": "beam", "width": 2}},
    {"search": {"type": "majority", "samples": 2}},
    {"budget": {"forward_tokens": 40}},
)
PROMPTS = ("The river", "In the year 1900", "def add(a, b):", "A good answer is", "The capital of France is")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. seconds: from sending to the end of the reply. fault: why this is not what it should get."""

    number: int
    status: int | None
    seconds: float
    fault: str | None = None


def bodies(count: int, seed: int, decodings: Sequence[Any] = DECODINGS) -> list[dict[str, Any]]:
    """Requests, each with one of the strategies in turn; every third one streams."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        body = {"prompt": draw.choice(PROMPTS), "max_tokens": draw.randint(4, 24), "seed": number}
        decoding = decodings[number % len(decodings)]
        if decoding is not None:
            body["decoding"] = decoding
        if number % 3 == 0:
            body["stream"] = True
        made.append(body)
    return made


async def send(client: httpx.AsyncClient, number: int, body: dict[str, Any]) -> Outcome:
    started = time.monotonic()
    status, fault = None, None
    try:
        reply = await asyncio.wait_for(client.post("/v1/completions", json=body), PATIENCE_SECONDS)
        status, fault = reply.status_code, fault_of(reply, streamed=bool(body.get("stream")))
    except TimeoutError:
        fault = "no answer"
    except httpx.HTTPError as error:
        fault = f"{type(error).__name__}: {error}"
    return Outcome(number, status, round(time.monotonic() - started, 4), fault)


def fault_of(reply: httpx.Response, *, streamed: bool) -> str | None:
    """Whole answers and proper refusals only."""
    if reply.status_code == 429:
        error = json.loads(reply.text).get("error", {})
        well = reply.headers.get("retry-after", "").isdigit() and error.get("code") == "queue_full"
        return None if well else f"a refusal without retry-after: {reply.text[:200]}"
    if reply.status_code != 200:
        return f"status {reply.status_code}: {reply.text[:200]}"
    if streamed:
        whole = reply.text.endswith("data: [DONE]\n\n") and '"error":' not in reply.text
        return (
            None if whole and '"finish_reason":"' in reply.text else f"a stream that is not whole: {reply.text[-200:]}"
        )
    reasons = [choice["finish_reason"] for choice in reply.json()["choices"]]
    return None if reasons and all(reasons) else f"an answer that is not whole: {reply.text[:200]}"


async def closed_loop(client: httpx.AsyncClient, requests: Sequence[dict[str, Any]], at_once: int) -> list[Outcome]:
    """All of them, `at_once` at any time."""
    outcomes: list[Outcome] = []

    async def ask(number: int, _: float | None) -> None:
        outcomes.append(await send(client, number, requests[number]))

    await loops.closed(ask, len(requests), at_once)
    return outcomes


async def open_loop(client: httpx.AsyncClient, requests: Sequence[dict[str, Any]], rate: float) -> list[Outcome]:
    """All of them, `rate` a second, whatever has become of those before."""
    outcomes: dict[int, Outcome] = {}

    async def ask(number: int, _: float | None) -> None:
        outcomes[number] = await send(client, number, requests[number])

    await loops.opened(ask, time.perf_counter(), [number / rate for number in range(len(requests))])
    return [outcomes[number] for number in range(len(requests))]


@dataclass(frozen=True, slots=True)
class Result:
    """rate: answers a second in the measured closed loop. before, under, after: outcomes of the three parts."""

    rate: float
    before: list[Outcome]
    under: list[Outcome]
    after: list[Outcome]
    load: float
    capacity: int

    def checks(self) -> list[Check]:
        everything = [*self.before, *self.under, *self.after]
        faults = [one for one in everything if one.fault]
        counts = Counter(one.status for one in self.under)
        admitted = [one.seconds for one in self.under if one.status == 200]
        bound = SLACK * self.capacity / self.rate
        calm = [one for one in (*self.before, *self.after) if one.status != 200]
        slowest = max(admitted, default=math.inf)
        middle = (
            statistics.median(one.seconds for one in self.before),
            statistics.median(one.seconds for one in self.after),
        )
        first = f"; first fault: {faults[0]}" if faults else ""
        return [
            Check("every request was answered or refused", not faults, f"{len(everything)} requests{first}"),
            Check(
                f"it was an overload ({self.load:g} times {self.rate:.1f}/s)",
                counts[429] > 0 and counts[200] > 0,
                ", ".join(f"{status}: {n}" for status, n in counts.most_common()),
            ),
            Check(
                "the latency of admitted requests is bounded",
                slowest <= bound,
                f"median {statistics.median(admitted or [math.inf]):.2f} s, slowest {slowest:.2f} s; a full queue of "
                f"{self.capacity} takes {self.capacity / self.rate:.2f} s, limit {bound:.2f} s",
            ),
            Check(
                "before and afterwards all were answered",
                not calm,
                f"median {middle[0]:.2f} s before, {middle[1]:.2f} s afterwards",
            ),
        ]


async def overload(
    url: str, count: int, load: float, seed: int, capacity: int, at_once: int, decodings: Sequence[Any] = DECODINGS
) -> Result:
    """capacity: sequences that the server runs and keeps waiting. at_once: sequences that it runs."""
    calm = 6 * len(decodings)
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        await closed_loop(client, bodies(len(decodings), seed + 1, decodings), at_once)  # what starts on first use
        started = time.monotonic()
        before = await closed_loop(client, bodies(calm, seed + 2, decodings), at_once)
        rate = calm / (time.monotonic() - started)
        under = await open_loop(client, bodies(count, seed, decodings), load * rate)
        after = await closed_loop(client, bodies(calm, seed + 2, decodings), at_once)
    return Result(rate, before, under, after, load, capacity)


def table(checks: Sequence[Check]) -> Table:
    shown = Table(title="overload", show_lines=False)
    for name in ("", "check", "found"):
        shown.add_column(name)
    for check in checks:
        shown.add_row("[green]pass[/]" if check.passed else "[red]FAIL[/]", check.name, check.detail)
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only if every check passed."""
    parser = argparse.ArgumentParser(
        prog="decoding_server.bench.overload", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--requests", type=int, default=500, help="how many under load (default %(default)s)")
    parser.add_argument("--load", type=float, default=4.0, help="times the measured rate (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and lengths")
    parser.add_argument("--output", type=Path, default=Path("build/overload"), help="folder of rows and server log")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / "server.log"

    async def run(url: str) -> tuple[Result, Check]:
        capacity = MAX_SEQS + MAX_WAITING
        result = await overload(url, options.requests, options.load, options.seed, capacity, MAX_SEQS)
        return result, await left_over(url)

    try:
        with server(log, FLAGS) as (url, process):
            result, rest = asyncio.run(run(url))
            process.terminate()
            with contextlib.suppress(TimeoutError):
                process.wait(60)
    except NotReady as error:
        raise SystemExit(f"error: {error}") from None
    with (options.output / "requests.jsonl").open("w") as sink:
        sink.writelines(json.dumps(asdict(one)) + "\n" for one in result.under)
    checks = [*result.checks(), rest, log_is_clean(log)]
    Console().print(table(checks))
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
