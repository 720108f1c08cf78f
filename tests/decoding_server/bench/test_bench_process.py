"""Real processes: paused ones get no CPU, ended ones leave nothing behind."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from decoding_server.bench.process import ProcessTree

COUNT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
ballast = bytearray(64 << 20)
while True:
    open(sys.argv[1], "a").write(".")
    time.sleep(0.01)
"""


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def test_pause_resume_memory_and_stop(tmp_path: Path) -> None:
    ticks, log = tmp_path / "ticks", tmp_path / "logs" / "engine.log"
    tree = ProcessTree([sys.executable, "-c", COUNT, str(ticks)], dict(os.environ), log)
    try:
        assert eventually(lambda: ticks.exists() and ticks.stat().st_size > 3)
        grandchild = psutil.Process(int(tree.last_log_line()))
        assert tree.peak_memory() > 64 << 20
        tree.pause()
        assert eventually(lambda: grandchild.status() == psutil.STATUS_STOPPED)
        time.sleep(0.05)
        frozen = ticks.stat().st_size
        time.sleep(0.2)
        assert ticks.stat().st_size == frozen
        tree.resume()
        assert eventually(lambda: ticks.stat().st_size > frozen)
        tree.pause()
    finally:
        tree.stop(grace=5)
    assert not tree.running
    assert eventually(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


def test_a_command_that_fails_leaves_its_last_words(tmp_path: Path) -> None:
    program = "import sys; print('starting'); sys.exit('no such model')"
    tree = ProcessTree([sys.executable, "-c", program], dict(os.environ), tmp_path / "log")
    assert eventually(lambda: not tree.running)
    assert tree.last_log_line() == "no such model"
    tree.stop()


def test_pipes_carry_a_conversation(tmp_path: Path) -> None:
    program = "import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)"
    tree = ProcessTree([sys.executable, "-c", program], dict(os.environ), tmp_path / "log", pipes=True)
    try:
        tree.stdin.write(b"hello\n")
        tree.stdin.flush()
        assert tree.stdout.readline() == b"HELLO\n"
    finally:
        tree.stop()
