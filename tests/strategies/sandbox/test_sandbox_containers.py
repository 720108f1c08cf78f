"""The sandbox where containers run it: as another user than root, and under the rules of Docker's default profile.

No container runtime is needed: a child process takes on the same restrictions, by a system call filter that refuses
what Docker's refuses (namespaces, mounts), by dropping the capabilities that Docker drops, by another user.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from attacking import unusable

import strategies.sandbox
from strategies.sandbox.interpreter import find_interpreter

CHILD = """
import asyncio, ctypes, json, os, struct, sys
from strategies.sandbox.inside import confine
from strategies.sandbox.outcome import Limits, Program, SandboxUnavailable
from strategies.sandbox.checks import CallCheck
from strategies.sandbox.inside.codec import encode
from strategies.sandbox.sandbox import open_sandbox

def docker_profile():
    namespaces = 0x7E020000  # CLONE_NEW*
    x86 = os.uname().machine == "x86_64"
    refused = (165, 166, 272, 308, 155) if x86 else (40, 39, 97, 268, 41)  # mount umount2 unshare setns pivot_root
    denied, missing, allow = 0x50001, 0x50026, 0x7FFF0000
    code = [(0x20, 0, 0, 0)]
    for number in refused:
        code += [(0x15, 0, 1, number), (6, 0, 0, denied)]
    code += [(0x15, 0, 1, 435), (6, 0, 0, missing)]
    code += [(0x15, 0, 3, 56 if x86 else 220), (0x20, 0, 0, 16), (0x45, 0, 1, namespaces), (6, 0, 0, denied)]
    code += [(6, 0, 0, allow)]
    confine.no_new_privileges()
    confine.seccomp(b"".join(struct.pack("=HBBI", *instruction) for instruction in code))

ATTACK = '''
import os, resource
def attempt(what, *arguments):
    try:
        return what(*arguments)
    except BaseException as error:
        return type(error).__name__
def f(server, path):
    return [
        attempt(os.kill, server, 9),
        attempt(resource.prlimit, server, resource.RLIMIT_NOFILE, (1, 1)),
        attempt(os.setpriority, os.PRIO_PROCESS, server, 19),
        attempt(os.chmod, path, 0o777),
        attempt(os.truncate, path, 0),
        attempt(open, path),
        attempt(open, path, "w"),
        attempt(open, f"/proc/{server}/environ"),
        attempt(open, f"/proc/{server}/mem"),
    ]
'''

async def main(profile, allow, path):
    if profile == "docker":
        docker_profile()
    try:
        sandbox = await open_sandbox(allow.split(","), limits=Limits(test_s=5, memory_mb=256), concurrency=1, warm=1)
    except SandboxUnavailable as error:
        return {"unavailable": str(error)}
    kept = []
    unit = {"call": [[encode(os.getpid()), encode(path)], {}]}
    check = CallCheck("", (unit,), lambda values: kept.extend(values.values()) or True)
    [result] = await sandbox.run(Program(ATTACK, "f"), [check])
    await sandbox.close()
    return {"backend": sandbox.backend.name, "outcome": result.outcome, "answers": kept[0] if kept else None}

print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
"""

DOCKER_CAPABILITIES = (
    ",+chown,+dac_override,+fsetid,+fowner,+mknod,+net_raw,+setgid,+setuid,+setfcap,+setpcap,+net_bind_service"
    ",+sys_chroot,+kill,+audit_write"
)
READ_ONLY_PROC_SYS = """
mount --make-rprivate /
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec "$@"
"""


def run_as(tmp_path: Path, user: int, profile: str, allow: str) -> dict[str, Any]:
    """What a server started like this gets, run by the system's Python on a copy of the package that all can read."""
    interpreter = find_interpreter()
    if user != os.geteuid() and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    if interpreter.version < (3, 11) or (user and not interpreter.executable.startswith("/usr/")):
        pytest.skip("needs a Python 3.11 of the system")
    package = tmp_path / "package" / "strategies"
    package.mkdir(parents=True)
    shutil.copytree(
        Path(strategies.sandbox.__file__).parent, package / "sandbox", ignore=shutil.ignore_patterns("__pycache__")
    )
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    os.chown(secret, user, user)
    for folder in [tmp_path, *tmp_path.parents[:3]]:  # pytest's own are closed to others
        if folder.stat().st_mode & 0o777 == 0o700:
            folder.chmod(0o755)
    before: list[str] = []
    if profile == "read-only /proc/sys":
        before += ["unshare", "--mount", "sh", "-ec", READ_ONLY_PROC_SYS, "sh"]
    if profile != "none":
        before += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        kept = "" if user or profile == "no capabilities" else DOCKER_CAPABILITIES
        before += [f"--bounding-set=-all{kept}", "--inh-caps=-all"]
    if any(shutil.which(program) is None for program in ("setpriv", "unshare")):
        pytest.skip("util-linux is not installed")
    command = [*before, interpreter.executable, "-B", "-c", CHILD, profile, allow, str(secret)]
    done = subprocess.run(
        command,
        user=None if before else user,
        group=None if before else user,
        extra_groups=[] if os.geteuid() == 0 else None,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(package.parent), "SERVER_SECRET": "canary"},
        cwd="/",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert secret.read_text() == "hidden"
    answer: dict[str, Any] = json.loads(done.stdout)
    print(answer)
    return answer


def refused(answer: dict[str, Any]) -> bool:
    return set(answer["answers"]) <= {"PermissionError", "FileNotFoundError"}


@pytest.mark.parametrize("backend", ["bwrap", "lsm"])
def test_another_user_than_root(backend: str, tmp_path: Path) -> None:
    """The program then runs as the server's own user, and still can't reach the server."""
    if (reason := unusable(backend)) is not None:
        pytest.skip(reason)
    answer = run_as(tmp_path, 12345, "none", backend)
    if backend == "bwrap" and "unavailable" in answer:
        pytest.skip(f"users can't make namespaces here: {answer['unavailable']}")
    assert (answer["backend"], answer["outcome"]) == (backend, "pass")
    assert refused(answer), answer


@pytest.mark.parametrize("user", [0, 12345])
def test_docker_without_its_profile(user: int, tmp_path: Path) -> None:
    """`--security-opt seccomp=unconfined`: bubblewrap works, without CAP_SYS_ADMIN, with a read-only /proc/sys."""
    if (reason := unusable("bwrap")) is not None:
        pytest.skip(reason)
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    answer = run_as(tmp_path, user, "read-only /proc/sys", "bwrap")
    if user and "unavailable" in answer:
        pytest.skip(f"users can't make namespaces here: {answer['unavailable']}")
    assert (answer["backend"], answer["outcome"]) == ("bwrap", "pass")
    assert refused(answer), answer


@pytest.mark.parametrize("user", [0, 12345])
def test_docker_default_profile(user: int, tmp_path: Path) -> None:
    """bubblewrap says why it can't work; Landlock works, as root of the container and as another user."""
    if (reason := unusable("lsm") or unusable("bwrap")) is not None:
        pytest.skip(reason)
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    answer = run_as(tmp_path / "first", user, "docker", "bwrap")
    assert "ermi" in answer["unavailable"], answer
    assert answer["unavailable"].startswith("bwrap: ")
    answer = run_as(tmp_path / "second", user, "docker", "bwrap,lsm")
    assert (answer["backend"], answer["outcome"]) == ("lsm", "pass")
    assert refused(answer), answer


def test_root_without_capabilities(tmp_path: Path) -> None:
    """`--cap-drop ALL` leaves root too little to give up being root: both say so. Another user needs none."""
    if (reason := unusable("lsm") or unusable("bwrap")) is not None:
        pytest.skip(reason)
    if os.geteuid() != 0:
        pytest.skip("is not root")
    answer = run_as(tmp_path, 0, "no capabilities", "bwrap,lsm")
    bwrap, _, lsm = answer["unavailable"].partition("; lsm: ")
    assert "not permitted" in bwrap
    assert "not permitted" in lsm
