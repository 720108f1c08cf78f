"""The sandbox as its users see it: opened once, then programs and tests in, results out.

sandbox = await open_sandbox(["bwrap", "lsm"])
results = await sandbox.run(Program(source, "add"), [check_assert("assert add(1, 2) == 3", "add")])
await sandbox.close()
"""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from strategies.sandbox.backends import BACKENDS, Backend
from strategies.sandbox.checks import Check, StdinCheck, Unit, sent
from strategies.sandbox.interpreter import find_interpreter
from strategies.sandbox.judge import judge
from strategies.sandbox.outcome import Limits, Outcome, Program, Result, SandboxUnavailable
from strategies.sandbox.pool import Pool
from strategies.sandbox.probe import probe
from strategies.sandbox.records import Observation
from strategies.sandbox.run import run
from strategies.sandbox.worker import WorkerFailed

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Seen:
    """What has been observed of one test. output: what its script printed."""

    observations: list[Observation] = field(default_factory=list)
    output: bytes = b""


class SandboxListener(Protocol):
    """Hears of every program, for metrics. Called on the event loop; must not block."""

    def waited(self, seconds: float) -> None:
        """A worker was ready: its turn had come, and it had started where none was warm."""

    def ran(self, results: Sequence[Result], seconds: float) -> None:
        """A program's results are there; seconds include the waiting."""

    def failed(self) -> None:
        """The sandbox itself failed."""


class Sandbox:
    """A backend that passed its probes, with a pool of workers. Made by `open_sandbox`; belongs to one event loop."""

    def __init__(self, pool: Pool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits
        """The operator's: a run may ask for less."""
        self.listener: SandboxListener | None = None
        self._broken: str | None = None
        self._repair = asyncio.Lock()

    @property
    def backend(self) -> Backend:
        return self.pool.backend

    @property
    def broken(self) -> str | None:
        """Why it failed twice in a row, or at its probes, last time; the next run probes again."""
        return self._broken

    async def run(self, program: Program, checks: Sequence[Check], limits: Limits | None = None) -> list[Result]:
        """One result for each test, in order. When this returns, all of the program's processes are gone.

        Raises SandboxUnavailable when the sandbox itself fails (twice in a row): that is no result of the program's.
        Raises ValueError for limits above the sandbox's own.
        """
        limits = limits or self.limits
        if (name := limits.beyond(self.limits)) is not None:
            raise ValueError(f"{name} is above the limit of {getattr(self.limits, name)}")
        if self._broken is not None:
            await self._probe_again()
        began = time.perf_counter()
        results = await self._run_all(program, checks, limits)
        slow = [index for index, result in enumerate(results) if result.outcome is Outcome.TIMEOUT]
        if len(slow) == 1 and os.getloadavg()[0] > (os.cpu_count() or 1):
            # One timeout among other outcomes may be the machine's fault.
            [again] = await self._run_all(program, [checks[slow[0]]], limits)
            results[slow[0]] = replace(again, retried=True)
        if self.listener is not None:
            self.listener.ran(results, time.perf_counter() - began)
        return results

    async def _run_all(self, program: Program, checks: Sequence[Check], limits: Limits) -> list[Result]:
        seen = [Seen() for _ in checks]
        for batch in batches(checks):
            await self._run_batch(program, batch, seen, limits)
        # In a thread even for small results: what a test makes of them may be much work.
        return await asyncio.to_thread(judge_all, checks, seen)

    async def _run_batch(
        self, program: Program, batch: list[tuple[int, Unit]], seen: list[Seen], limits: Limits
    ) -> None:
        """Runs units in one worker, and what a fatal one left undone in further workers."""
        failures = 0
        while batch:
            asked = time.perf_counter()
            try:
                async with self.pool.worker() as worker:
                    if self.listener is not None:
                        self.listener.waited(time.perf_counter() - asked)
                    done = await run(worker, program, [unit for _, unit in batch], limits)
            except WorkerFailed as error:
                failures += 1
                if self.listener is not None:
                    self.listener.failed()
                logger.warning("sandbox worker failed: %s", error)
                if failures == 2:
                    self._broken = str(error)
                    raise SandboxUnavailable(f"the sandbox failed twice in a row: {error}") from error
                continue
            failures = 0
            for (index, _), observation in zip(batch, done.observations, strict=False):
                seen[index].observations.append(observation)
                seen[index].output = done.output
            batch = batch[len(done.observations) :]

    async def _probe_again(self) -> None:
        async with self._repair:
            if self._broken is None:
                return
            try:
                reason = await probe(self.pool)
            except WorkerFailed as error:
                reason = str(error)
            if reason is not None:
                self._broken = reason
                raise SandboxUnavailable(f"{self.backend.name}: {reason}")
            self._broken = None

    async def close(self) -> None:
        await self.pool.close()


def batches(checks: Sequence[Check]) -> list[list[tuple[int, Unit]]]:
    """Units with their test's index, by process: scripts get one each, everything else shares one."""
    shared = [(i, unit) for i, check in enumerate(checks) if not isinstance(check, StdinCheck) for unit in sent(check)]
    alone = [[(i, unit)] for i, check in enumerate(checks) if isinstance(check, StdinCheck) for unit in check.units]
    return ([shared] if shared else []) + alone


def judge_all(checks: Sequence[Check], seen: Sequence[Seen]) -> list[Result]:
    return [judge(check, s.observations, s.output) for check, s in zip(checks, seen, strict=True)]


async def open_sandbox(
    allow: Sequence[str] = ("bwrap",),
    *,
    allow_unsandboxed: bool = False,
    python: str | None = None,
    limits: Limits | None = None,
    concurrency: int | None = None,
    warm: int | None = None,
) -> Sandbox:
    """The first allowed backend whose probes pass. A weaker one is never used unless it is named.

    allow: names of `BACKENDS`, in order of preference; "process" confines nothing and needs `allow_unsandboxed` too.
    python: the interpreter for programs, the system's by default. concurrency: programs at once, by default one less
    than there are cores. warm: workers kept ready, by default concurrency + 1.

    Raises SandboxUnavailable with the reason for each backend; ValueError for an unknown name.
    """
    unknown = [name for name in allow if name not in BACKENDS]
    if unknown:
        raise ValueError(f"no sandbox is called {unknown[0]!r}; known are {', '.join(BACKENDS)}")
    if "process" in allow and not allow_unsandboxed:
        raise ValueError("'process' confines nothing: it must be allowed a second time, by allow_unsandboxed")
    interpreter = await asyncio.to_thread(find_interpreter, python)
    at_once = concurrency or max(1, (os.cpu_count() or 1) - 1)
    reasons = []
    for name in allow:
        try:
            backend = BACKENDS[name](interpreter)
        except SandboxUnavailable as error:
            reasons.append(f"{name}: {error}")
            continue
        try:
            pool = Pool(backend, concurrency=at_once, warm=at_once + 1 if warm is None else warm)
        except OSError as error:
            reasons.append(f"{name}: no folder for temporary files: {error}")
            continue
        await pool.start()
        try:
            reason = await probe(pool)
        except WorkerFailed as error:
            reason = str(error).removeprefix(f"{name}: ")
        except BaseException:
            await pool.close()
            raise
        if reason is None:
            if not backend.confines:
                logger.warning(
                    "UNTRUSTED PROGRAMS RUN WITHOUT A SANDBOX: they can read this server's files, use the network and "
                    "start processes. Never do this outside of a disposable container."
                )
            for other in reasons:
                logger.warning("programs run in the sandbox %s, since a preferred one is not usable: %s", name, other)
            return Sandbox(pool, limits or Limits())
        await pool.close()
        reasons.append(f"{name}: {reason}")
    raise SandboxUnavailable("; ".join(reasons) or "no sandbox is allowed")
