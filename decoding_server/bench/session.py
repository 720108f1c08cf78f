"""One benchmark run: rounds in which the engines take turns, every finished cell appended to a file at once.

A cell is (engine, workload, repeat). A run that was cut off goes on where it stopped: cells whose row is in the file
are skipped, cells that failed are tried again.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from decoding_server.bench.load import LoadError
from decoding_server.bench.peers.engine import Engine, EngineError
from decoding_server.bench.rows import JsonLines
from decoding_server.bench.workloads import MEMORY, START, PromptSource, Workload

WARM_UP_TOKENS = 4
"""Generated and not timed after an engine has been given the CPU back, so that caches and clocks are its own."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured cell. value: in the workload's unit, or None with `error` set. detail: what the value came from."""

    engine: str
    workload: str
    repeat: int
    value: float | None
    unit: str
    when: float
    detail: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


class RowFile:
    """The measured cells of one output folder."""

    def __init__(self, path: Path) -> None:
        self._file = JsonLines(path)
        self.rows = [Row(**record) for record in self._file.records]

    def append(self, row: Row) -> None:
        self.rows.append(row)
        self._file.append([asdict(row)])

    def has(self, engine: str, workload: Workload, repeat: int) -> bool:
        """Whether the cell has been measured (a failed try does not count)."""
        return any(
            row.value is not None and (row.engine, row.workload, row.repeat) == (engine, workload.name, repeat)
            for row in self.rows
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. start: for an engine to come up; cell: for one cell; engine: for all cells of one engine together."""

    start: float = 400.0
    cell: float = 600.0
    engine: float = 1800.0


async def measure(
    engine: Engine, workload: Workload, prompts: PromptSource, repeat: int
) -> tuple[float, dict[str, Any]]:
    """The cell's value in the workload's unit, and its details. Raises LoadError, EngineError, httpx.HTTPError."""
    timed = prompts.prompts(workload, repeat)
    if workload.kind == "first-token":
        seconds = [await engine.first_token(prompt) for prompt in timed]
        return statistics.median(seconds), {"seconds": seconds}
    if workload.kind == "shared-prefix" and engine.has_prefix_cache:
        await engine.generate(prompts.warming(workload, repeat), 1)
    tokens, elapsed = await engine.generate(timed, workload.new_tokens, workload.strategy)
    return tokens / elapsed, {"tokens": tokens, "seconds": elapsed}


class Session:
    """Runs all cells that are missing. One engine has the CPU at any time; the others are paused."""

    def __init__(
        self,
        engines: Sequence[Engine],
        workloads: Sequence[Workload],
        prompts: PromptSource,
        rows: RowFile,
        *,
        repeats: int,
        limits: Limits,
        report: Callable[[str, int, int], None],
    ) -> None:
        """`report(what, done, all)` is called before every cell."""
        self.engines = list(engines)
        self.workloads = list(workloads)
        self.prompts = prompts
        self.rows = rows
        self.repeats = repeats
        self.limits = limits
        self._report = report
        self._spent = {engine.name: 0.0 for engine in engines}
        self._dead: set[str] = set()
        self._done = 0
        self._all = sum(len(self._workloads_of(engine)) * repeats + 1 for engine in self.engines)

    async def run(self) -> None:
        """Starts what has cells left, runs the rounds, and stops every engine whatever happens."""
        try:
            for engine in self.engines:
                await self._bring_up(engine)
            for repeat in range(self.repeats):
                for workload in self.workloads:
                    for engine in self.engines[:: -1 if repeat % 2 else 1]:
                        if workload in self._workloads_of(engine):
                            await self._cell(engine, workload, repeat)
        finally:
            for engine in self.engines:
                self._record_memory(engine)
                await engine.stop()

    def missing(self) -> list[str]:
        """The cells without a value, each with the last reason."""
        reasons = {(row.engine, row.workload, row.repeat): row.error for row in self.rows.rows}
        return [
            f"{engine.name}, {workload.name}, repeat {repeat}: {reasons.get((engine.name, workload.name, repeat))}"
            for engine in self.engines
            for workload in self._workloads_of(engine)
            for repeat in range(self.repeats)
            if not self.rows.has(engine.name, workload, repeat)
        ]

    def _workloads_of(self, engine: Engine) -> list[Workload]:
        """Those that it can do."""
        return [workload for workload in self.workloads if engine.has_strategies or not workload.strategy]

    async def _bring_up(self, engine: Engine) -> None:
        """Starts the engine and leaves it paused; an engine whose start is a workload is started `repeats` times."""
        starts = self.repeats if engine.restarts_are_measured else 1
        missing = [repeat for repeat in range(starts) if not self.rows.has(engine.name, START, repeat)]
        cells = any(
            not self.rows.has(engine.name, workload, repeat)
            for workload in self._workloads_of(engine)
            for repeat in range(self.repeats)
        )
        self._done += 1
        for repeat in missing or ([0] if cells else []):
            self._report(f"{engine.name}: start", self._done, self._all)
            await engine.stop()
            try:
                async with asyncio.timeout(self.limits.start):
                    seconds = await engine.start(self.prompts.cut(START.prompt_tokens, "start"), self.limits.start)
            except (LoadError, EngineError, httpx.HTTPError, TimeoutError, OSError, ExceptionGroup) as error:
                await self._give_up(engine, START, repeat, error)
                return
            if repeat in missing and seconds > 0:
                self.rows.append(Row(engine.name, START.name, repeat, seconds, START.unit, time.time()))
        await engine.pause()

    async def _cell(self, engine: Engine, workload: Workload, repeat: int) -> None:
        self._done += 1
        self._report(f"{engine.name}: {workload.title} ({repeat + 1}/{self.repeats})", self._done, self._all)
        if engine.name in self._dead or self.rows.has(engine.name, workload, repeat):
            return
        if self._spent[engine.name] > self.limits.engine:
            self._fail(engine, workload, repeat, f"over the engine's {self.limits.engine:.0f} s")
            return
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.limits.cell):
                await engine.resume()
                await engine.generate([self.prompts.cut(16, "warm-up", workload.name, repeat)], WARM_UP_TOKENS)
                value, detail = await measure(engine, workload, self.prompts, repeat)
        except (LoadError, EngineError, httpx.HTTPError, TimeoutError, OSError, ExceptionGroup) as error:
            await self._give_up(engine, workload, repeat, error)
            return
        finally:
            self._spent[engine.name] += time.monotonic() - began
        await engine.pause()
        self.rows.append(Row(engine.name, workload.name, repeat, value, workload.unit, time.time(), detail))

    def _fail(self, engine: Engine, workload: Workload, repeat: int, error: str) -> None:
        self.rows.append(Row(engine.name, workload.name, repeat, None, workload.unit, time.time(), error=error))

    async def _give_up(self, engine: Engine, workload: Workload, repeat: int, error: Exception) -> None:
        """An engine that failed or hangs is in an unknown state: it takes no further part in this run."""
        cause = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        self._fail(engine, workload, repeat, f"{type(cause).__name__}: {cause}")
        self._dead.add(engine.name)
        await engine.stop()

    def _record_memory(self, engine: Engine) -> None:
        """The peak so far; each run of a resumed benchmark adds a row, and the report takes the largest."""
        peak = engine.peak_memory()
        if peak:
            repeat = sum(row.workload == MEMORY.name and row.engine == engine.name for row in self.rows.rows)
            mebibytes = peak / 2**20
            self.rows.append(Row(engine.name, MEMORY.name, repeat, mebibytes, MEMORY.unit, time.time()))
