"""The seccomp filter of a sandbox, as a classic BPF program for the kernel.

Default is to allow; refused calls answer EPERM, calls newer than the tables ENOSYS, another architecture's calls kill
the process. The program is loaded from inside (`inside/confine.py`) after the imports, so it can refuse execve too.
Layout of what it reads, struct seccomp_data: nr at 0, arch at 4, low halves of the six arguments at 16 + 8 * index
(both architectures are little-endian).
"""

import errno
import platform
import struct
from collections.abc import Iterable

from strategies.sandbox.syscalls import CONDITIONAL, DENIED, LAST_KNOWN, NEWER, Numbers

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

LOAD, EQUAL, GREATER, ANY_BIT, MASK, RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
"""BPF_LD|W|ABS, BPF_JMP|JEQ|K, JGT, JSET, BPF_ALU|AND|K, BPF_RET|K."""

CLONE_THREAD = 0x00010000
CLONE_NEW = 0x7E020000
"""All flags that make a namespace."""
O_ACCMODE_AND_TRUNC = 0o1003
O_TRUNC = 0o1000
FCNTL_REFUSED = (6, 7, 8, 10, 15, 37, 38, 1024, 1026)
"""SETLK, SETLKW, OFD_SETLK, OFD_SETLKW: locks are kernel memory that no limit counts. SETOWN, SETSIG, SETOWN_EX:
signals to anyone of the same user. SETLEASE, NOTIFY."""
IOCTL_REFUSED = (0x5412, 0x541C, 0x8901, 0x8902)
"""TIOCSTI, TIOCLINUX (typing into a terminal), FIOSETOWN, SIOCSPGRP."""

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, operand k."""


class UnknownArchitecture(Exception):
    """No system call table for this machine."""


def argument(index: int) -> Instruction:
    return (LOAD, 0, 0, 16 + 8 * index)


def refuse_if(call: int | None, condition: list[Instruction]) -> list[Instruction]:
    """If the accumulator is `call`: run `condition`, which must return. Keeps the accumulator otherwise."""
    return [] if call is None else [(EQUAL, 0, len(condition), call), *condition]


def any_of(index: int, values: Iterable[int], refusal: int) -> list[Instruction]:
    """Refuses when the low half of the argument is one of the values, else allows."""
    tests: list[Instruction] = []
    for value in values:
        tests += [(EQUAL, 0, 1, value), (RETURN, 0, 0, refusal)]
    return [argument(index), *tests, (RETURN, 0, 0, ALLOW)]


def build(machine: str) -> list[Instruction]:
    """The filter's instructions for `platform.machine()` = machine. Raises UnknownArchitecture."""
    if machine not in AUDIT_ARCH:
        raise UnknownArchitecture(f"no system call table for {machine}; known are {', '.join(AUDIT_ARCH)}")
    column = list(AUDIT_ARCH).index(machine)

    def number(table: Numbers, name: str) -> int | None:
        return table[name][column]

    denied, missing = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
    program: list[Instruction] = [
        (LOAD, 0, 0, 4),
        (EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, 0),
    ]
    newer: list[Instruction] = []
    for call in NEWER:
        newer += refuse_if(number(NEWER, call), [(RETURN, 0, 0, ALLOW)])
    newer.append((RETURN, 0, 0, missing))
    # x32 calls have bit 30 set, so they are "newer" too.
    program += [(GREATER, 0, len(newer), LAST_KNOWN[column]), *newer]
    for call in DENIED:
        program += refuse_if(number(DENIED, call), [(RETURN, 0, 0, denied)])

    # A thread shares everything with its process and dies with it; any other clone is a fork.
    program += refuse_if(
        number(CONDITIONAL, "clone"),
        [
            argument(0),
            (ANY_BIT, 2, 0, CLONE_NEW),
            (ANY_BIT, 0, 1, CLONE_THREAD),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, denied),
        ],
    )
    # Limits of oneself only: as the server's user, another pid would be the server.
    program += refuse_if(
        number(CONDITIONAL, "prlimit64"),
        [argument(0), (EQUAL, 0, 1, 0), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, denied)],
    )
    program += refuse_if(number(CONDITIONAL, "fcntl"), any_of(1, FCNTL_REFUSED, denied))
    program += refuse_if(number(CONDITIONAL, "ioctl"), any_of(1, IOCTL_REFUSED, denied))
    # Opening to read with O_TRUNC empties a file; Landlock refuses that only from ABI 3 on.
    for call, index in (("open", 1), ("openat", 2)):
        emptying: list[Instruction] = [
            argument(index),
            (MASK, 0, 0, O_ACCMODE_AND_TRUNC),
            (EQUAL, 0, 1, O_TRUNC),
            (RETURN, 0, 0, denied),
            (RETURN, 0, 0, ALLOW),
        ]
        program += refuse_if(number(CONDITIONAL, call), emptying)
    program.append((RETURN, 0, 0, ALLOW))
    return program


def packed(machine: str | None = None) -> bytes:
    """The filter as an array of struct sock_filter, for this machine by default. Raises UnknownArchitecture."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in build(machine or platform.machine()))
