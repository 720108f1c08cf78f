"""What a run says it was made by: the commit of this source tree and of no other, and the packages."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from decoding_server.bench import machine, provenance


def repository(folder: Path) -> Path:
    """With one commit."""
    folder.mkdir()
    (folder / "README").write_text("Somebody else's.")
    as_someone = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for command in (["init", "-q"], ["add", "README"], [*as_someone, "commit", "-qm", "First"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


def test_the_commit_is_not_that_of_a_repository_around_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = repository(tmp_path / "project")
    package = here / ".venv" / "decoding_server"
    package.mkdir(parents=True)
    (package / "machine.py").write_text("")
    monkeypatch.setattr(machine, "__file__", str(package / "machine.py"))
    assert machine.commit() == "unknown"
    # Tracked, it is this repository's own.
    machine.git(package, "add", "machine.py")
    assert machine.commit() == machine.git(here, "rev-parse", "--short=12", "HEAD") + "+changes"


def test_the_versions_of_what_computes_and_of_what_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "version", lambda name: "1.2" if name in ("vllm", "math-verify") else version(name))
    found = provenance.versions()
    assert (found["vllm"], found["math-verify"], found["torch"]) == ("1.2", "1.2", version("torch"))
