"""C sources that are compiled on demand, once per machine, into the user's cache folder.

A library is optional: where it can't be built, its caller does the same work with torch operations.
"""

import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

Bound = TypeVar("Bound")

# Contraction into FMA is on, fast-math is off: the sources rely on infinities. -fno-trapping-math and -fno-math-errno
# drop exception flags and errno only, which nothing reads.
COMPILE_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
COMPILE_TIMEOUT = 120.0  # seconds


def load(
    source: Path, bind: Callable[[Path], Bound], compilers: Sequence[str] | None = None, cache: Path | None = None
) -> Bound | None:
    """`bind` of the library compiled from a C source; None, with one log line, where that fails.

    It is compiled if the cache has none for this machine. bind: opens the library at a path (OSError where it can't).
    compilers: names or paths to try in order (default: $CC, cc, gcc, clang). cache: folder of the built libraries
    (default: `kernels` in $DECODING_SERVER_CACHE, or in `decoding-server` in the XDG cache folder).
    The environment's DECODING_SERVER_NATIVE=0 switches all libraries off.
    """
    title = f"native CPU kernels ({source.name})"
    if os.environ.get("DECODING_SERVER_NATIVE") == "0":
        logger.info("%s: off (DECODING_SERVER_NATIVE=0)", title)
        return None
    if compilers is None:
        compilers = [*filter(None, [os.environ.get("CC")]), "cc", "gcc", "clang"]
    reason = "no C compiler found; install gcc or clang"
    openmp = _openmp_runtime()
    # Without OpenMP as the last resort: clang's calls need another runtime than the one that torch usually brings.
    for runtime in (openmp, None) if openmp else (None,):
        for compiler in filter(None, map(shutil.which, compilers)):
            try:
                library = _build(source, compiler, cache or _cache_folder(), runtime)
                bound = bind(library)
            except (OSError, subprocess.SubprocessError) as error:
                output = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
                reason = f"{compiler}: {output or error}".strip().splitlines()[0]
                continue
            logger.info("%s: %s, built with %s", title, library.name, compiler)
            return bound
    logger.warning("%s: not available, torch operations take their place (%s)", title, reason)
    return None


def _cache_folder() -> Path:
    own = os.environ.get("DECODING_SERVER_CACHE")
    if own:
        return Path(own) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "decoding-server" / "kernels"


def _openmp_runtime() -> Path | None:
    """The OpenMP runtime that torch has loaded. A second one would bring a second pool of spinning threads."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux
        return None
    found = sorted(set(re.findall(r"(/\S.*/lib(?:gomp|iomp5|omp)\b[^/\n]*\.so[^/\n]*)$", maps, re.MULTILINE)))
    torch_folder = str(Path(torch.__file__).parent)  # covers torch/lib and torch.libs
    found.sort(key=lambda path: not path.startswith(torch_folder))
    return Path(found[0]) if found else None


def _build(source: Path, compiler: str, folder: Path, openmp: Path | None) -> Path:
    """The compiled library's path. Raises OSError or subprocess.SubprocessError."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True, timeout=COMPILE_TIMEOUT
    )
    try:
        cpu = re.findall(r"^(?:flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:1]
    except OSError:
        cpu = [platform.processor()]
    key = "\n".join([version.stdout, *cpu, platform.machine(), torch.__version__, str(openmp), *COMPILE_FLAGS])
    digest = hashlib.sha256(key.encode() + source.read_bytes()).hexdigest()[:16]
    library = folder / f"{source.stem}-{digest}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        # Compiled and linked apart: the driver's own -fopenmp would link the system's runtime.
        object_file, result = Path(work) / "kernels.o", Path(work) / "kernels.so"
        commands: tuple[list[str | Path], list[str | Path]] = (
            [*COMPILE_FLAGS, "-Wno-psabi", "-fPIC", *(["-fopenmp"] if openmp else []), "-c", source, "-o", object_file],
            ["-shared", object_file, *([openmp] if openmp else []), "-lm", "-o", result],
        )
        for arguments in commands:
            subprocess.run([compiler, *arguments], capture_output=True, text=True, check=True, timeout=COMPILE_TIMEOUT)
        result.replace(library)  # atomic: another process sees a whole file or none
    return library
