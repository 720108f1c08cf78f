"""Attacks on what lies outside of the sandbox: none may come through, on any backend that confines."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from attacking import outcome, processes, returned

from strategies.sandbox.outcome import Limits, Outcome
from strategies.sandbox.sandbox import Sandbox

ATTEMPT = """
import ctypes, os, socket, sys
def attempt(what, *arguments, **named):
    try:
        return what(*arguments, **named)
    except BaseException as error:
        return type(error).__name__
LIBC = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    result = getattr(LIBC, name)(*arguments)
    return ctypes.get_errno() if result == -1 else "done"
"""
EPERM, ENOSYS, EACCES = 1, 38, 13


async def test_fork(sandbox: Sandbox) -> None:
    source = ATTEMPT + "def f(n):\n    return [attempt(os.fork) for _ in range(n)]\n"
    assert await returned(sandbox, source, 50) == ["PermissionError"] * 50
    for function in ("fork", "vfork", "daemon"):
        source = ATTEMPT + f"def f():\n    return call('{function}', 0, 0)\n"
        assert await returned(sandbox, source) == EPERM


async def test_starting_programs(sandbox: Sandbox) -> None:
    source = (
        ATTEMPT
        + """
import subprocess, multiprocessing
def f():
    return [
        attempt(subprocess.run, ["/bin/true"]),
        attempt(os.execv, "/usr/bin/true", ["true"]),
        attempt(os.posix_spawn, "/usr/bin/true", ["true"], {}),
        attempt(os.system, "true"),
        attempt(multiprocessing.Process(target=print).start),
        attempt(os.popen, "true"),
    ]
"""
    )
    answers = await returned(sandbox, source)
    assert [a for a in answers if a not in (-1, 32512)] == ["PermissionError"] * 5  # system() returns -1 or 127 << 8


async def test_fork_bomb_and_daemons_leave_the_machine_alone(sandbox: Sandbox) -> None:
    source = """
import os
def f(n):
    children = 0
    for _ in range(2000):
        try:
            if os.fork() == 0:
                os.setsid()
                while True:
                    pass
            children += 1
        except OSError:
            pass
    return children
"""
    assert await returned(sandbox, source, 1) == 0


async def test_threads_end_at_the_memory_limit_and_with_the_run(sandbox: Sandbox) -> None:
    source = """
import threading, time
def f(n):
    count = 0
    try:
        for count in range(n):
            threading.Thread(target=time.sleep, args=(100,)).start()
    except RuntimeError:
        return count < n - 1
    return False
"""
    assert await returned(sandbox, source, 3000) is True


async def test_environment_and_proc(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "canary-4711"
    monkeypatch.setenv("SERVER_SECRET", canary)
    source = (
        ATTEMPT
        + """
def f(parent):
    def read(path):
        with open(path, "rb") as file:
            return file.read().decode("latin-1")
    names = ["environ", "cmdline", "maps", "mem", "root/etc/passwd", "cwd/pyproject.toml", "fd/0", "fd/1"]
    others = [f"/proc/{pid}/{name}" for pid in (parent, 1, os.getppid()) for name in names]
    own = [f"/proc/self/{name}" for name in names[:-2]]
    found = [str(os.environ)] + [attempt(read, path) for path in own + others]
    found += [attempt(os.listdir, folder) for folder in ("/proc", "/sys", "/root", "/home", "/var", "/run")]
    return [str(entry) for entry in found]
"""
    )
    found = await returned(sandbox, source, os.getpid())
    assert canary not in "".join(found)
    assert set(found[1:]) <= {"FileNotFoundError", "PermissionError"}
    assert set(await returned(sandbox, "import os\ndef f():\n    return list(os.environ)\n")) <= {
        *("PATH", "LANG", "PWD", "PYTHONHASHSEED", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX")
    }


async def test_reading_files_of_the_host(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    secret.chmod(0o644)
    source = (
        ATTEMPT
        + """
def f(paths):
    def read(path):
        with open(path) as file:
            return file.read()
    def through_a_link(path):
        os.symlink(path, "link")
        return read("link")
    def through_a_hard_link(path):
        os.link(path, "link2")
        return read("link2")
    def through_a_handle(path):
        return os.open(path, os.O_PATH) and read(path)
    ways = [read, through_a_link, through_a_hard_link, through_a_handle, os.listdir]
    return [attempt(way, path) for way in ways for path in paths]
"""
    )
    paths = [str(secret), str(tmp_path), "/etc/passwd", "/etc/shadow", "/root", "/proc/self/exe", __file__]
    answers = await returned(sandbox, source, paths)
    refusals = {"FileNotFoundError", "PermissionError", "NotADirectoryError", "OSError", "FileExistsError"}
    # /etc itself may exist under bubblewrap, without these files.
    assert set(map(str, answers)) <= refusals


async def test_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = (
            ATTEMPT
            + """
def f(port):
    def connect(address, family=socket.AF_INET, kind=socket.SOCK_STREAM):
        with socket.socket(family, kind) as s:
            s.settimeout(1)
            return s.connect(address)
    return [
        attempt(connect, ("127.0.0.1", port)),
        attempt(connect, ("93.184.216.34", 80)),
        attempt(connect, ("::1", port), socket.AF_INET6),
        attempt(connect, ("127.0.0.1", 53), socket.AF_INET, socket.SOCK_DGRAM),
        attempt(connect, "\\0abstract", socket.AF_UNIX),
        attempt(connect, "/run/docker.sock", socket.AF_UNIX),
        attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW),
        attempt(socket.socket, 16, socket.SOCK_RAW),
        attempt(socket.socketpair),
        attempt(socket.create_server, ("127.0.0.1", 0)),
    ]
"""
        )
        assert await returned(sandbox, source, server.getsockname()[1]) == ["PermissionError"] * 10
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


async def test_names_are_not_resolved(sandbox: Sandbox) -> None:
    source = ATTEMPT + "def f():\n    return attempt(socket.getaddrinfo, 'example.com', 80)\n"
    assert await returned(sandbox, source) in ("gaierror", "PermissionError")


async def test_writing_outside(sandbox: Sandbox, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    source = (
        ATTEMPT
        + """
def f(paths):
    def write(path):
        with open(path, "w"):
            return "written"
    def to_another_name(path):
        with open("own", "w"):
            pass
        os.rename("own", path)
        return "written"
    ways = [write, to_another_name, os.mkdir, os.mkfifo, os.remove]
    return [(attempt(way, path), path) for way in ways for path in paths]
"""
    )
    mine = os.path.dirname(__file__)
    there = ["/x", "/etc/x", "/usr/x", "/usr/lib/x", "/dev/x", "/dev/shm/x", "/var/tmp/x", "/run/x", "/runner/x"]
    answers = await returned(sandbox, source, [*there, f"{tmp_path}/x", f"{mine}/x"])
    assert {answer for answer, _ in answers} <= {"PermissionError", "FileNotFoundError", "OSError"}, answers
    assert os.listdir(tmp_path) == []
    assert [path for path in there if os.path.exists(path)] == []


async def test_changing_files_of_the_host(sandbox: Sandbox, tmp_path: Path) -> None:
    """Landlock doesn't cover attributes: the system call filter must."""
    target = tmp_path / "target"
    target.write_text("x")
    target.chmod(0o666)
    before = target.stat()
    source = (
        ATTEMPT
        + """
def f(path):
    return [
        attempt(os.chmod, path, 0o777),
        attempt(os.chown, path, os.getuid(), -1),
        attempt(os.utime, path, (0, 0)),
        attempt(os.setxattr, path, "user.x", b"x"),
        attempt(os.truncate, path, 0),
        attempt(os.open, path, os.O_RDONLY | os.O_TRUNC),
    ]
"""
    )
    assert set(await returned(sandbox, source, str(target))) <= {"PermissionError", "FileNotFoundError"}
    after = target.stat()
    assert (before.st_mode, before.st_mtime, before.st_size) == (after.st_mode, after.st_mtime, after.st_size)


async def test_its_own_folder_is_limited_and_goes(sandbox: Sandbox) -> None:
    source = """
import errno
def f(megabytes):
    with open("own", "wb") as file:
        file.write(b"x" * 1000)
    with open("own", "rb") as file:
        assert len(file.read()) == 1000
    try:
        with open("big", "wb", buffering=0) as file:
            for _ in range(megabytes * 16):
                file.write(b"x" * 65536)
    except OSError as error:
        import os
        return [error.errno == errno.EFBIG, os.stat("big").st_size]
"""
    assert await returned(sandbox, source, 100) == [True, 1 << 20]
    assert await returned(sandbox, "import os\ndef f():\n    return os.listdir('.')\n") == []


@pytest.mark.parametrize("size", [0, 1 << 20])
async def test_many_files(sandbox: Sandbox, size: int) -> None:
    source = f"""
def f(n):
    for i in range(1 << 30):
        try:
            with open(str(i), "wb") as file:
                file.write(b"x" * {size})
        except OSError as error:
            return ["refused", i]
"""
    [result] = [await outcome(sandbox, source, Limits(test_s=10, memory_mb=256))]
    if sandbox.backend.needs_directory:
        assert result.outcome is Outcome.FILE_LIMIT
    else:
        assert result.got.startswith("['refused', ")
        assert int(result.got.split()[1].rstrip("]")) <= (16 if size else 256)


async def test_signals(sandbox: Sandbox) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        source = (
            ATTEMPT
            + """
import signal
def f(pids):
    targets = [*pids, os.getppid(), 1, -1, 0]
    answers = [attempt(os.kill, pid, signal.SIGKILL) for pid in targets]
    answers += [attempt(os.killpg, pid, signal.SIGKILL) for pid in pids]
    answers += [attempt(signal.pidfd_send_signal, os.open("/dev/null", 0), 9)]
    answers += [call("sigqueue", pid, 9, 0) for pid in pids]
    answers += [call("tgkill", pid, pid, 9) for pid in pids]
    import fcntl
    with open("own", "w") as file:
        answers += [attempt(fcntl.fcntl, file, fcntl.F_SETOWN, pid) for pid in pids]
    return answers
"""
        )
        answers = await returned(sandbox, source, [os.getpid(), bystander.pid])
        assert set(map(str, answers)) <= {"PermissionError", str(EPERM), "OSError"}
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


async def test_priorities_and_limits_of_others(sandbox: Sandbox) -> None:
    source = (
        ATTEMPT
        + """
import resource
def f(pid):
    return [
        attempt(os.setpriority, os.PRIO_PROCESS, pid, 19),
        attempt(os.sched_setaffinity, pid, [0]),
        attempt(resource.prlimit, pid, resource.RLIMIT_NOFILE, (1, 1)),
        attempt(resource.setrlimit, resource.RLIMIT_AS, (1 << 40, 1 << 40)),
    ]
"""
    )
    answers = await returned(sandbox, source, os.getpid())
    assert answers == [*["PermissionError"] * 3, "ValueError"]


REFUSED = [
    "call('ptrace', 16, parent, 0, 0)",
    "call('ptrace', 0, 0, 0, 0)",
    "call('process_vm_readv', parent, 0, 0, 0, 0, 0)",
    "call('unshare', 0x10000000)",
    "call('setns', 0, 0)",
    "call('mount', b'tmpfs', b'/tmp', b'tmpfs', 0, 0)",
    "call('umount2', b'/usr', 2)",
    "call('chroot', b'/usr')",
    "call('pivot_root', b'/', b'/')",
    "call('setuid', 0)",
    "call('setgroups', 0, 0)",
    "call('prctl', 1, 0, 0, 0, 0)",
    "call('personality', 0x0400000)",
    "call('memfd_create', b'x', 0)",
    "call('shmget', 0, 4096, 0o1600)",
    "call('semget', 0, 1, 0o1600)",
    "call('msgget', 0, 0o1600)",
    "call('inotify_init')",
    "call('fanotify_init', 0, 0)",
    "call('reboot', 0)",
    "call('settimeofday', bytes(16), 0)",
    "call('clock_settime', 0, bytes(16))",
    "call('adjtimex', 0)",
    "call('sethostname', b'x', 1)",
    "call('swapon', b'/x', 0)",
    "call('iopl', 3) if hasattr(LIBC, 'iopl') else 1",
    "call('syscall', KEYCTL, 0, -3, 0)",
    "call('syscall', ADD_KEY, b'user', b'name', b'data', 4, -3)",
    "call('syscall', BPF, 0, 0, 0)",
    "call('syscall', PERF, 0, 0, -1, -1, 0)",
    "call('syscall', USERFAULTFD, 0)",
]
"""Statements in the program's terms, see ATTEMPT."""


async def test_refused_calls(sandbox: Sandbox) -> None:
    numbers = "KEYCTL, ADD_KEY, BPF, PERF, USERFAULTFD = "
    numbers += "250, 248, 321, 298, 323\n" if os.uname().machine == "x86_64" else "219, 217, 280, 241, 282\n"
    source = ATTEMPT + numbers + f"def f(parent):\n    return [{', '.join(REFUSED)}]\n"
    answers = await returned(sandbox, source, os.getpid())
    assert dict(zip(REFUSED, answers, strict=True)) == dict.fromkeys(REFUSED, EPERM)


async def test_new_calls_do_not_exist(sandbox: Sandbox) -> None:
    numbers = [424, 425, 428, 430, 434, 435, 437, 438, 444, 447, 467, 600]
    source = ATTEMPT + "def f(numbers):\n    return [call('syscall', n, 0, 0, 0, 0, 0, 0) for n in numbers]\n"
    assert await returned(sandbox, source, numbers) == [ENOSYS] * len(numbers)


async def test_users_and_groups(sandbox: Sandbox) -> None:
    source = "import os\ndef f():\n    return [os.getuid(), os.geteuid(), os.getgid(), os.getegid()]\n"
    if sandbox.backend.name == "bwrap" or os.geteuid() == 0:
        assert await returned(sandbox, source) == [65534] * 4


async def test_standard_input_and_descriptors(sandbox: Sandbox) -> None:
    """The job, and with it later tests' arguments, is not on standard input any more; no other descriptor is open."""
    source = """
import os
def f():
    open_ones = []
    for descriptor in range(3, 64):
        try:
            os.fstat(descriptor)
            open_ones.append(descriptor)
        except OSError:
            pass
    return [os.read(0, 100), len(open_ones)]
"""
    assert await returned(sandbox, source) == [b"", 1]


async def test_the_server_and_other_sandboxes_live_on(sandbox: Sandbox) -> None:
    source = "import os, signal\ndef f(n):\n    os.kill(-1, signal.SIGKILL)\n"
    results = await asyncio.gather(*(outcome(sandbox, source) for _ in range(3)))
    assert [result.error for result in results] == ["PermissionError"] * 3
    assert await returned(sandbox, "def f(x):\n    return x\n", 5) == 5


async def test_the_clock_is_the_parents(sandbox: Sandbox) -> None:
    source = """
import signal, time
def f(n):
    time.monotonic = time.time = lambda: 0.0
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
"""
    result = await outcome(sandbox, source, Limits(test_s=0.5, memory_mb=256))
    assert result.outcome is Outcome.TIMEOUT
    assert result.seconds < 10


async def test_nothing_runs_after_a_result(sandbox: Sandbox) -> None:
    source = """
import threading
def f(n):
    def forever():
        while True:
            pass
    threading.Thread(target=forever).start()
    return n
"""
    assert await returned(sandbox, source, 3) == 3
    assert processes(sandbox) == []


async def test_killed_by_the_filter(sandbox: Sandbox) -> None:
    """A call of another architecture kills the process: 32-bit calls on x86-64."""
    if os.uname().machine != "x86_64":
        pytest.skip("int 0x80 is of x86-64")
    source = """
import ctypes, mmap
def f(n):
    code = bytes.fromhex("b814000000cd80c3")  # mov eax, 20 (getpid); int 0x80; ret
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)()
"""
    result = await outcome(sandbox, source)
    assert result.outcome is Outcome.FORBIDDEN, result
