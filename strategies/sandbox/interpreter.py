"""Which Python runs untrusted programs: the system's own, never the server's virtual environment."""

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass

from strategies.sandbox.outcome import SandboxUnavailable

QUESTION = (
    "import json, sys, sysconfig; print(json.dumps([sys.version_info[:3], sys.base_prefix,"
    " sysconfig.get_path('stdlib'), sysconfig.get_path('platstdlib')]))"
)
MINIMUM = (3, 9)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """executable: its path; prefix: the folder that holds it all; libraries: where its standard library is."""

    executable: str
    version: tuple[int, int, int]
    prefix: str
    libraries: tuple[str, ...]


def find_interpreter(executable: str | None = None) -> Interpreter:
    """The given one, else the first that works of: the server's own if it is the system's, the system's, the server's.

    Blocks for some 20 ms a candidate. Raises SandboxUnavailable.
    """
    own = os.path.join(sys.base_prefix, "bin", f"python{sysconfig.get_python_version()}")
    system = ["/usr/local/bin/python3", "/usr/bin/python3"]
    candidates = [executable] if executable else [*([own] if own.startswith("/usr/") else []), *system, own]
    reasons = []
    for candidate in candidates:
        try:
            return ask(candidate)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reasons.append(f"{candidate}: {error}")
    raise SandboxUnavailable("no Python to run programs with: " + "; ".join(reasons))


def ask(executable: str) -> Interpreter:
    path = os.path.realpath(executable)
    answer = subprocess.run(
        [path, "-I", "-S", "-B", "-c", QUESTION], capture_output=True, check=True, timeout=20, env={"LANG": "C.UTF-8"}
    )
    version, prefix, *libraries = json.loads(answer.stdout)
    if tuple(version) < MINIMUM:
        raise ValueError(f"Python {'.'.join(map(str, version))} is too old, {'.'.join(map(str, MINIMUM))} is needed")
    return Interpreter(path, tuple(version), prefix, tuple(dict.fromkeys(libraries)))
