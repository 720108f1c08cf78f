"""A server process of the benchmark's own, on the loopback interface."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil

from strategies.errors import DecodingError

LOOPBACK = ("--host", "127.0.0.1", "--port", "0")
START_SECONDS = 300.0
LISTENING = re.compile(r"listening on (http://\S+)")


class NotReady(DecodingError):
    """The server ended, or did not answer in time, before the first request."""


@contextlib.contextmanager
def server(log: Path, flags: Sequence[str]) -> Iterator[tuple[str, psutil.Popen]]:
    """`serve` with these flags, ready to answer: its address and process. Killed at the end unless it has ended by
    then. log: what it says. Raises NotReady."""
    command = [sys.executable, "-m", "decoding_server", "serve", *LOOPBACK, *flags]
    with log.open("w") as sink:
        process = psutil.Popen(command, stderr=sink, env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    try:
        yield _ready(process, log), process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()


def _ready(process: psutil.Popen, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if listening := LISTENING.search(log.read_text(errors="replace")):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{listening[1]}/health").status_code == 200:
                    return listening[1]
        time.sleep(0.1)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raise NotReady(f"the server did not become ready ({log}): {lines[-1][:300] if lines else 'it said nothing'}")
