"""Giving up rights, irrevocably, before an untrusted program runs: user, files, memory, system calls.

Raw system calls through ctypes, so that nothing has to be installed. Numbers of landlock_* and of capset's version are
the same on x86-64 and aarch64. Everything raises OSError when the kernel refuses: the worker then never gets ready.
"""

import ctypes
import os
import resource
import signal
import struct
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2
CLONE_NEWNS, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x20000, 2, 4, 8
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF, RULE_PATH_BENEATH = 444, 445, 446, 1
CAPABILITY_VERSION_3 = 0x20080522
O_PATH, O_CLOEXEC = 0o10000000, 0o2000000


def checked(what: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(option: int, argument: Any, second: Any = 0) -> None:
    """The arguments are as wide as a pointer: a plain int would be passed as 32 bits."""
    values = [ctypes.c_ulong(v) if isinstance(v, int) else v for v in (argument, second, 0, 0)]
    checked(f"prctl {option}", LIBC.prctl(ctypes.c_int(option), *values))


def drop_user(uid: int, gid: int) -> None:
    """Leaves root for good."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def die_with(parent: int) -> None:
    """Kills this process when its parent ends. After `drop_user`, which would clear it."""
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        raise OSError("the parent has gone")


def own_tmpfs(path: str, size: int, inodes: int) -> None:
    """An empty memory file system at `path`, limited in bytes and in files; needs CAP_SYS_ADMIN over the mounts.

    The number of files is limited because each costs kernel memory that counts for nobody.
    """
    checked("unshare", LIBC.unshare(CLONE_NEWNS))
    options = f"size={size},nr_inodes={inodes},mode=0700".encode()
    flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
    checked("mount", LIBC.mount(b"tmpfs", path.encode(), b"tmpfs", flags, options))
    os.chdir(path)


def drop_capabilities() -> None:
    """All of them; with no_new_privs none comes back."""
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    checked("capset", LIBC.capset(ctypes.byref(header), ctypes.byref(nothing)))


def no_new_privileges() -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def landlock(ruleset: str, rules: list[list[Any]]) -> None:
    """Confines file access for good. Needs no_new_privs.

    ruleset: struct landlock_ruleset_attr in hex; rules: [path, rights], those without such a path are left out.
    """
    attributes = bytes.fromhex(ruleset)
    handle = checked(
        "landlock_create_ruleset",
        LIBC.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)),
    )
    for path, rights in rules:
        try:
            target = os.open(path, O_PATH | O_CLOEXEC)
        except FileNotFoundError:
            continue
        rule = struct.pack("=Qi", rights, target)
        checked(
            f"landlock_add_rule {path}",
            LIBC.syscall(LANDLOCK_ADD_RULE, handle, RULE_PATH_BENEATH, rule, ctypes.c_uint(0)),
        )
        os.close(target)
    checked("landlock_restrict_self", LIBC.syscall(LANDLOCK_RESTRICT_SELF, handle, ctypes.c_uint(0)))
    os.close(handle)


def seccomp(program: bytes) -> None:
    """Loads a filter, an array of struct sock_filter. Needs no_new_privs. The last step: it refuses prctl."""
    buffer = ctypes.create_string_buffer(program, len(program))

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    filter_program = Filter(len(program) // 8, ctypes.addressof(buffer))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_program))


def limit_resources(memory: int, cpu_seconds: int, file_size: int, processes: int) -> None:
    """Hard limits. memory: address space in bytes. cpu_seconds: in addition to what is used up. processes: of this
    user, or -1 for no limit; where forks are refused anyway it would only count other sandboxes."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime) + cpu_seconds
    limits = [
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_STACK, 16 << 20, 16 << 20),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_FSIZE, file_size, file_size),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, memory, memory),
    ]
    if processes >= 0:
        limits.append((resource.RLIMIT_NPROC, processes, processes))
    for kind, soft, hard in limits:
        maximum = resource.getrlimit(kind)[1]
        if maximum != resource.RLIM_INFINITY:
            soft, hard = min(soft, maximum), min(hard, maximum)
        resource.setrlimit(kind, (soft, hard))
