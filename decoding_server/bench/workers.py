"""Cells of a run, several at once, until the time is up or too many fail one after the other."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from decoding_server.bench.answer_grading import GradingFailed
from decoding_server.bench.progress import Show
from strategies.errors import QueueFull, RequestFailed
from strategies.sandbox.outcome import SandboxUnavailable

T = TypeVar("T")

FAILURES = 5
"""Cells in a row that may fail before the run is given up."""


class Workers:
    """concurrency: items at once. seconds: no cell begins after that. done, total: cells, for the display.

    failed: a line for each cell that could not be measured. late: whether the time was up before the end.
    """

    def __init__(self, concurrency: int, seconds: float | None, show: Show, done: int, total: int) -> None:
        self.concurrency, self.seconds = concurrency, seconds
        self.done, self.total = done, total
        self.failed: list[str] = []
        self.late = False
        self._show = show
        self._in_a_row = 0
        self._began = time.monotonic()

    async def each(self, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
        """`work` on every item, in order of beginning. The first exception ends all of them."""
        waiting = iter(items)

        async def worker() -> None:
            for item in waiting:
                await work(item)

        running = [asyncio.ensure_future(worker()) for _ in range(self.concurrency)]
        try:
            await asyncio.gather(*running)
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def cell(self, what: str, measure: Callable[[], Awaitable[str]]) -> None:
        """One cell, unless the time is up. measure: stores its row and returns what to show of it.

        Raises RequestFailed when `FAILURES` cells have failed one after the other, and what is no fault of one cell.
        """
        if self.seconds is not None and time.monotonic() - self._began > self.seconds:
            self.late = True
            return
        try:
            found = await measure()
        except (QueueFull, RequestFailed, SandboxUnavailable, GradingFailed) as error:
            self._in_a_row += 1
            self.failed.append(f"{what}: {error}")
            if self._in_a_row == FAILURES:
                raise RequestFailed(f"{FAILURES} cells failed one after the other, the last: {error}") from error
            self._show(f"{what}: failed: {error}", self.done, self.total)
            return
        self._in_a_row = 0
        self.done += 1
        self._show(f"{what}: {found}", self.done, self.total)
