"""What a run was measured on: processor, memory, versions, commit. No host names and no paths."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil


def processor_name() -> str:
    """The processor's model as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those that decide which matrix kernels run; empty where the system does not say."""
    information = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.split(":", 1)[1].split())
                break
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm")
    return [name for name in wanted if name in flags]


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def commit() -> str:
    """The commit of the source tree, with `+changes` when it has uncommitted ones; "unknown" outside a repository, and
    where the package lies in somebody else's, as in the virtual environment of another project."""
    here = Path(__file__).resolve()
    try:
        git(here.parent, "ls-files", "--error-unmatch", here.name)
        head = git(here.parent, "rev-parse", "--short=12", "HEAD")
        changes = git(here.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changes else "")


def git(folder: Path, *arguments: str) -> str:
    """What the command prints. Raises OSError without git, CalledProcessError."""
    found = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def describe() -> dict[str, object]:
    return {
        "processor": processor_name(),
        "instruction_sets": instruction_sets(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
    }
