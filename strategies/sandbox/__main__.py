"""`python -m strategies.sandbox`: which backends hold on this machine, why others don't, and how fast they are."""

import argparse
import asyncio
import logging
import os
import time

from strategies.sandbox.backends import BACKENDS
from strategies.sandbox.checks import check_assert
from strategies.sandbox.outcome import Program, SandboxUnavailable
from strategies.sandbox.sandbox import Sandbox, open_sandbox

TRIVIAL = Program("def add(a, b):\n    return a + b\n", "add")


async def rate(sandbox: Sandbox, programs: int) -> float:
    """Executions of a trivial program a second, one sandbox each, all waiting at once."""
    check = check_assert("assert add(1, 2) == 3", "add")
    begin = time.perf_counter()
    results = await asyncio.gather(*(sandbox.run(TRIVIAL, [check]) for _ in range(programs)))
    seconds = time.perf_counter() - begin
    if not all(result.passed for [result] in results):
        raise SandboxUnavailable("a trivial program failed")
    return programs / seconds


async def latency(sandbox: Sandbox, programs: int) -> float:
    """Median milliseconds of one execution when a worker is ready."""
    check, times = check_assert("assert add(1, 2) == 3", "add"), []
    for _ in range(programs):
        await asyncio.sleep(0.15)  # for the next worker to get ready
        begin = time.perf_counter()
        await sandbox.run(TRIVIAL, [check])
        times.append(time.perf_counter() - begin)
    return 1000 * sorted(times)[len(times) // 2]


async def report(programs: int, concurrency: int | None) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, kernel {os.uname().release}")
    for name in BACKENDS:
        try:
            sandbox = await open_sandbox([name], allow_unsandboxed=True, concurrency=concurrency)
        except SandboxUnavailable as error:
            print(f"{name}: unusable: {error}")
            continue
        version = ".".join(map(str, sandbox.backend.interpreter.version))
        ready = await latency(sandbox, min(20, programs))
        print(f"{name}: Python {version}, {await rate(sandbox, programs):.1f} programs/s, {ready:.1f} ms when ready")
        await sandbox.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m strategies.sandbox", description=__doc__)
    parser.add_argument("--programs", type=int, default=200, help="how many to time for each backend")
    parser.add_argument("--concurrency", type=int, default=None, help="programs at once; default: cores - 1")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    asyncio.run(report(arguments.programs, arguments.concurrency))


if __name__ == "__main__":
    main()
