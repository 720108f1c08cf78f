"""The run: every missing (strategy, task, seed) on one model, rows to disk as they come, then the results."""

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decoding_server.bench import identity, provenance
from decoding_server.bench.code import summary
from decoding_server.bench.code.contenders import Contender, VisibleTests, contenders
from decoding_server.bench.code.judging import Judge
from decoding_server.bench.code.measuring import measure
from decoding_server.bench.code.tasks import MBPP, CodeTask, load
from decoding_server.bench.endpoint import Endpoint, Unusable
from decoding_server.bench.progress import Show
from decoding_server.bench.rows import Row, RowFile
from decoding_server.bench.subset import SUBSET_SEED
from decoding_server.bench.workers import Workers
from strategies.errors import InvalidRequest
from strategies.sandbox.sandbox import Sandbox

KIND = "code"

Open = Callable[[], Awaitable[tuple[Endpoint, Sandbox, Callable[[], Awaitable[None]]]]]
"""Opens what a run needs: whom to ask, the sandbox, and how to close both."""
Cell = tuple[Contender, CodeTask, int]


@dataclass(frozen=True, slots=True)
class Settings:
    """output: the folder of rows. strategies: as `contenders.parsed` takes them. visible: asserts of the data set that
    a search sees; None: none of HumanEval's (its prompts have examples), the first of MBPP's. model, engine: what is
    measured, of `identity.model_of` and `engine_of`. concurrency: tasks at once. seconds: nothing begins after that."""

    output: Path
    dataset: Path
    strategies: tuple[str, ...]
    model: str
    count: int | None = None
    subset: int = SUBSET_SEED
    tests: VisibleTests = field(default_factory=VisibleTests)
    visible: int | None = None
    k: int = 10
    seeds: tuple[int, ...] = (1,)
    max_tokens: int = 768
    temperature: float = 0.7
    concurrency: int = 8
    seconds: float | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)


class Study:
    """Raises OSError, ValueError."""

    def __init__(self, settings: Settings, report: Show) -> None:
        self.settings = settings
        self._report = report
        self.dataset = load(settings.dataset)
        visible = (1 if self.dataset.kind == MBPP else 0) if settings.visible is None else settings.visible
        self.rules = VisibleTests(settings.tests.source, visible, settings.tests.wanted)
        self.tasks = self.dataset.subset(settings.count, settings.subset)
        self.contenders = contenders(list(settings.strategies), self.tasks[0], self.rules, settings.k)
        settings.output.mkdir(parents=True, exist_ok=True)
        self.rows = RowFile(settings.output / "rows.jsonl")
        self.runs = RowFile(settings.output / "runs.jsonl")
        self.failed: list[str] = []

    def digest(self, contender: Contender) -> str:
        settings = self.settings
        return identity.digest(
            [
                settings.model,
                settings.engine,
                self.dataset.sha256,
                contender.search,
                self.rules.source,
                self.rules.visible,
                self.rules.wanted,
                settings.k,
                settings.max_tokens,
                settings.temperature,
            ]
        )

    def key(self, contender: Contender, task: CodeTask, seed: int) -> str:
        return f"{contender.name}|{task.name}|{seed}|{self.digest(contender)}"

    def cells(self) -> list[Cell]:
        """Task by task, so that a run that is cut off has compared all strategies on some."""
        return [
            (contender, task, seed)
            for seed in self.settings.seeds
            for task in self.tasks
            for contender in self.contenders
        ]

    def missing(self) -> list[Cell]:
        return [cell for cell in self.cells() if not self.rows.has([self.key(*cell)])]

    async def run(self, opened: Open) -> bool:
        """Measures what is missing; False when the time was up, or cells failed, before the end.

        Raises DecodingError where nothing can be measured like this.
        """
        todo = self.missing()
        if not todo:
            return True
        self._report("opening", len(self.cells()) - len(todo), len(self.cells()))
        async with closing(opened) as (endpoint, sandbox):
            digests = [self.digest(one) for one in self.contenders]
            identity.check_model(endpoint.model, digests, self.rows.rows, self.runs.rows, self.settings.output)
            run = {**await provenance.facts_of(endpoint), **self._facts(endpoint.model, sandbox)}
            self.runs.append([run])
            return await self._measure(endpoint, Judge(sandbox), todo, run["key"])

    async def _measure(self, endpoint: Endpoint, judge: Judge, todo: list[Cell], run: str) -> bool:
        settings, total = self.settings, len(self.cells())
        workers = Workers(settings.concurrency, settings.seconds, self._report, total - len(todo), total)

        async def one(cell: Cell) -> None:
            contender, task, seed = cell
            what = f"{contender.name}, {task.name}"

            async def measured() -> str:
                try:
                    row = await measure(
                        endpoint,
                        judge,
                        contender,
                        task,
                        self.rules,
                        key=self.key(contender, task, seed),
                        k=settings.k,
                        seed=seed_of(seed, task),
                        max_tokens=settings.max_tokens,
                        temperature=settings.temperature,
                    )
                except (InvalidRequest, Unusable) as error:
                    raise Unusable(f"{what}: {error}") from error
                self.rows.append([{**row, "seed": seed, "run": run}])
                return str(row["outcome"])

            await workers.cell(what, measured)

        try:
            await workers.each(todo, one)
        finally:
            self.failed = workers.failed
        return not workers.late and not workers.failed

    def _facts(self, model: str, sandbox: Sandbox) -> Row:
        return {
            "kind": KIND,
            "model": model,
            "sandbox": sandbox.backend.name,
            "concurrency": self.settings.concurrency,
            "engine": identity.shown(self.settings.engine),
            "dataset_sha256": self.dataset.sha256,
        }

    def measured(self) -> list[Row]:
        """Rows of these settings."""
        keys = {self.key(*cell) for cell in self.cells()}
        return [row for row in self.rows.rows if row["key"] in keys]

    def results(self) -> dict[str, Any] | None:
        """The table and what it was measured on; None before the first task that every strategy has finished. Written
        to results.json too."""
        names = [one.name for one in self.contenders]
        measured = self.measured()
        rows = summary.compared(measured, names)
        made = identity.made_by(measured, self.runs.rows)
        if not rows or made is None:
            return None
        settings = self.settings
        run = {
            **made,
            "dataset": self.dataset.kind,
            "tasks": len({row["task"] for row in rows}),
            "of": len(self.dataset.tasks),
            "tests": self.rules.source,
            "visible": self.rules.visible,
            "n_tests": self.rules.wanted,
            "k": settings.k,
            "seeds": list(settings.seeds),
            "max_tokens": settings.max_tokens,
            "wanted": len(self.tasks),
            "missing": len(self.cells()) - len(measured),
            "strategies": {one.name: one.search for one in self.contenders},
            "digests": {one.name: self.digest(one) for one in self.contenders},
            "task_names": [task.name for task in self.tasks],
        }
        found = {"run": run, "table": summary.table(rows, names, settings.k)}
        (settings.output / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return found


def seed_of(seed: int, task: CodeTask) -> int:
    """Of a task's request: 63 bits, other ones for every task."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{task.name}".encode()).digest()[:8], "big") >> 1


@asynccontextmanager
async def closing(opened: Open) -> AsyncIterator[tuple[Endpoint, Sandbox]]:
    endpoint, sandbox, close = await opened()
    try:
        yield endpoint, sandbox
    finally:
        await close()
