"""One worker's run: sends the job, follows the records, enforces the limits that only an outsider can enforce."""

import asyncio
import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from strategies.sandbox.backends import FILE_BYTES
from strategies.sandbox.checks import Unit
from strategies.sandbox.outcome import Limits, Outcome, Program
from strategies.sandbox.records import Killed, Observation, Records, cpu_seconds
from strategies.sandbox.worker import CHUNK, START_SECONDS, Worker, WorkerFailed

GRACE_SECONDS = 2.0
"""Per process, beyond its tests' time: reading the job, compiling, writing results."""
EXIT_SECONDS = 1.0
"""For a process to end after its result pipe has."""


@dataclass(slots=True)
class Run:
    """observations: of the first units, at least one, or all. output: what was printed, cut at the limit."""

    observations: list[Observation]
    output: bytes


def job_of(worker: Worker, program: Program, units: Sequence[Unit], limits: Limits) -> bytes:
    """The worker's job. It holds arguments only: no expected value ever goes in."""
    job = {
        "source": program.source,
        "setup": program.setup,
        "entry_point": program.entry_point,
        "units": units,
        "limits": {
            "memory": limits.memory_mb << 20,
            "cpu_seconds": cpu_seconds(len(units), limits.test_s),
            "file_size": FILE_BYTES,
            "processes": worker.backend.processes,
        },
    }
    return json.dumps(job).encode()


async def run(worker: Worker, program: Program, units: Sequence[Unit], limits: Limits) -> Run:
    """Runs units until one is fatal, and ends the worker. Raises WorkerFailed if it died before it started one."""
    records = worker.records = Records(len(units))
    output = Output(limits.output_kb << 10)
    send = asyncio.create_task(worker.send(job_of(worker, program, units, limits)))
    following = asyncio.create_task(follow(worker, records, len(units), limits.test_s))
    printing = asyncio.create_task(output.drain(worker))
    overfull = asyncio.create_task(output.overfull.wait())
    watching = asyncio.create_task(worker.watch_directory())
    try:
        await asyncio.wait({following, overfull, watching}, return_when=asyncio.FIRST_COMPLETED)
        output.take(worker)
        killed: Killed | None = (
            "output" if output.overfull.is_set() else "files" if watching.done() else following.result()
        )
        if killed is None and ("stdin" in units[0] or not records.complete):
            # The exit status counts, and a script's whole output.
            ended = await worker.wait(EXIT_SECONDS)
            killed = None if ended or records.complete else "closed"
            if ended:
                await asyncio.wait({printing}, timeout=GRACE_SECONDS)
            if output.overfull.is_set():
                killed = "output"
    finally:
        worker.kill()
        tasks = (send, following, printing, overfull, watching)
        for task in tasks:
            task.cancel()
        try:
            await asyncio.wait(tasks)  # before the descriptors that they wait for are closed
        finally:
            await worker.stop()
    usage, status = worker.usage, worker.exited
    assert usage is not None
    assert status is not None
    if killed is None and records.started and status == 0 and "stdin" in units[0]:
        records.observations.append(Observation(None, ["none"]))  # a script may well end by os._exit(0)
    exhausted = usage.ru_utime + usage.ru_stime > cpu_seconds(len(units), limits.test_s)
    records.finish(status, killed, asyncio.get_running_loop().time(), exhausted)
    if killed == "output" and records.complete:
        records.observations[-1] = Observation(Outcome.OUTPUT_LIMIT)
    if not records.observations:
        raise WorkerFailed(f"{worker.backend.name}: exit status {status} before the program started")
    return Run(records.observations, bytes(output.data))


async def follow(worker: Worker, records: Records, units: int, test_s: float) -> Killed | None:
    """Reads records until all are there (None) or the pipe ends (None), or returns the limit that was passed.

    The clock is this side's, since the program could stop any on its own side. It runs from each unit's start, so time
    in a queue and an interpreter's start are not a test's time.
    """
    loop = asyncio.get_running_loop()
    deadline, seen = loop.time() + START_SECONDS, (0, False)
    last = None
    while not records.complete:
        try:
            async with asyncio.timeout_at(deadline if last is None else min(deadline, last)):
                data = await worker.read(worker.results)
        except TimeoutError:
            return "wall"
        if not data:
            return None
        now = loop.time()
        records.feed(data, now)
        if records.too_large:
            return "results"
        state = (len(records.observations), records.started)
        if state != seen:
            seen = state
            last = last or now + units * test_s + GRACE_SECONDS
            deadline = now + (test_s if records.started else GRACE_SECONDS)
    return None


class Output:
    """What a program prints, up to a limit; what comes next is read no more."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.data = bytearray()
        self.overfull = asyncio.Event()

    async def drain(self, worker: Worker) -> None:
        """Reads until the end or the limit."""
        while not self.overfull.is_set() and (data := await worker.read(worker.output)):
            self.add(data)

    def take(self, worker: Worker) -> None:
        """Reads what there is now: what was printed before a record came counts before it."""
        with contextlib.suppress(BlockingIOError):
            while not self.overfull.is_set() and (data := os.read(worker.output, CHUNK)):
                self.add(data)

    def add(self, data: bytes) -> None:
        self.data += data[: self.limit - len(self.data)]
        if len(self.data) == self.limit:
            self.overfull.set()
