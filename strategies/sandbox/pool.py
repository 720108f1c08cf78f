"""Workers ready before they are needed, and a bound on how many programs run at once.

A worker serves one program and is thrown away; the next one starts while the program runs. Those who wait are served in
the order in which they came.
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from strategies.sandbox.backends import Backend
from strategies.sandbox.worker import Worker, WorkerFailed


class Pool:
    """concurrency: programs at once; warm: workers kept ready. Belongs to the event loop that uses it."""

    def __init__(self, backend: Backend, *, concurrency: int, warm: int) -> None:
        self.backend = backend
        self.warm = warm
        self.folder = tempfile.mkdtemp(prefix="decoding-sandbox-")
        """Holds the workers' own folders; its name is also in each worker's command line."""
        self._turn = asyncio.Semaphore(concurrency)
        self._idle: deque[asyncio.Task[Worker]] = deque()
        self._closed = False

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Worker]:
        """A fresh worker, when it is one's turn; ended at the end of the block. Raises WorkerFailed."""
        async with self._turn:
            worker = await self._take()
            try:
                yield worker
            finally:
                await worker.stop()

    async def _take(self) -> Worker:
        while self._idle:
            start = self._idle.popleft()
            self._refill()
            worker = await start
            if worker.alive:
                return worker
            await worker.stop()
        self._refill()
        return await Worker.start(self.backend, self.folder, self.folder)

    def _refill(self) -> None:
        while not self._closed and len(self._idle) < self.warm:
            self._idle.append(asyncio.create_task(Worker.start(self.backend, self.folder, self.folder)))

    async def start(self) -> None:
        """Begins to start the warm workers; returns at once."""
        if os.geteuid() == 0:
            os.chmod(self.folder, 0o711)  # workers run as another user
        self._refill()

    async def close(self) -> None:
        """Ends idle workers and removes the folder. Those at work are ended by whoever uses them."""
        self._closed = True
        while self._idle:
            start = self._idle.popleft()
            start.cancel()
            with contextlib.suppress(asyncio.CancelledError, WorkerFailed):
                await (await start).stop()
        shutil.rmtree(self.folder, ignore_errors=True)
