"""The run: every missing (load, strategy, seed), each measured as a whole; its rows go to disk in one write."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from decoding_server.bench import identity, provenance
from decoding_server.bench.endpoint import Endpoint, Record
from decoding_server.bench.loops import closed, opened
from decoding_server.bench.progress import Show
from decoding_server.bench.quality.contenders import Strategy
from decoding_server.bench.rows import Row, RowFile
from decoding_server.bench.serving import summary
from decoding_server.bench.serving.client import Answer, streamed
from decoding_server.bench.serving.loads import Load
from decoding_server.bench.serving.requests import Questions, marked

ROWS, RUNS, RESULTS = "rows.jsonl", "runs.jsonl", "results.json"
KIND = "serve"
WIDTH = 8.0
"""Answers that a search samples, where its strategy leaves that open."""
DIGITS = 6
Point = tuple[Load, Strategy, int]


@dataclass(frozen=True, slots=True)
class Settings:
    """output: the folder of rows. server: as the command line names it. own: it is started for the measurement, from
    this code and on this machine. data: a title of what is asked. timeout, seconds: of one request; after which no load
    is begun. slo: seconds by "ttft", "tpot", "e2e"."""

    output: Path
    server: str
    data: str
    loads: tuple[Load, ...]
    requests: int = 64
    warm_up: int = 4
    max_tokens: int = 128
    ignore_eos: bool = False
    temperature: float = 0.0
    seeds: tuple[int, ...] = (1,)
    timeout: float = 600.0
    seconds: float | None = None
    slo: tuple[tuple[str, float], ...] = ()
    label: str | None = None
    own: bool = False


@dataclass(slots=True)
class Study:
    """Raises OSError where the folder can't be made."""

    settings: Settings
    questions: Questions
    strategies: Sequence[Strategy]
    show: Show
    rows: RowFile = field(init=False)
    runs: RowFile = field(init=False)
    _digests: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        settings.output.mkdir(parents=True, exist_ok=True)
        self.rows, self.runs = RowFile(settings.output / ROWS), RowFile(settings.output / RUNS)
        shared = [
            *(settings.server, self.questions.fingerprint, settings.requests, settings.warm_up, settings.max_tokens),
            *(settings.ignore_eos, settings.temperature, settings.timeout),
        ]
        self._digests = {one.name: identity.digest([*shared, one.request(WIDTH)]) for one in self.strategies}

    def points(self) -> list[Point]:
        """Strategies in turn under each load, so that what drifts meets all of them."""
        settings = self.settings
        return [(load, one, seed) for seed in settings.seeds for load in settings.loads for one in self.strategies]

    def keys(self, point: Point) -> list[str]:
        load, one, seed = point
        return [f"{one.name}|{load.name}|{seed}|{i}|{self._digests[one.name]}" for i in range(self.settings.requests)]

    def missing(self) -> list[Point]:
        return [point for point in self.points() if not self.rows.has(self.keys(point))]

    async def run(self, endpoint: Endpoint) -> bool:
        """Measures what is missing; False when the time was up before the end.

        Raises Unusable where the server has another model than the rows that are there.
        """
        began = time.monotonic()
        todo = self.missing()
        if not todo:
            return True
        output = self.settings.output
        identity.check_model(endpoint.model, self._digests.values(), self.rows.rows, self.runs.rows, output)
        facts = provenance.facts() if self.settings.own else await provenance.facts_of(endpoint)
        run = {**facts, **self._facts(endpoint.model, extended=endpoint.extended)}
        self.runs.append([run])
        for point in todo:
            if self.settings.seconds is not None and time.monotonic() - began > self.settings.seconds:
                return False
            found = await self._measure(point, endpoint, run["key"])
            # Where a write was cut off, rows of another measurement of this load are there.
            self.rows.replace([{**row, "run": run["key"]} for row in found])
        return True

    async def _measure(self, point: Point, endpoint: Endpoint, run: str) -> list[Row]:
        load, one, seed = point
        settings = self.settings
        total = len(self.points()) * settings.requests
        done = total - len(self.missing()) * settings.requests
        what = f"{one.name}, {load.name}"

        async def answered(number: int) -> Answer:
            text = marked(self.questions.number(seed, number), run, one.name, load.name, seed, number)
            body = self._body(endpoint.model, one, seed, number, text)
            return await streamed(endpoint.client, body, settings.timeout)

        for number in range(settings.warm_up):
            await answered(-1 - number)
        answers: dict[int, tuple[float, Answer]] = {}
        started = time.perf_counter()

        async def ask(number: int, due: float | None) -> None:
            scheduled = time.perf_counter() if due is None else due
            answers[number] = (scheduled, await answered(number))
            self.show(what, done + len(answers), total)

        if load.kind == "closed":
            await closed(ask, settings.requests, int(load.value))
        else:
            await opened(ask, started, load.arrivals(settings.requests, seed))
        keys = self.keys(point)
        return [
            {
                "key": keys[number],
                "strategy": one.name,
                "load": load.name,
                "load_kind": load.kind,
                "load_value": load.value,
                "seed": seed,
                "number": number,
                **timed(answer, scheduled, started),
            }
            for number, (scheduled, answer) in sorted(answers.items())
        ]

    def _body(self, model: str, one: Strategy, seed: int, number: int, text: str) -> Record:
        settings = self.settings
        return {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "seed": int.from_bytes(hashlib.sha256(f"{seed}|{number}".encode()).digest()[:8], "big") >> 1,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if settings.ignore_eos else {}),
            **one.request(WIDTH),
        }

    def _facts(self, model: str, *, extended: bool) -> Row:
        settings = self.settings
        return {
            "kind": KIND,
            "model": model,
            "label": settings.label or model,
            "extended": extended,
            "data": settings.data,
            "loads": [load.name for load in settings.loads],
            "requests": settings.requests,
            "warm_up": settings.warm_up,
            "max_tokens": settings.max_tokens,
            "ignore_eos": settings.ignore_eos,
            "temperature": settings.temperature,
            "seeds": list(settings.seeds),
            "timeout": settings.timeout,
            "slo": dict(settings.slo),
            "strategies": {one.name: one.request(WIDTH) for one in self.strategies},
        }

    def _measured(self) -> list[Row]:
        """Rows of these settings."""
        keys = {key for point in self.points() for key in self.keys(point)}
        return [row for row in self.rows.rows if row["key"] in keys]

    def results(self) -> dict[str, Any] | None:
        """The numbers and what they were measured on; None before the first load. Written to results.json too."""
        rows = self._measured()
        if not rows:
            return None
        made = identity.made_by(rows, self.runs.rows)
        if made is None:
            return None
        run = {
            **made,
            **self._facts(made["model"], extended=made["extended"]),
            "missing": len(self.missing()),
            "digests": self._digests,
        }
        found = {"run": run, **summary.results(rows, dict(self.settings.slo))}
        (self.settings.output / RESULTS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return found


def timed(answer: Answer, scheduled: float, started: float) -> Row:
    """Times in seconds. scheduled, sent, ended: since the load began. ttft and e2e: since the request was due, so that
    a client that lags behind its schedule hides nothing. gaps: between chunks with text."""
    usage, texts = answer.usage, answer.texts
    tokens = usage.get("completion_tokens")
    spent = usage.get("decoding") or {}
    gaps = [round(later - earlier, DIGITS) for earlier, later in pairwise(texts)]
    whole = answer.error is None and bool(texts)
    further = tokens - 1 if whole and tokens is not None else 0
    return {
        "scheduled": round(scheduled - started, DIGITS),
        "sent": round(answer.sent - started, DIGITS),
        "ended": round(answer.ended - started, DIGITS),
        "ttft": round(texts[0] - scheduled, DIGITS) if texts else None,
        "e2e": round(answer.ended - scheduled, DIGITS),
        "tpot": round((texts[-1] - texts[0]) / further, DIGITS) if further > 0 else None,
        "gaps": gaps,
        "chunks": len(texts),
        "prompt_tokens": usage.get("prompt_tokens"),
        "output_tokens": tokens,
        "target_tokens": spent.get("target_tokens"),
        "flops": spent.get("flops"),
        "finish_reason": answer.finish_reason,
        "error": answer.error,
        **({"detail": answer.detail} if answer.detail else {}),
    }
