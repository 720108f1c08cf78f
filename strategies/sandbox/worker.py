"""One confined process, used for one program: started ahead of time, given a job, read from, and ended.

Plain pipes and a process descriptor on the event loop: nothing here blocks, and nothing is left: ending a worker kills
all of its processes and waits for them.
"""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator

from strategies.sandbox.backends import DIRECTORY_BYTES, DIRECTORY_FILES, ENVIRONMENT, NOBODY, Backend
from strategies.sandbox.records import Records, text

CHUNK = 1 << 16
START_SECONDS = 30.0
"""Until a worker is ready: some 50 ms, but a loaded machine takes many times that."""
STOP_SECONDS = 10.0


class WorkerFailed(Exception):
    """A worker did not start or did not end: a fault of the machine or of the backend, not of a program."""


class Worker:
    """Made by `Worker.start`; ended by `stop`, always."""

    def __init__(self, backend: Backend, label: str, folder: str) -> None:
        """label: names the sandbox in the list of processes; folder: where workers' own folders are made."""
        self.backend = backend
        self.records = Records(0)
        self.exited: int | None = None
        """The exit status, once it has ended and is waited for."""
        self.usage: resource.struct_rusage | None = None
        self._inner: int | None = None
        self.freed = asyncio.Event()
        """Nothing of it is left."""
        self._reaping: asyncio.Task[None] | None = None
        self._descriptors: set[int] = set()
        self.directory = make_directory(folder) if backend.needs_directory else None
        theirs: list[int] = []
        try:
            job, self.job = self._pipe(theirs, writing=True)
            output, self.output = self._pipe(theirs)
            results, self.results = self._pipe(theirs)
            info, self._info = self._pipe(theirs)
            setup = json.dumps({"label": label, "results": results, **backend.setup(self.directory)})
            self.process = subprocess.Popen(
                backend.command(setup, info),
                stdin=job,
                stdout=output,
                stderr=output,
                pass_fds=(results, info) if backend.has_inner_process else (results,),
                env=ENVIRONMENT,
                cwd=self.directory or "/",
                # A session of its own: before bubblewrap is set up, its processes are found by their group only.
                start_new_session=True,
            )
            self._pidfd = self._open_pidfd()
        except OSError:
            self._close()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self._descriptors.add(self._pidfd)
        for descriptor in self._descriptors:
            os.set_blocking(descriptor, False)

    def _pipe(self, theirs: list[int], writing: bool = False) -> tuple[int, int]:
        """The worker's end, added to `theirs`, and ours, which writes or reads."""
        reader, writer = os.pipe()
        its, ours = (reader, writer) if writing else (writer, reader)
        theirs.append(its)
        self._descriptors.add(ours)
        return its, ours

    def _open_pidfd(self) -> int:
        try:
            return os.pidfd_open(self.process.pid)
        except OSError:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise

    @classmethod
    async def start(cls, backend: Backend, label: str, folder: str) -> "Worker":
        """A worker that has confined itself and waits for a job. Raises WorkerFailed."""
        try:
            worker = cls(backend, label, folder)
        except OSError as error:
            raise WorkerFailed(f"{backend.name}: {error}") from error
        try:
            async with asyncio.timeout(START_SECONDS):
                while not worker.records.ready:
                    data = await worker.read(worker.results)
                    if not data:
                        raise WorkerFailed(f"{backend.name}: {await worker.last_words()}")
                    worker.records.feed(data, 0.0)
            worker.find_inner()
        except TimeoutError:
            await worker.stop()
            raise WorkerFailed(f"{backend.name}: not ready within {START_SECONDS:.0f} s") from None
        except BaseException:
            await worker.stop()
            raise
        return worker

    def find_inner(self) -> None:
        """Takes hold of the first process of bubblewrap's namespace: the kernel ends all others with it.

        A descriptor, since a number could be another process's by the time it is used. Called before the job is sent:
        from then on nothing that comes from inside may be believed.
        """
        if not self.backend.has_inner_process:
            return
        with contextlib.suppress(BlockingIOError, ValueError, OSError, KeyError):
            self._inner = os.pidfd_open(json.loads(os.read(self._info, CHUNK))["child-pid"])
            self._descriptors.add(self._inner)

    async def last_words(self) -> str:
        """What a failed worker printed."""
        words = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while len(words) < CHUNK and (data := await self.read(self.output)):
                    words += data
        lines = words.decode("utf-8", "replace").strip().splitlines()
        return text(" | ".join(lines[-1:]), 300) or "ended at once, without a message"

    @property
    def alive(self) -> bool:
        return self.exited is None and not self.poll()

    async def read(self, descriptor: int) -> bytes:
        """What a pipe has, at most 64 KiB; b"" at its end."""
        while True:
            try:
                return os.read(descriptor, CHUNK)
            except BlockingIOError:
                await ready(descriptor)

    async def send(self, job: bytes) -> None:
        """Writes the job and closes the pipe. A worker that dies meanwhile is noticed by its results."""
        view = memoryview(job)
        with contextlib.suppress(BrokenPipeError):
            while view:
                try:
                    view = view[os.write(self.job, view) :]
                except BlockingIOError:
                    await ready(self.job, writing=True)
        self._descriptors.discard(self.job)
        os.close(self.job)

    def poll(self) -> bool:
        """Whether the process has ended; then `exited` and `usage` are set."""
        if self.exited is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.exited = self.process.returncode = os.waitstatus_to_exitcode(status)
                self.usage = usage
        return self.exited is not None

    async def wait(self, seconds: float) -> bool:
        """Whether the process ends in that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.poll():
                    await ready(self._pidfd)
        return self.exited is not None

    def kill(self) -> None:
        """Sends SIGKILL to everything at once; does not wait."""
        if self.exited is not None:
            return
        if self._inner is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._inner, signal.SIGKILL)
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """Kills, waits, frees. Goes on by itself if the caller is cancelled. Raises WorkerFailed if it won't die."""
        self.kill()
        if self._reaping is None:
            # One for all calls: an event loop knows only one waiter for a descriptor, and the first to end closes it.
            self._reaping = asyncio.create_task(self._reap())
        await asyncio.shield(self._reaping)

    async def _reap(self) -> None:
        try:
            if not await self.wait(STOP_SECONDS):
                os.killpg(self.process.pid, signal.SIGKILL)
                if not await self.wait(STOP_SECONDS):
                    raise WorkerFailed(f"{self.backend.name}: process {self.process.pid} does not end")
        finally:
            self._close()

    def _close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors, self._inner = set(), None
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.freed.set()

    async def watch_directory(self) -> None:
        """Returns once the worker's own folder holds too much: no file system limits it there.

        Looks twenty times a second, so a program can get past the limit by what it writes in 50 ms. The folder is flat,
        since the worker may not make others in it.
        """
        while self.directory is not None:
            size = 0
            for files, entry in enumerate(entries(self.directory), 1):
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                if size > DIRECTORY_BYTES or files > DIRECTORY_FILES:
                    return
            await asyncio.sleep(0.05)
        await asyncio.Event().wait()


def make_directory(folder: str) -> str:
    directory = tempfile.mkdtemp(dir=folder)
    if os.geteuid() == 0:
        os.chown(directory, NOBODY, NOBODY)
    return directory


def entries(directory: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as found:
        yield from found


async def ready(descriptor: int, writing: bool = False) -> None:
    """Until the descriptor can be read (or written) without waiting."""
    loop = asyncio.get_running_loop()
    event = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)

    def happened() -> None:
        if not event.done():
            event.set_result(None)

    add(descriptor, happened)
    try:
        await event
    finally:
        remove(descriptor)
