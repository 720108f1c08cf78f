"""Nothing is left and nothing blocks: cancelling, killing, queueing, failing workers, a dying server."""

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from attacking import LIMITS, leftovers, open_descriptors, opened, outcome, processes, returned, unusable

from strategies.sandbox.backends import BACKENDS, Backend
from strategies.sandbox.checks import check_assert
from strategies.sandbox.interpreter import Interpreter, find_interpreter
from strategies.sandbox.outcome import Limits, Outcome, Program, SandboxUnavailable
from strategies.sandbox.pool import Pool
from strategies.sandbox.sandbox import Sandbox
from strategies.sandbox.worker import STOP_SECONDS, Worker, WorkerFailed

FOREVER = "def f(x):\n    while True:\n        pass\n"
IDENTITY = "def f(x):\n    return x\n"
LONG = Limits(test_s=60, memory_mb=256)


async def test_cancelling_ends_the_program(any_sandbox: Sandbox) -> None:
    running = asyncio.create_task(outcome(any_sandbox, FOREVER, LONG))
    while not processes(any_sandbox):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert leftovers(any_sandbox) == []
    assert await returned(any_sandbox, IDENTITY, 1) == 1


async def test_cancelling_at_any_moment(any_sandbox: Sandbox) -> None:
    generator = random.Random(8)
    for _ in range(25):
        running = asyncio.create_task(outcome(any_sandbox, FOREVER, LONG))
        await asyncio.sleep(generator.random() * 0.12)
        running.cancel()
        if generator.random() < 0.3:
            await asyncio.sleep(0)
            running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert leftovers(any_sandbox) == []
    assert await returned(any_sandbox, IDENTITY, 1) == 1


async def test_cancelling_in_the_queue(any_sandbox: Sandbox) -> None:
    first = asyncio.create_task(outcome(any_sandbox, FOREVER, LONG))
    await asyncio.sleep(0.1)
    waiting = [asyncio.create_task(outcome(any_sandbox, FOREVER, LONG)) for _ in range(5)]
    await asyncio.sleep(0)
    for task in [*waiting, first]:
        task.cancel()
    assert {type(end) for end in await asyncio.gather(first, *waiting, return_exceptions=True)} == {
        asyncio.CancelledError
    }
    assert await returned(any_sandbox, IDENTITY, 1) == 1


async def test_cancelling_as_the_worker_gets_ready(any_sandbox: Sandbox) -> None:
    """The one who waited for a worker is gone when it is there: it is kept for the next."""
    pool = any_sandbox.pool
    for _ in range(3):
        start = asyncio.create_task(pool._start())
        pool._idle.append(start)
        running = asyncio.create_task(outcome(any_sandbox, IDENTITY))
        start.add_done_callback(lambda _, running=running: running.cancel())
        with pytest.raises(asyncio.CancelledError):
            await running
        assert list(pool._idle) == [start]
        assert await returned(any_sandbox, IDENTITY, 1) == 1
        assert start.result().freed.is_set()
        assert not pool._live


async def test_stopping_a_worker_many_times_at_once(any_sandbox: Sandbox) -> None:
    """As happens when its user is cancelled while stopping it: none waits for a descriptor that another has closed."""
    pool = any_sandbox.pool
    for _ in range(3):
        worker = await pool._start()
        async with asyncio.timeout(STOP_SECONDS / 2):
            await asyncio.gather(*(pool._stop(worker) for _ in range(3)))
        assert worker.freed.is_set()


async def test_closing_ends_programs_at_work(any_backend: str) -> None:
    """They have no result: that they were killed is not their doing."""
    descriptors = open_descriptors()
    pool = Pool(BACKENDS[any_backend](find_interpreter()), concurrency=2, warm=1)
    await pool.start()
    sandbox = Sandbox(pool, LONG)
    running = [asyncio.create_task(outcome(sandbox, FOREVER, LONG)) for _ in range(4)]
    while len(pool._live) < 2:
        await asyncio.sleep(0.01)
    await sandbox.close()
    ends = await asyncio.gather(*running, return_exceptions=True)
    assert [type(end) for end in ends] == [SandboxUnavailable] * 4
    assert leftovers(sandbox) == []
    assert not os.path.exists(pool.folder)
    assert open_descriptors() <= descriptors


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("warm", [0, 1])
async def test_closing_ends_workers_that_someone_waits_for(any_backend: str, warm: int, cancelled: bool) -> None:
    """At moments from the first step of a start to the program at work; also if the one who waits was cancelled."""
    before = psutil.Process().children()
    for delay in (0, 0.002, 0.005, 0.01, 0.02, 0.04):
        pool = Pool(BACKENDS[any_backend](find_interpreter()), concurrency=2, warm=warm)
        await pool.start()
        sandbox = Sandbox(pool, LONG)
        running = asyncio.create_task(outcome(sandbox, FOREVER, LONG))
        await asyncio.sleep(delay)
        if cancelled:
            running.cancel()
            await asyncio.sleep(0)
        await sandbox.close()
        assert psutil.Process().children() == before
        assert leftovers(sandbox) == []
        [end] = await asyncio.gather(running, return_exceptions=True)
        assert type(end) is (asyncio.CancelledError if cancelled else SandboxUnavailable)
        assert not os.path.exists(pool.folder)


@pytest.mark.parametrize("after", range(4))
async def test_too_many_open_files(any_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """A worker that can't be made leaves neither a folder nor the pipes it already has."""
    pool, pipe, left = any_sandbox.pool, os.pipe, iter(range(after))

    def scarce() -> tuple[int, int]:
        if next(left, None) is None:
            raise OSError(errno.EMFILE, "Too many open files")
        return pipe()

    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pipe", scarce)
        with pytest.raises(WorkerFailed, match="Too many open files"):
            await Worker.start(pool.backend, pool.folder, pool.folder)
    assert open_descriptors() <= before
    assert os.listdir(pool.folder) == []


async def test_killing_workers_while_they_start(any_sandbox: Sandbox) -> None:
    """200 at random moments of the first 60 ms, when bubblewrap's processes are in different stages of being made; 40
    where there is one process only."""
    generator = random.Random(9)
    pool = any_sandbox.pool

    async def start_and_stop() -> None:
        worker = Worker(pool.backend, pool.folder, pool.folder)
        await asyncio.sleep(generator.random() * 0.06)
        await worker.stop()

    rounds = 25 if pool.backend.has_inner_process else 5
    for _ in range(rounds):
        await asyncio.gather(*(start_and_stop() for _ in range(8)))
    assert leftovers(any_sandbox) == []


async def test_many_at_once_wait_in_order_for_a_bounded_number_of_places(any_backend: str) -> None:
    async with opened(any_backend, concurrency=1, warm=1) as sandbox:
        most, order, done = 0, [], asyncio.Event()

        async def one(number: int) -> None:
            assert await returned(sandbox, IDENTITY, number, limits=LONG) == number
            order.append(number)

        async def count() -> None:
            nonlocal most
            while not done.is_set():
                workers = [line for line in processes(sandbox) if "python" in line.split("'")[1][:24]]
                most = max(most, len(workers))
                await asyncio.sleep(0.03)

        counting = asyncio.create_task(count())
        await asyncio.gather(*(one(number) for number in range(50)))
        done.set()
        await counting
        # One at work, and one that is kept ready or being started.
        assert 1 <= most <= 2
        assert order == list(range(50))


async def test_the_event_loop_goes_on(any_sandbox: Sandbox) -> None:
    beats = 0

    async def heart() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beating = asyncio.create_task(heart())
    await outcome(any_sandbox, FOREVER, Limits(test_s=1))
    beating.cancel()
    assert beats >= 10


async def test_an_idle_worker_that_died_is_replaced(any_backend: str) -> None:
    async with opened(any_backend, warm=1) as sandbox:
        assert await returned(sandbox, IDENTITY, 1) == 1
        while len(sandbox.pool._idle) < 1 or not sandbox.pool._idle[0].done():
            await asyncio.sleep(0.01)
        worker = sandbox.pool._idle[0].result()
        os.kill(worker.process.pid, signal.SIGKILL)
        await worker.wait(5)
        assert await returned(sandbox, IDENTITY, 2) == 2


async def test_warm_workers_are_used_once(any_backend: str) -> None:
    source = "import math\nmath.seen = getattr(math, 'seen', 0) + 1\ndef f(x):\n    return math.seen\n"
    async with opened(any_backend, warm=3) as sandbox:
        assert [await returned(sandbox, source, 1) for _ in range(4)] == [1] * 4


def broken(backend: Backend) -> Backend:
    """The same backend with a Python that isn't there."""
    return type(backend)(Interpreter("/usr/bin/no-such-python", (3, 11, 0), "/usr", ()))


async def test_a_failing_backend_is_no_result(any_sandbox: Sandbox) -> None:
    """An infrastructure fault must not look like a failed program; the next run probes again and recovers."""
    backend = any_sandbox.pool.backend
    any_sandbox.pool.backend = broken(backend)
    for _ in range(2):
        with pytest.raises(SandboxUnavailable, match=r"twice|no-such-python"):
            await any_sandbox.run(Program(IDENTITY, "f"), [check_assert("assert f(1) == 1", "f")])
        assert "no-such-python" in str(any_sandbox.broken)
    any_sandbox.pool.backend = backend
    assert await returned(any_sandbox, IDENTITY, 1) == 1
    assert any_sandbox.broken is None


async def test_one_failure_is_made_good(any_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    start, failures = Worker.start, iter([True])

    async def fails_once(backend: Backend, label: str, folder: str) -> Worker:
        if next(failures, False):
            raise WorkerFailed("once")
        return await start(backend, label, folder)

    monkeypatch.setattr(Worker, "start", fails_once)
    assert await returned(any_sandbox, IDENTITY, 1) == 1


async def test_a_worker_killed_before_the_program_starts_is_no_result(any_sandbox: Sandbox) -> None:
    from strategies.sandbox.run import run

    async with any_sandbox.pool.worker() as worker:
        worker.kill()
        assert await worker.wait(5)
        with pytest.raises(WorkerFailed, match="before the program started"):
            await run(worker, Program(IDENTITY, "f"), [{"call": [[], {}]}], LIMITS)


async def test_a_lone_timeout_on_a_busy_machine_is_tried_again(
    any_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [check_assert(f"assert f({n}) == {n}", "f") for n in (1, 2)]
    source = "def f(x):\n    while x == 1:\n        pass\n    return x\n"
    monkeypatch.setattr(os, "getloadavg", lambda: (1e9, 0.0, 0.0))
    results = await any_sandbox.run(Program(source, "f"), checks, Limits(test_s=0.6))
    assert [(r.outcome, r.retried) for r in results] == [(Outcome.TIMEOUT, True), (Outcome.PASS, False)]
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    results = await any_sandbox.run(Program(source, "f"), checks, Limits(test_s=0.6))
    assert [(r.outcome, r.retried) for r in results] == [(Outcome.TIMEOUT, False), (Outcome.PASS, False)]


SERVER = """
import asyncio, sys
from strategies.sandbox.outcome import Limits, Program
from strategies.sandbox.checks import check_assert
from strategies.sandbox.sandbox import open_sandbox
async def main():
    sandbox = await open_sandbox([sys.argv[1]], allow_unsandboxed=True, limits=Limits(test_s=60), concurrency=1, warm=2)
    run = asyncio.create_task(
        sandbox.run(Program("def f(x):\\n    while True:\\n        pass\\n", "f"), [check_assert("assert f(1)", "f")])
    )
    await asyncio.sleep(0.5)
    print(sandbox.pool.folder, flush=True)
    await run
asyncio.run(main())
"""


async def test_a_killed_server_leaves_no_process(any_backend: str) -> None:
    """SIGKILL: no clean-up code runs, so the kernel must end the workers, idle or busy."""
    root = Path(__file__).parents[3]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, any_backend], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    )
    try:
        assert server.stdout is not None
        folder = server.stdout.readline().decode().strip()
        assert folder
    finally:
        server.kill()
        server.wait()

    class Left:
        class pool:  # noqa: N801
            pass

    Left.pool.folder = folder  # type: ignore[attr-defined]
    try:
        assert leftovers(Left) == []  # type: ignore[arg-type]
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


async def test_a_program_cannot_outlive_by_leaving_its_group(any_sandbox: Sandbox) -> None:
    source = (
        "import os\ndef f(x):\n    try:\n        os.setsid()\n    except OSError:\n        pass\n    while True: pass\n"
    )
    assert (await outcome(any_sandbox, source, Limits(test_s=0.3))).outcome is Outcome.TIMEOUT
    assert leftovers(any_sandbox) == []


def test_other_event_loops() -> None:
    """uvloop, which servers use, in a thread that isn't the main one."""
    uvloop = pytest.importorskip("uvloop")
    names = [name for name in BACKENDS if unusable(name) is None]
    assert names
    seen = []

    async def main() -> None:
        for name in names:
            async with opened(name, warm=1) as sandbox:
                seen.append(await returned(sandbox, IDENTITY, 1))
                seen.append(str((await outcome(sandbox, FOREVER, Limits(test_s=0.3))).outcome))

    def work() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [1, "timeout"] * len(names)
