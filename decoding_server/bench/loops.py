"""The two ways to load a server: so many requests at any time, or requests at given times, whatever becomes of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

Ask = Callable[[int, float | None], Awaitable[None]]
"""Sends the request of that number, and returns when it has its answer. The second is the moment it is due, on the
clock of `time.perf_counter`; None for as soon as it is called."""


async def closed(ask: Ask, count: int, at_once: int) -> None:
    """All of them, `at_once` at any time."""
    waiting = iter(range(count))

    async def worker() -> None:
        for number in waiting:
            await ask(number, None)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, count)):
            group.create_task(worker())


async def opened(ask: Ask, started: float, arrivals: Sequence[float]) -> None:
    """All of them. arrivals: seconds after `started`, a moment of `time.perf_counter`."""

    async def one(number: int, due: float) -> None:
        await ask(number, due)

    async with asyncio.TaskGroup() as group:
        for number, arrival in enumerate(arrivals):
            due = started + arrival
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(number, due))
