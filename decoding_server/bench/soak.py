"""`python -m decoding_server.bench.soak`: thousands of short requests of every kind against a real server process.

It passes only if every request got what it should, the server's memory stayed flat after the warm-up, nothing of any
request was left at the end, and SIGTERM let running requests finish and ended the process with code 0. The requests
and the verdicts on replies are in `soak_requests`.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import httpx
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from decoding_server.bench.own_server import NotReady, server
from decoding_server.bench.soak_requests import COMPLETIONS, Mix, Reply, SoakRequest, fault

CONCURRENCY = 32
WARM_UP = 0.3
"""The share of the requests before memory is judged: the KV pool is touched page by page until the cache is full."""
WINDOWS = 10
"""The samples after the warm-up are cut into so many parts in order; the level of a part is its median. Single samples
are no measure of a leak: what a running request works with (log-probabilities of a whole prompt take 200 KB a token)
comes and goes within seconds. The peak is reported beside the levels."""
FLAT = 0.05
"""How far the highest level may lie above the lowest."""
SAMPLE_SECONDS = 1.0
PATIENCE_SECONDS = 300.0
"""The longest a request may take; one that is not answered by then is lost."""
CONTEXT = 1024
FLAGS = ("--kv-cache-memory", "96MiB", "--max-model-len", str(CONTEXT))
"""A pool of about 2,200 tokens: full within the warm-up, then evicting and preempting all the time."""
TOOLS = ("--tool-call-parser", "hermes")
DRAINED = 4
"""Streams that run when SIGTERM comes."""
SERVER_FAULT = re.compile(r"^(ERROR|CRITICAL|Traceback)")

Outcome = Literal["ok", "left", "wrong"]


@dataclass(frozen=True, slots=True)
class Row:
    """One request and what became of it. left: the client went away first, as it should."""

    number: int
    kind: str
    path: str
    stream: bool
    status: int | None
    seconds: float
    outcome: Outcome
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one moment. rss: bytes. finished: requests done by then. health: status of /health, None if it did
    not answer in time."""

    when: float
    finished: int
    rss: int
    health: int | None


@dataclass(slots=True)
class Check:
    name: str
    passed: bool
    detail: str


@dataclass(slots=True)
class Soak:
    """One run: rows and samples as they come, both also written to `folder` as JSON lines."""

    folder: Path
    rows: list[Row] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def add(self, entry: Row | Sample) -> None:
        name, entries = ("requests", self.rows) if isinstance(entry, Row) else ("samples", self.samples)
        entries.append(entry)  # type: ignore[arg-type]
        with (self.folder / f"{name}.jsonl").open("a") as sink:
            sink.write(json.dumps(asdict(entry)) + "\n")


def flatness(samples: Sequence[Sample], warm_up: int) -> Check:
    """Whether the level of the resident set stayed within `FLAT` once `warm_up` requests had finished."""
    judged = [sample.rss for sample in samples if sample.finished >= warm_up]
    if len(judged) < WINDOWS:
        return Check("memory is flat", False, f"{len(judged)} samples after the warm-up of {warm_up} requests")
    bounds = [len(judged) * part // WINDOWS for part in range(WINDOWS + 1)]
    levels = [statistics.median(judged[start:end]) / 2**20 for start, end in pairwise(bounds)]
    growth = max(levels) / min(levels) - 1
    detail = (
        f"levels {', '.join(f'{level:.0f}' for level in levels)} MiB after {warm_up} requests "
        f"({growth:.1%}, limit {FLAT:.0%}); peak {max(judged) / 2**20:.0f}, {len(judged)} samples"
    )
    return Check("memory is flat", growth <= FLAT, detail)


def answered(rows: Sequence[Row], count: int) -> Check:
    wrong = [row for row in rows if row.outcome == "wrong"]
    detail = f"{len(rows)} of {count}: " + ", ".join(f"{n} {kind}" for kind, n in outcomes(rows).items())
    if wrong:
        detail += f"; first fault: request {wrong[0].number} ({wrong[0].kind}): {wrong[0].fault}"
    return Check("every request got what it should", not wrong and len(rows) == count, detail)


def outcomes(rows: Sequence[Row]) -> dict[str, int]:
    return dict(Counter(row.outcome for row in rows).most_common())


def healthy(samples: Sequence[Sample]) -> Check:
    bad = [sample.health for sample in samples if sample.health != 200]
    detail = f"{len(samples)} answers" + (f", {len(bad)} not 200: {bad[:5]}" if bad else "")
    return Check("/health stayed 200", bool(samples) and not bad, detail)


def idle(health: dict[str, object], metrics: dict[str, float]) -> Check:
    """Nothing runs or waits, and every used KV slot is one that the prefix cache alone holds."""
    busy = {name: health[name] for name in ("running", "waiting") if health[name]}
    gauges = {name: metrics[name] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")}
    cached = metrics["kv_cache_cached_slots"]
    detail = ", ".join(f"{name} {value:g}" for name, value in gauges.items()) + f"; {cached:.0f} slots cached"
    return Check("no request state is left", not busy and not any(gauges.values()), detail)


def parse_metrics(text: str) -> dict[str, float]:
    """Sums over labels, by name without prefix."""
    values: dict[str, float] = {}
    for name, value in re.findall(r"^decoding:(\w+)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
        values[name] = values.get(name, 0.0) + float(value)
    return values


async def exchange(client: httpx.AsyncClient, request: SoakRequest) -> Row:
    """Sends one request, and judges the reply unless the client leaves before it is whole."""
    started, status, reason = time.monotonic(), None, None
    outcome: Outcome = "ok"

    async def content() -> AsyncIterator[bytes]:
        yield request.content[: len(request.content) // 2]
        await asyncio.sleep(PATIENCE_SECONDS)

    async def send() -> Reply:
        body = content() if request.half_body else request.content
        response = await client.post(request.path, content=body, headers={"content-type": "application/json"})
        return Reply(response.status_code, response.text, dict(response.headers))

    try:
        reply = await asyncio.wait_for(send(), request.leaves_after or PATIENCE_SECONDS)
    except TimeoutError:
        outcome, reason = ("left", None) if request.leaves_after else ("wrong", "no answer")
    except httpx.HTTPError as error:
        outcome, reason = "wrong", f"{type(error).__name__}: {error}"
    else:
        status, reason = reply.status, fault(request, reply)
        outcome = "wrong" if reason else "ok"
    seconds = round(time.monotonic() - started, 4)
    return Row(request.number, request.kind, request.path, request.stream, status, seconds, outcome, reason)


async def attack(url: str, soak: Soak, requests: Iterator[SoakRequest], progress: Progress, task: TaskID) -> None:
    """All requests, `CONCURRENCY` of them at any time."""
    limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client, asyncio.TaskGroup() as group:

        async def worker() -> None:
            for request in requests:
                soak.add(await exchange(client, request))
                progress.advance(task)

        for _ in range(CONCURRENCY):
            group.create_task(worker())


async def watch(url: str, process: psutil.Popen, soak: Soak, progress: Progress, task: TaskID) -> None:
    """A sample every `SAMPLE_SECONDS`, until cancelled."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        while True:
            try:
                health = (await client.get("/health")).status_code
            except httpx.HTTPError:
                health = None
            rss = process.memory_info().rss
            soak.add(Sample(time.time(), len(soak.rows), rss, health))
            progress.update(task, description=f"{rss / 2**20:.0f} MiB  {outcomes(soak.rows)}")
            await asyncio.sleep(SAMPLE_SECONDS)


async def left_over(url: str, limit: float = 30.0) -> Check:
    """Waits until nothing runs, then asks what is held."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        deadline = time.monotonic() + limit
        while True:
            health = (await client.get("/health")).json()
            if not (health["running"] or health["waiting"]) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
        return idle(health, parse_metrics((await client.get("/metrics")).text))


async def drain(url: str, process: psutil.Popen) -> Check:
    """SIGTERM while streams run: they end whole, and the process ends with code 0."""
    begun = asyncio.Event()

    async def read(client: httpx.AsyncClient) -> bool:
        body = {"prompt": "The river", "max_tokens": 40, "ignore_eos": True, "stream": True}
        text = ""
        async with client.stream("POST", COMPLETIONS, json=body) as response:
            async for piece in response.aiter_text():
                text += piece
                begun.set()
        return '"finish_reason":"length"' in text and text.endswith("data: [DONE]\n\n")

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        readers = [asyncio.create_task(read(client)) for _ in range(DRAINED)]
        await begun.wait()
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        whole = [result is True for result in await asyncio.gather(*readers, return_exceptions=True)]
    try:
        code = await asyncio.to_thread(process.wait, 60)
    except psutil.TimeoutExpired:
        return Check("SIGTERM drains", False, "the process did not end within 60 s")
    detail = f"{sum(whole)} of {DRAINED} running streams ended whole, exit code {code}"
    return Check("SIGTERM drains", all(whole) and code == 0, detail)


def log_is_clean(log: Path) -> Check:
    lines = [line for line in log.read_text(errors="replace").splitlines() if SERVER_FAULT.match(line)]
    detail = f"{len(lines)} lines of errors" + (f": {lines[0][:200]}" if lines else "")
    return Check("the server logged no errors", not lines, detail)


async def run(url: str, process: psutil.Popen, soak: Soak, count: int, seed: int) -> list[Check]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns) as progress:
        task = progress.add_task("", total=count)
        watching = asyncio.create_task(watch(url, process, soak, progress, task))
        await attack(url, soak, Mix(seed, CONTEXT).requests(count), progress, task)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    checks = [answered(soak.rows, count), flatness(soak.samples, round(WARM_UP * count)), healthy(soak.samples)]
    return [*checks, await left_over(url), await drain(url, process)]


def summary(rows: Sequence[Row], checks: Sequence[Check]) -> Table:
    table = Table(title=f"soak: {len(rows)} requests", show_lines=False)
    for name in ("", "check", "found"):
        table.add_column(name)
    for check in checks:
        table.add_row("[green]pass[/]" if check.passed else "[red]FAIL[/]", check.name, check.detail)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only if every check passed."""
    parser = argparse.ArgumentParser(prog="decoding_server.bench.soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=2000, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the mix; absent: a random one, which is printed")
    parser.add_argument("--output", type=Path, default=Path("build/soak"), help="folder of rows, samples, server log")
    options = parser.parse_args(arguments)
    seed = random.getrandbits(32) if options.seed is None else options.seed
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / "server.log"
    for name in ("requests.jsonl", "samples.jsonl"):
        (options.output / name).unlink(missing_ok=True)
    console, soak, started = Console(), Soak(options.output), time.monotonic()
    console.print(f"seed {seed}, rows in {options.output}")
    try:
        with server(log, (*FLAGS, *TOOLS)) as (url, process):
            checks = asyncio.run(run(url, process, soak, options.requests, seed))
    except NotReady as error:
        raise SystemExit(f"error: {error}") from None
    checks.append(log_is_clean(log))
    console.print(summary(soak.rows, checks))
    console.print(f"{time.monotonic() - started:.0f} s")
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
