"""Runs one program under resource limits: `python -I -S limited_run.py PROGRAM SECONDS MEGABYTES`.

Exit code PASSED if it ran to its end, anything else if not: a program that leaves early, whatever its code, has not
passed. Stands alone: it imports nothing of this package.

This is no sandbox. It stops programs that go wrong by accident, as a model's do: endless loops, endless allocation,
big files. Sockets and further processes are refused by an audit hook, which a hostile program could get round.
"""

import resource
import runpy
import sys
from typing import Any

PASSED = 86
FILE_BYTES = 1 << 20
OPEN_FILES = 32
REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.kill", "ctypes.")
"""Beginnings of the audit events that are refused."""


def limit(seconds: int, megabytes: int) -> None:
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(REFUSED):
        raise PermissionError(f"{event} is refused here")


def main(program: str, seconds: str, megabytes: str) -> int:
    limit(int(seconds), int(megabytes))
    sys.addaudithook(refuse)
    try:
        runpy.run_path(program, run_name="__main__")
    except BaseException:
        return 1
    return PASSED


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
