"""One engine's process tree: started in a session of its own, stopped by signal while others are measured, and killed
at the end."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """Runs in the child before exec: the kernel kills it, even while stopped, when the benchmark dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class ProcessTree:
    """A command and its descendants."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, *, pipes: bool = False
    ) -> None:
        """Starts it. Its output goes to `log`; with `pipes`, only its standard error does. Raises OSError."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                list(command),
                env=dict(environment),
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else sink,
                stderr=sink,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        self._log = log
        self._peak: dict[int, int] = {}

    @property
    def stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None, "started without pipes"
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None, "started without pipes"
        return self._process.stdout

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def last_log_line(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "(no output)"

    def _members(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def _signal(self, number: signal.Signals) -> None:
        for member in self._members():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)

    def pause(self) -> None:
        """Takes the CPU away from it; memory and open connections stay."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def peak_memory(self) -> int:
        """Bytes: the largest resident set of each process seen so far, summed (shared pages count in each)."""
        for member in self._members():
            with contextlib.suppress(psutil.NoSuchProcess, OSError, ValueError):
                self._peak[member.pid] = max(self._peak.get(member.pid, 0), _high_water_mark(member))
        return sum(self._peak.values())

    def stop(self, grace: float = 15.0) -> None:
        """Asks the root process to end, then kills whatever is left of the tree."""
        members = self._members()
        self.resume()
        if self.running:
            self._process.terminate()
        psutil.wait_procs(members, timeout=grace)
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=grace)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _high_water_mark(member: psutil.Process) -> int:
    """Bytes: the kernel's own high-water mark where it keeps one, the present resident set elsewhere."""
    status = Path(f"/proc/{member.pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(member.memory_info().rss)
