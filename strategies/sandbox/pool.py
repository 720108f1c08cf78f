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
from strategies.sandbox.worker import STOP_SECONDS, Worker, WorkerFailed


class Pool:
    """concurrency: programs at once; warm: workers kept ready. Belongs to the event loop that uses it."""

    def __init__(self, backend: Backend, *, concurrency: int, warm: int) -> None:
        self.backend = backend
        self.warm = warm
        self.folder = tempfile.mkdtemp(prefix="decoding-sandbox-")
        """Holds the workers' own folders; its name is also in each worker's command line."""
        self._turn = asyncio.Semaphore(concurrency)
        self._idle: deque[asyncio.Task[Worker]] = deque()
        self._starting: set[asyncio.Task[Worker]] = set()
        """For the idle ones or for a user who waits."""
        self._live: set[Worker] = set()
        """All that have started and are not yet freed, idle or at work."""
        self._closed = False

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Worker]:
        """A fresh worker, when it is one's turn; ended at the end of the block. Raises WorkerFailed."""
        async with self._turn:
            worker = await self._take()
            try:
                yield worker
            finally:
                await self._stop(worker)
            if self._closed:
                # It may have been killed, which must not look like a fault of the program.
                raise self._gone()

    async def _take(self) -> Worker:
        while self._idle and not self._closed:
            start = self._idle.popleft()
            self._refill()
            worker = await self._started(start)
            if worker.alive and not self._closed:
                return worker
            await self._stop(worker)
        if self._closed:
            raise self._gone()
        self._refill()
        return await self._started(self._begin())

    async def _started(self, start: asyncio.Task[Worker]) -> Worker:
        try:
            return await start
        except BaseException:
            if start.done() and not start.cancelled() and start.exception() is None:
                # Cancelled in the moment in which the worker was there: it waits for the next.
                await self._put_back(start)
            user = asyncio.current_task()
            if start.cancelled() and self._closed and user is not None and not user.cancelling():
                # Closing has cancelled the start, not its user.
                raise self._gone() from None
            raise

    async def _put_back(self, start: asyncio.Task[Worker]) -> None:
        if self._closed:
            await self._stop(start.result())
        else:
            self._idle.appendleft(start)

    def _begin(self) -> asyncio.Task[Worker]:
        start = asyncio.create_task(self._start())
        self._starting.add(start)
        start.add_done_callback(self._starting.discard)
        return start

    async def _start(self) -> Worker:
        worker = await Worker.start(self.backend, self.folder, self.folder)
        self._live.add(worker)
        if self._closed:
            await self._stop(worker)
            raise self._gone()
        return worker

    def _gone(self) -> WorkerFailed:
        return WorkerFailed(f"{self.backend.name}: the sandbox is closed")

    async def _stop(self, worker: Worker) -> None:
        try:
            await worker.stop()
        finally:
            self._live.discard(worker)

    def _refill(self) -> None:
        while not self._closed and len(self._idle) < self.warm:
            self._idle.append(self._begin())

    async def start(self) -> None:
        """Begins to start the warm workers; returns at once."""
        if os.geteuid() == 0:
            os.chmod(self.folder, 0o711)  # workers run as another user
        self._refill()

    async def close(self) -> None:
        """Ends idle and starting workers and kills those at work, which their users then free; removes the folder.

        Nothing runs any more when it returns.
        """
        self._closed = True
        starts = {*self._idle, *self._starting}
        self._idle.clear()
        for start in starts:
            if not start.cancelling():  # else its worker is being stopped, which another cancellation would cut short
                start.cancel()
        started = await asyncio.gather(*starts, return_exceptions=True)
        for worker in self._live:
            worker.kill()
        unused = [worker for worker in started if isinstance(worker, Worker)]
        await asyncio.gather(*map(self._stop, unused), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                for worker in [*self._live]:
                    await worker.freed.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
