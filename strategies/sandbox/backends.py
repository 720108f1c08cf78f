"""The ways to confine a worker, each as the command that starts it and the rights it gives up by itself.

`bwrap`    bubblewrap: own user, mount, process, network and IPC namespaces; nothing of the host but a read-only /usr
`lsm`      Landlock: the same process space as the host, but no files, network, signals or second process
`process`  limits on time, memory and file size only: no confinement at all

All use the same system call filter except `process`, and the same limits on resources.
"""

import ctypes
import os
import shutil
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from strategies.sandbox import inside, seccomp
from strategies.sandbox.interpreter import Interpreter
from strategies.sandbox.outcome import SandboxUnavailable

NOBODY = 65534
DIRECTORY_BYTES = 16 << 20
DIRECTORY_FILES = 256
FILE_BYTES = 1 << 20
BOOT = (
    "import sys; sys.path[0] = sys.argv.pop(); from strategies.sandbox.inside.main import main; del sys.path[0]; main()"
)
ENVIRONMENT = {
    "PATH": "/usr/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}
"""All a program sees. The hash seed makes the order of sets repeatable, so -E and -I must not be among the flags."""

Setup = dict[str, Any]


def package_root() -> Path:
    """The folder that holds the package `strategies`."""
    return Path(inside.__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Backend(ABC):
    """How one kind of worker is started. Raises SandboxUnavailable when made where it can't work."""

    interpreter: Interpreter

    name: ClassVar[str]
    confines: ClassVar[bool] = True
    needs_directory: ClassVar[bool] = True
    """Programs write to a folder of the host, which is watched and removed, not to a file system of their own."""
    has_inner_process: ClassVar[bool] = False
    """The process started is not the one that runs the program, and says on a descriptor which one is."""

    @abstractmethod
    def setup(self, directory: str | None) -> Setup:
        """What the worker does to itself, see `inside/main.py`. directory: its own folder."""

    def command(self, setup: str, info: int) -> list[str]:
        """The process to start; info: a descriptor for news about it, which only bubblewrap uses."""
        return [self.interpreter.executable, *self.python(setup, str(package_root()))]

    def python(self, setup: str, root: str) -> list[str]:
        return ["-s", "-S", "-B", "-c", BOOT, setup, root]

    @property
    def processes(self) -> int:
        """RLIMIT_NPROC, -1 for none."""
        return -1


def syscall_filter() -> str:
    try:
        return seccomp.packed().hex()
    except seccomp.UnknownArchitecture as error:
        raise SandboxUnavailable(str(error)) from None


def other_user() -> Setup:
    """Workers of a root server run as nobody; others can't change their user."""
    return {"user": [NOBODY, NOBODY]} if os.geteuid() == 0 else {}


@dataclass(frozen=True, slots=True)
class Bubblewrap(Backend):
    """Namespaces, set up by the `bwrap` program (Debian and Ubuntu package `bubblewrap`, 0.5 or later)."""

    executable: str = ""

    name: ClassVar[str] = "bwrap"
    needs_directory: ClassVar[bool] = False
    has_inner_process: ClassVar[bool] = True

    def __post_init__(self) -> None:
        found = self.executable or shutil.which("bwrap")
        if not found:
            raise SandboxUnavailable("the program bwrap is not installed (package bubblewrap)")
        object.__setattr__(self, "executable", found)
        syscall_filter()

    def setup(self, directory: str | None) -> Setup:
        return {
            "tmpfs": {"path": "/tmp", "size": DIRECTORY_BYTES, "inodes": DIRECTORY_FILES},
            "seccomp": syscall_filter(),
        }

    def command(self, setup: str, info: int) -> list[str]:
        prefix = self.interpreter.prefix
        beyond_usr = [] if Path(prefix).is_relative_to("/usr") else ["--ro-bind", prefix, prefix]
        environment = [part for name, value in ENVIRONMENT.items() for part in ("--setenv", name, value)]
        # Not --disable-userns: it fails where /proc/sys is read-only, as in containers; the filter refuses namespaces.
        # CAP_SYS_ADMIN holds within the new namespaces only, and until the worker has mounted its /tmp.
        return [
            *(self.executable, "--unshare-all", "--unshare-user"),
            *("--die-with-parent", "--new-session", "--info-fd", str(info)),
            *("--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"),
            *("--ro-bind", "/usr", "/usr", *system_folders(), *beyond_usr),
            *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--dev", "/dev", "--dir", "/tmp"),
            *("--ro-bind", str(Path(inside.__file__).parent), "/runner/strategies/sandbox/inside"),
            *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--clearenv", *environment),
            *("--", self.interpreter.executable, *self.python(setup, "/runner")),
        ]


def system_folders() -> list[str]:
    """/bin, /lib and the like: links into /usr on today's systems, folders of their own on older ones."""
    options: list[str] = []
    for folder in ("/bin", "/lib", "/lib64", "/lib32"):
        if os.path.islink(folder):
            options += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            options += ["--ro-bind", folder, folder]
    return options


READ_FILE, READ_DIR, WRITE_FILE, REMOVE_FILE, MAKE_REG, TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 5, 1 << 8, 1 << 14
"""LANDLOCK_ACCESS_FS_*; TRUNCATE is known from ABI 3 on."""
LIBC = ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 without Landlock."""
    create_ruleset, version_flag = 444, 1
    return max(0, int(LIBC.syscall(create_ruleset, None, ctypes.c_size_t(0), ctypes.c_uint(version_flag))))


@dataclass(frozen=True, slots=True)
class Landlock(Backend):
    """Landlock (Linux 5.13 or later), which needs no privilege and no program."""

    abi: int = -1

    name: ClassVar[str] = "lsm"

    def __post_init__(self) -> None:
        if self.abi < 0:
            object.__setattr__(self, "abi", landlock_abi())
        if self.abi == 0:
            raise SandboxUnavailable("the kernel has no Landlock, or it is not enabled (boot with lsm=landlock,…)")
        syscall_filter()

    def setup(self, directory: str | None) -> Setup:
        filesystem = 13 if self.abi == 1 else 14 if self.abi == 2 else 15 if self.abi < 5 else 16
        everything = (1 << filesystem) - 1
        fields = [everything, *([3] if self.abi >= 4 else []), *([3] if self.abi >= 6 else [])]
        reading = READ_FILE | READ_DIR
        own = (reading | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE) & everything
        folders = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", *self.interpreter.libraries)
        rules = [
            *([folder, reading] for folder in folders),
            *([file, READ_FILE] for file in ("/etc/ld.so.cache", "/dev/urandom", "/dev/zero")),
            ["/dev/null", READ_FILE | WRITE_FILE],
            [directory, own],
        ]
        return {
            **other_user(),
            "parent": os.getpid(),
            "landlock": {"ruleset": struct.pack(f"={len(fields)}Q", *fields).hex(), "rules": rules},
            "seccomp": syscall_filter(),
        }


@dataclass(frozen=True, slots=True)
class Unconfined(Backend):
    """Limits on resources and nothing else. A program can read files, use the network, start processes that stay."""

    name: ClassVar[str] = "process"
    confines: ClassVar[bool] = False

    def setup(self, directory: str | None) -> Setup:
        return {**other_user(), "parent": os.getpid()}

    @property
    def processes(self) -> int:
        """Stops a fork bomb of a root server's workers. Another user's own processes would count too."""
        return 64 if os.geteuid() == 0 else -1


BACKENDS: dict[str, type[Backend]] = {kind.name: kind for kind in (Bubblewrap, Landlock, Unconfined)}
"""By the names of the setting `allow`, strongest first."""
