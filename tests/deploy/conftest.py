"""Tools that check manifests. They are optional in `make test`; `make check-deploy` wants them all."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "decoding_server"))  # for its live server
REQUIRED = os.environ.get("DECODING_SERVER_TEST_DEPLOY") == "required"


def missing(tool: str) -> None:
    if REQUIRED:
        pytest.fail(f"{tool} is not installed")
    pytest.skip(f"{tool} is not installed: make check-deploy")


@pytest.fixture(scope="session")
def tool() -> Callable[..., str]:
    """Runs a program; returns what it prints, or fails with that."""

    def run(name: str, *arguments: str | Path, cwd: Path = ROOT) -> str:
        beside = Path(sys.executable).with_name(name)
        path = str(beside) if beside.exists() else shutil.which(name)
        if path is None:
            missing(name)
        command = [str(path), *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    return run


@pytest.fixture(scope="session")
def helm() -> ModuleType:
    """Helm itself, as a library."""
    try:
        import helm_python
    except ImportError:
        missing("helm-python-sdk")
    return helm_python
