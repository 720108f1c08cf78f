"""The system call filter, run by an interpreter of BPF here, for both architectures."""

import ctypes
import ctypes.util
import errno
import struct
from collections.abc import Callable

import pytest

from strategies.sandbox import syscalls
from strategies.sandbox.seccomp import ALLOW, AUDIT_ARCH, ERRNO, KILL_PROCESS, UnknownArchitecture, build, packed

REFUSED = ERRNO | errno.EPERM
NO_SUCH_CALL = ERRNO | errno.ENOSYS
MACHINES = list(AUDIT_ARCH)


def decision(machine: str, number: int, arguments: tuple[int, ...] = (), arch: int | None = None) -> int:
    """What the kernel would answer, by the definition of classic BPF."""
    values = (list(arguments) + [0] * 6)[:6]
    data = struct.pack("<IIQ6Q", number, AUDIT_ARCH[machine] if arch is None else arch, 0, *values)
    program, position, accumulator = build(machine), 0, 0
    while True:
        code, true, false, k = program[position]
        position += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif code == 0x54:
            accumulator &= k
        elif code == 0x06:
            return k
        else:
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x45: bool(accumulator & k)}[code]
            position += true if holds else false


def number(machine: str, name: str, table: syscalls.Numbers = syscalls.CONDITIONAL) -> int | None:
    return table[name][MACHINES.index(machine)]


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_denied_call(machine: str) -> None:
    for name in syscalls.DENIED:
        call = number(machine, name, syscalls.DENIED)
        if call is not None:
            assert decision(machine, call) == REFUSED, name


def test_everything_else_of_the_table_is_allowed(machine: str) -> None:
    column = MACHINES.index(machine)
    special = {pair[column] for pair in (syscalls.DENIED | syscalls.CONDITIONAL).values()}
    for call in range(syscalls.LAST_KNOWN[column] + 1):
        if call not in special:
            assert decision(machine, call) == ALLOW, call


def test_newer_calls_do_not_exist(machine: str) -> None:
    column = MACHINES.index(machine)
    allowed = {pair[column] for pair in syscalls.NEWER.values()}
    for call in [*range(syscalls.LAST_KNOWN[column] + 1, 700), 1 << 30, 0x40000000 | 41, (1 << 32) - 1]:
        assert decision(machine, call) == (ALLOW if call in allowed else NO_SUCH_CALL), call


def test_foreign_architectures_are_killed(machine: str) -> None:
    for arch in (0, 0x40000003, *(AUDIT_ARCH[other] for other in MACHINES if other != machine)):
        assert decision(machine, 39, arch=arch) == KILL_PROCESS


def test_threads_but_no_processes(machine: str) -> None:
    clone = number(machine, "clone")
    assert clone is not None
    thread = 0x3D0F00  # what glibc's pthread_create passes
    assert decision(machine, clone, (thread,)) == ALLOW
    for flags in (0x11, 0x4111, 0x1200011, 0x10000011, thread & ~0x10000, thread | 0x20000, thread | 0x10000000):
        assert decision(machine, clone, (flags,)) == REFUSED


def test_limits_of_oneself_only(machine: str) -> None:
    prlimit = number(machine, "prlimit64")
    assert prlimit is not None
    assert decision(machine, prlimit, (0, 9)) == ALLOW
    assert decision(machine, prlimit, (1, 9)) == REFUSED


def test_arguments(machine: str) -> None:
    fcntl, ioctl = number(machine, "fcntl"), number(machine, "ioctl")
    assert fcntl is not None
    assert ioctl is not None
    assert [decision(machine, fcntl, (3, command)) for command in (1, 2, 3, 4, 1030)] == [ALLOW] * 5
    assert [decision(machine, fcntl, (3, command)) for command in (6, 7, 8, 10, 15, 37)] == [REFUSED] * 6
    assert decision(machine, ioctl, (3, 0x5401)) == ALLOW
    assert decision(machine, ioctl, (3, 0x5412)) == REFUSED
    for name, index in (("open", 1), ("openat", 2)):
        call = number(machine, name)
        if call is None:
            continue
        for flags, answer in ((0, ALLOW), (0o1001, ALLOW), (0o1102, ALLOW), (0o1000, REFUSED), (0o2001000, REFUSED)):
            arguments = [0] * 6
            arguments[index] = flags
            assert decision(machine, call, tuple(arguments)) == answer


def test_the_kernel_takes_it(machine: str) -> None:
    program = build(machine)
    assert len(program) <= 4096
    assert len(packed(machine)) == 8 * len(program)
    for position, (code, true, false, _) in enumerate(program):
        assert max(true, false) < 256
        if code & 7 == 5:
            assert position + 1 + max(true, false) < len(program)


def test_an_unknown_machine() -> None:
    with pytest.raises(UnknownArchitecture, match="riscv64"):
        build("riscv64")


@pytest.fixture
def resolve() -> Callable[[str, str], int]:
    name = ctypes.util.find_library("seccomp")
    if name is None:
        pytest.skip("libseccomp, an independent table of system calls, is not installed")
    function = ctypes.CDLL(name).seccomp_syscall_resolve_name_arch
    function.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    return lambda machine, call: int(function(AUDIT_ARCH[machine], call.encode()))


def test_numbers_agree_with_libseccomp(machine: str, resolve: Callable[[str, str], int]) -> None:
    for table in (syscalls.DENIED, syscalls.CONDITIONAL, syscalls.NEWER):
        for name in table:
            known = number(machine, name, table)
            resolved = resolve(machine, name)
            assert known == (resolved if resolved >= 0 else None), name
