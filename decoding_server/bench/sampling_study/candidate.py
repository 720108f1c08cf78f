"""Whether a generated program passes its tests: run in a process of its own, in a folder of its own, for a few seconds.

This is not the server's sandbox and no safe place for hostile code; see `limited_run`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from decoding_server.bench.sampling_study import limited_run

SECONDS = 5
MEGABYTES = 1024

Outcome = Literal["passed", "failed", "timeout"]


def run(program: str, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Outcome:
    """Runs it, and ends whatever it has started. failed: an exception, an early exit, or a limit other than time."""
    with tempfile.TemporaryDirectory(prefix="candidate-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "program.py"
        path.write_text(program, encoding="utf-8", errors="replace")
        limits = (str(path), str(max(1, round(seconds))), str(megabytes))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", limited_run.__file__, *limits],
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code in (-signal.SIGXCPU, -signal.SIGKILL):  # the limit of CPU time
        return "timeout"
    return "passed" if code == limited_run.PASSED else "failed"
