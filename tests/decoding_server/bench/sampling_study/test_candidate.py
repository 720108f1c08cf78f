"""Running generated programs: what passes, what fails, what is stopped."""

import time
from pathlib import Path

import psutil
import pytest

from decoding_server.bench.sampling_study.candidate import run


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("def f(x):\n    return x + 1\n\nassert f(1) == 2\n", "passed"),
        ("print('x' * 10_000_000)\n", "passed"),
        ("assert 1 + 1 == 3\n", "failed"),
        ("def f(:\n", "failed"),
        # Leaving before the tests is no pass, with whatever code.
        ("import sys\nsys.exit(0)\n", "failed"),
        ("raise SystemExit(86)\n", "failed"),
        ("import os\nos._exit(0)\n", "failed"),
        ("x = []\nwhile True:\n    x.append(bytes(1 << 20))\n", "failed"),
        ("def f():\n    f()\nf()\n", "failed"),
        ("open('big', 'wb').write(bytes(8 << 20))\n", "failed"),
        ("import socket\nsocket.socket()\n", "failed"),
        ("import os\nos.fork()\n", "failed"),
        ("import subprocess\nsubprocess.run(['true'])\n", "failed"),
        ("import os\nos.system('true')\n", "failed"),
    ],
)
def test_outcomes(program: str, outcome: str) -> None:
    assert run(program, seconds=20, megabytes=512) == outcome


@pytest.mark.parametrize("program", ["while True:\n    pass\n", "import time\ntime.sleep(60)\n"])
def test_what_does_not_end_is_ended(program: str) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    assert run(program, seconds=1) == "timeout"
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_a_program_sees_an_empty_folder_and_no_environment(tmp_path: Path) -> None:
    program = "import os\nassert os.listdir() == ['program.py'], os.listdir()\nassert 'PATH' not in os.environ\n"
    assert run(program, seconds=20) == "passed"


def test_nothing_is_left_of_its_folder(tmp_path: Path) -> None:
    note = tmp_path / "where"
    started = time.time()
    assert run(f"import os\nopen({str(note)!r}, 'w').write(os.getcwd())\n", seconds=20) == "passed"
    folder = Path(note.read_text())
    assert note.stat().st_mtime >= started - 1
    assert not folder.exists()
