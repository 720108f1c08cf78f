"""Which backend is used, and what is said when none can be: never a silent downgrade."""

import ast
import logging
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from strategies.sandbox import sandbox as sandbox_module
from strategies.sandbox.backends import BACKENDS, Bubblewrap, Landlock, Setup, landlock_abi
from strategies.sandbox.outcome import Limits, SandboxUnavailable
from strategies.sandbox.sandbox import open_sandbox


async def opened_name(*allow: str, **options: object) -> str:
    sandbox = await open_sandbox(allow, concurrency=1, warm=0, **options)  # type: ignore[arg-type]
    await sandbox.close()
    return sandbox.backend.name


async def test_the_default_is_bubblewrap(reasons: dict[str, str | None]) -> None:
    if reasons["bwrap"]:
        pytest.skip(reasons["bwrap"])
    sandbox = await open_sandbox()
    assert sandbox.backend.name == "bwrap"
    assert sandbox.backend.confines
    await sandbox.close()


async def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match="gvisor"):
        await open_sandbox(["bwrap", "gvisor"])
    with pytest.raises(SandboxUnavailable, match="no sandbox is allowed"):
        await open_sandbox([])


async def test_no_confinement_needs_two_switches_and_a_loud_warning(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="second time"):
        await open_sandbox(["process"])
    with caplog.at_level(logging.WARNING):
        assert await opened_name("process", allow_unsandboxed=True) == "process"
    assert "WITHOUT A SANDBOX" in caplog.text


async def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxUnavailable, match=r"bwrap: .*package bubblewrap"):
        await open_sandbox(["bwrap"])


async def test_only_what_is_allowed_comes_next(
    reasons: dict[str, str | None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says why the preferred one is not used."""
    if reasons["lsm"]:
        pytest.skip(reasons["lsm"])
    monkeypatch.setenv("PATH", "/nowhere")
    with caplog.at_level(logging.WARNING):
        assert await opened_name("bwrap", "lsm") == "lsm"
    assert "in the sandbox lsm" in caplog.text
    assert "bwrap: the program bwrap is not installed" in caplog.text


async def test_a_bubblewrap_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in bwrap's place that fails as bwrap does in a container."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/bwrap"
        with open(path, "w") as file:
            file.write("#!/bin/sh\necho 'bwrap: Creating new namespace failed: Operation not permitted' >&2\nexit 1\n")
        os.chmod(path, 0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        with pytest.raises(SandboxUnavailable, match="Creating new namespace failed: Operation not permitted"):
            await open_sandbox(["bwrap"])


async def test_a_kernel_without_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.sandbox.backends.landlock_abi", lambda: 0)
    with pytest.raises(SandboxUnavailable, match="no Landlock"):
        await open_sandbox(["lsm"])


async def test_nowhere_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(SandboxUnavailable, match="temporary files"):
        await open_sandbox(["process"], allow_unsandboxed=True)


async def test_an_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxUnavailable, match=r"riscv64.*\n?"):
        await open_sandbox(["bwrap", "lsm"])


async def test_a_python_that_does_not_run() -> None:
    with pytest.raises(SandboxUnavailable, match="/usr/bin/true"):
        await open_sandbox(["lsm"], python="/usr/bin/true")


@dataclass(frozen=True, slots=True)
class WithoutSeccomp(Landlock):
    def setup(self, directory: str | None) -> Setup:
        return {key: value for key, value in Landlock.setup(self, directory).items() if key != "seccomp"}


@dataclass(frozen=True, slots=True)
class WritingBesides(Landlock):
    """The folder that holds the workers' folders can be written to."""

    def setup(self, directory: str | None) -> Setup:
        setup = Landlock.setup(self, directory)
        setup["landlock"]["rules"].append([os.path.dirname(str(directory)), (1 << 13) - 1])
        return {key: value for key, value in setup.items() if key != "user"}


@dataclass(frozen=True, slots=True)
class OpenBubblewrap(Bubblewrap):
    name: ClassVar[str] = "bwrap"

    def setup(self, directory: str | None) -> Setup:
        return {key: value for key, value in Bubblewrap.setup(self, directory).items() if key != "seccomp"}


@pytest.mark.parametrize(
    ("name", "backend", "reason"),
    [
        ("lsm", WithoutSeccomp, "not prevented"),
        ("lsm", WritingBesides, "writing outside is not prevented"),
        ("bwrap", OpenBubblewrap, "using the network is not prevented|starting processes"),
    ],
)
async def test_probes_notice_a_hole(
    name: str,
    backend: type[Landlock],
    reason: str,
    reasons: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if missing := reasons[name]:
        pytest.skip(missing)
    monkeypatch.setitem(BACKENDS, name, backend)
    with pytest.raises(SandboxUnavailable, match=reason):
        await open_sandbox([name])


@pytest.mark.parametrize("abi", [1, 2, 3, 4, 5, 6])
async def test_older_versions_of_landlock(
    abi: int, reasons: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule sets for older kernels, which this kernel takes too; the probes must pass all the same."""
    if reasons["lsm"]:
        pytest.skip(reasons["lsm"])
    if abi > landlock_abi():
        pytest.skip(f"this kernel's Landlock is version {landlock_abi()}")
    monkeypatch.setattr("strategies.sandbox.backends.landlock_abi", lambda: abi)
    assert await opened_name("lsm") == "lsm"


@pytest.mark.parametrize(
    "values", [{"test_s": 0.0}, {"test_s": float("nan")}, {"test_s": 301}, {"memory_mb": 1}, {"output_kb": 0}]
)
def test_limits_have_ranges(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Limits(**values)  # type: ignore[arg-type]


def test_the_inner_side_needs_the_standard_library_only() -> None:
    """It runs on another Python, without any package: see strategies/sandbox/inside."""
    folder = Path(sandbox_module.__file__).parent
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                own = "strategies.sandbox.inside" if file.parent.name == "inside" else "strategies.sandbox"
                assert name.partition(".")[0] in sys.stdlib_module_names or name.startswith(own), (file, name)


def test_the_report_names_every_backend(reasons: dict[str, str | None]) -> None:
    command = [sys.executable, "-m", "strategies.sandbox", "--programs", "2"]
    root = Path(sandbox_module.__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines()[1:])
    assert list(lines) == list(BACKENDS)
    for name, reason in reasons.items():
        assert ("programs/s" in lines[name]) is (reason is None), lines[name]
