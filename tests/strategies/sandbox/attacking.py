"""What the sandbox's tests share: opening a backend, running one function in it, counting what is left."""

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any

import psutil

from strategies.sandbox.backends import BACKENDS
from strategies.sandbox.checks import CallCheck
from strategies.sandbox.inside.codec import encode
from strategies.sandbox.interpreter import find_interpreter
from strategies.sandbox.outcome import Limits, Outcome, Program, Result, SandboxUnavailable
from strategies.sandbox.pool import Pool
from strategies.sandbox.sandbox import Sandbox, open_sandbox

CONFINING = [name for name, backend in BACKENDS.items() if backend.confines]
LIMITS = Limits(test_s=10, memory_mb=256, output_kb=64)
MOST_MEMORY = 64 << 20
"""What this process may hold more after a test: attacks would cost it hundreds of megabytes within a second."""


@cache
def unusable(name: str) -> str | None:
    """Why a backend can't be used on this machine, found by its probes; None if it can.

    A hole that a probe finds is no reason to skip tests: it fails them.
    """

    async def probe() -> None:
        await (await open_sandbox([name], allow_unsandboxed=True, concurrency=1, warm=0)).close()

    try:
        asyncio.run(probe())
    except SandboxUnavailable as error:
        if "not prevented" in str(error):
            raise AssertionError(str(error)) from error
        return str(error)
    return None


@asynccontextmanager
async def opened(name: str, concurrency: int = 1, warm: int = 0) -> AsyncIterator[Sandbox]:
    """A sandbox of the backend, not probed again. Afterwards it must still judge rightly, and nothing of it may be
    left: no process, folder, descriptor or memory."""
    descriptors, memory = open_descriptors(), held()
    pool = Pool(BACKENDS[name](find_interpreter()), concurrency=concurrency, warm=warm)
    await pool.start()
    sandbox = Sandbox(pool, Limits(test_s=60, memory_mb=1024, output_kb=1024))
    try:
        yield sandbox
        assert await returned(sandbox, "def f(x):\n    return x\n", 7) == 7
    finally:
        await sandbox.close()
    assert leftovers(sandbox) == []
    assert not os.path.exists(pool.folder)
    assert open_descriptors() <= descriptors
    assert held() - memory < MOST_MEMORY


def held() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def open_descriptors() -> set[str]:
    """What this process has open: pipes, process descriptors and folders, as the kernel names them."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(f"{descriptor} {os.readlink(f'/proc/self/fd/{descriptor}')}")
    return found


def processes(sandbox: Sandbox) -> list[str]:
    """Command lines of all processes of the sandbox on this machine, wherever they hang in the tree."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read()
        except OSError:
            continue
        if sandbox.pool.folder.encode() in command:
            found.append(f"{pid}: {command[:60]!r}")
    return found


def leftovers(sandbox: Sandbox, seconds: float = 5.0) -> list[str]:
    """The sandbox's processes that are still there after that time."""
    end = time.monotonic() + seconds
    while (found := processes(sandbox)) and time.monotonic() < end:
        time.sleep(0.02)
    return found


class Value:
    """Keeps what a function returned, to be asserted on here."""

    seen: Any = None


async def returned(sandbox: Sandbox, source: str, *arguments: Any, limits: Limits = LIMITS) -> Any:
    """What f(*arguments) returns inside. Fails the test if it ends in anything but a value."""
    kept = Value()

    def keep(values: Any) -> bool:
        (kept.seen,) = values.values()
        return True

    check = CallCheck("", ({"call": [[encode(argument) for argument in arguments], {}]},), keep)
    [result] = await sandbox.run(Program(source, "f"), [check], limits)
    assert result.outcome is Outcome.PASS, result
    return kept.seen


async def outcome(sandbox: Sandbox, source: str, limits: Limits = LIMITS) -> Result:
    """The result of the test `f(1) == 'unguessable'`."""

    def unguessable(values: Any) -> bool:
        return list(values.values()) == ["unguessable"]

    check = CallCheck("", ({"call": [[["int", "1"]], {}]},), unguessable)
    [result] = await sandbox.run(Program(source, "f"), [check], limits)
    return result
