"""Whether a backend holds on this machine: found out by attacking it, not by looking for its parts.

Each probe is a program that tries something a sandbox must prevent and returns what came of it. A backend is usable
when all answers are the required ones; the first that is not is the reason given.
"""

import contextlib
import os
import socket
from dataclasses import dataclass
from itertools import product

from strategies.sandbox.backends import ENVIRONMENT
from strategies.sandbox.checks import Unit
from strategies.sandbox.inside.codec import decode, encode
from strategies.sandbox.outcome import Limits, Program
from strategies.sandbox.pool import Pool
from strategies.sandbox.run import run

LIMITS = Limits(test_s=10.0, memory_mb=256, output_kb=16)

ATTEMPT = """
def attempt(what, *arguments):
    try:
        return what(*arguments)
    except OSError as error:
        return type(error).__name__
"""

WORKS = """
import json, math, random
def probe(values):
    return sorted(values), math.sqrt(4), json.loads("[1]"), type(random.random()).__name__
"""

ENVIRONMENT_READ = """
import os
def probe(paths):
    def read(path):
        with open(path, "rb") as file:
            file.read(1)
        return "read"
    return set(os.environ), [attempt(read, path) for path in paths]
"""

NETWORK = """
import socket
def probe(port):
    def connect():
        with socket.socket() as s:
            s.settimeout(2)
            s.connect(("127.0.0.1", port))
            return "connected"
    return attempt(connect)
"""

WRITE = """
import os
def probe(paths):
    def write(path):
        with open(path, "w"):
            os.unlink(path)
            return "written"
    def own():
        with open("own", "w") as file:
            file.write("x")
        with open("own") as file:
            return file.read()
    return [attempt(write, path) == "written" for path in paths], attempt(own)
"""

PROCESSES = """
import os, signal
def probe(parent):
    def fork():
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return "forked"
    outcomes = [attempt(fork), attempt(os.execv, "/usr/bin/true", ["true"])]
    return outcomes + [attempt(os.kill, pid, 0) is None for pid in (parent, 1, os.getppid(), -1)]
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """A program's source, its arguments, and the values it may return."""

    name: str
    source: str
    arguments: tuple[object, ...]
    required: tuple[object, ...]


def probes(port: int, folder: str) -> list[Probe]:
    """The attacks. port: where this process listens on 127.0.0.1; folder: one of the host, writable."""
    me, refused = os.getpid(), ("PermissionError",)
    environments = [f"/proc/{me}/environ", "/proc/1/environ"]
    absent = ["FileNotFoundError"] * 2, [*refused] * 2
    names = set(ENVIRONMENT), {*ENVIRONMENT, "PWD"}
    folders = ["", "/etc", "/usr", "/dev/shm", "/var/tmp", folder, os.path.dirname(__file__)]
    outside = [f"{path}/.sandbox-probe" for path in folders]
    return [
        Probe("running a program", WORKS, ([2, 1],), (([1, 2], 2.0, [1], "float"),)),
        Probe("reading the environment", ENVIRONMENT_READ, (environments,), tuple(product(names, absent))),
        Probe("using the network", NETWORK, (port,), refused),
        Probe("writing outside", WRITE, (outside,), (([False] * len(outside), "x"),)),
        Probe("starting processes, sending signals", PROCESSES, (me,), ([*(refused * 2), *([False] * 4)],)),
    ]


async def probe(pool: Pool) -> str | None:
    """Why the pool's backend is not usable, None if it is. Raises WorkerFailed when its workers don't start."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for attack in probes(server.getsockname()[1], pool.folder):
            if attack.source is not WORKS and not pool.backend.confines:
                continue
            if (reason := await failure(pool, attack)) is not None:
                return reason
        server.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            server.accept()[0].close()
            return "using the network is not prevented: a connection came"
    return None


async def failure(pool: Pool, attack: Probe) -> str | None:
    """What went wrong, None for a required answer."""
    unit: Unit = {"call": [[encode(argument) for argument in attack.arguments], {}]}
    async with pool.worker() as worker:
        done = await run(worker, Program(ATTEMPT + attack.source, "probe"), [unit], LIMITS)
    seen = done.observations[0]
    if seen.value is None:
        return f"{attack.name}: {seen.outcome} {seen.error} {seen.message}".strip()
    answer = decode(seen.value)
    return None if answer in attack.required else f"{attack.name} is not prevented: {answer!r}"
