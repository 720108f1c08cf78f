"""The server under test as a client's author sees it: a URL, a key, a model name and the model's tokenizer."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from models.loading import resolve

MODEL = "smollm2-135m-instruct"
API_KEY = "key-of-the-client-tests"
MAX_NUM_SEQS = 8
MAX_WAITING = 48
START_SECONDS = 240  # the first start downloads and converts the model
LISTENING = re.compile(r"listening on (http://\S+)")


@dataclass(frozen=True)
class Server:
    """url: without a path. folder: the model's files, whose tokenizer some clients need."""

    url: str
    folder: Path
    model: str = MODEL
    api_key: str = API_KEY

    @property
    def base_url(self) -> str:
        """What OpenAI's clients call the base URL."""
        return f"{self.url}/v1"

    def sequences(self) -> tuple[int, int]:
        """Running and waiting sequences."""
        status = httpx.get(f"{self.url}/health", timeout=10).json()
        return status["running"], status["waiting"]

    def wait_for(self, condition: Callable[[int, int], bool], seconds: float = 20) -> None:
        """Returns once the numbers of running and waiting sequences are as wished."""
        deadline = time.monotonic() + seconds
        while not condition(*self.sequences()):
            assert time.monotonic() < deadline, f"running and waiting are still {self.sequences()}"
            time.sleep(0.05)

    def wait_until_idle(self) -> None:
        self.wait_for(lambda running, waiting: running == waiting == 0)


@contextlib.contextmanager
def running_server(log: Path) -> Iterator[Server]:
    """A `decoding-server serve` process on a port that it picks itself; ended by SIGTERM, with exit code 0."""
    command = [sys.executable, "-m", "decoding_server", "serve", "--port", "0", "--api-key", API_KEY]
    command += ["--kv-cache-memory", "256MiB", "--max-num-seqs", str(MAX_NUM_SEQS), "--max-waiting", str(MAX_WAITING)]
    with log.open("w") as sink:
        process = subprocess.Popen(command, stderr=sink, env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    try:
        server = Server(_ready(process, log), resolve(None).folder)
    except BaseException:
        process.kill()
        process.wait()
        raise
    yield server
    process.terminate()
    assert process.wait(timeout=60) == 0, log.read_text()


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The server's URL, once it answers requests."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        listening = LISTENING.search(log.read_text())
        if listening is not None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{listening[1]}/health").status_code == 200:
                    return listening[1]
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"the server did not become healthy: {log.read_text()}"
        time.sleep(0.1)
