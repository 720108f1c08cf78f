"""The server as a process: start, one-line failures, drain on SIGTERM, and the terminal chat against it."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "decoding_server", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


@pytest.fixture
def start():
    """Starts `scripted_server.py` with flags; gives the process and its address once it serves."""
    processes = []

    def start_one(*flags):
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("scripted_server.py")), "port=0", *flags],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        lines = []
        for line in process.stderr:
            lines.append(line)
            if " ready in " in line:
                break
        address = re.search(r"listening on (http://\S+)", "".join(lines))
        assert address, lines
        return process, address[1]

    yield start_one
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()


class Reader(threading.Thread):
    """Reads one slow stream in the background; `text` is what came."""

    def __init__(self, url, tokens):
        super().__init__()
        self.url, self.tokens, self.text, self.begun = url, tokens, "", threading.Event()
        self.start()
        assert self.begun.wait(10)

    def run(self):
        body = {"prompt": "~|", "max_tokens": self.tokens, "stream": True}
        with httpx.stream("POST", self.url + "/v1/completions", json=body, timeout=30) as response:
            for piece in response.iter_text():
                self.text += piece
                self.begun.set()


def test_sigterm_drains(start):
    process, url = start("shutdown_timeout=20")
    reader = Reader(url, tokens=60)  # a good second
    with httpx.Client(base_url=url) as http:
        assert http.get("/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while (health := http.get("/health")).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        refused = http.post("/v1/completions", json={"prompt": "a|"})
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        assert refused.json()["error"]["code"] == "unavailable"
        assert refused.headers["retry-after"]
        assert refused.headers["x-request-id"]
    reader.join(20)
    assert reader.text.count('"text":"z"') == 60
    assert '"finish_reason":"length"' in reader.text
    assert reader.text.endswith("data: [DONE]\n\n")
    assert process.wait(15) == 0


def test_what_does_not_finish_in_time_is_told_so(start):
    process, url = start("shutdown_timeout=0.3")
    reader = Reader(url, tokens=450)  # nine seconds
    process.send_signal(signal.SIGINT)
    reader.join(5)
    assert '"code":"unavailable"' in reader.text
    assert reader.text.endswith("data: [DONE]\n\n")
    assert process.wait(15) == 0


def test_what_was_loaded_is_never_collected_again(tmp_path):
    """A full collection of torch's and the libraries' objects would hold up every stream."""
    program = tmp_path / "program.py"
    program.write_text(
        "import atexit, gc, runpy, sys\n"
        "atexit.register(lambda: print(gc.get_freeze_count(), len(gc.get_objects())))\n"
        "sys.path.insert(0, sys.argv[1].rpartition('/')[0])\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = str(Path(__file__).with_name("scripted_server.py"))
    with subprocess.Popen(
        [sys.executable, str(program), script, "port=0"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert any(" ready in " in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    frozen, left = map(int, out.split())
    assert frozen > 10 * left


def test_a_second_signal_stops_at_once(start):
    process, url = start("shutdown_timeout=20")
    reader = Reader(url, tokens=450)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 128 + signal.SIGTERM
    reader.join(5)


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = command("serve", "--port", str(taken.getsockname()[1]))
    assert result.returncode == 2
    assert "error: cannot listen on 127.0.0.1 port" in result.stderr
    assert "Address already in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_configuration_errors_are_one_line(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("prot: 80\n")
    result = command("serve", "--config", str(path))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: config file {path}: unknown key 'prot'\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("presets: {vote: {strategy: no-such}}", "error: presets: 'vote': 'decoding.strategy': 'no-such' is unknown"),
        (
            "presets: {vote: {search: {type: majority, samples: 0}}}",
            "error: presets: 'vote': 'search.samples': ",
        ),
        ("presets: {vote: {seerch: majority}}", "error: presets: 'vote': 'seerch'"),
        ("presets: {vote: 3}", "error: presets: 'vote': must be a name or an object"),
        ("decoding: calm", "error: decoding: 'decoding': 'calm' is unknown"),
    ],
)
def test_presets_are_checked_before_anything_is_loaded(tmp_path, content, words):
    path = tmp_path / "server.yaml"
    path.write_text(content + "\n")
    result = command("serve", "--config", str(path), "--port", "0", "--log-level", "error")
    assert result.returncode == 2
    assert result.stderr.startswith(words)
    assert result.stderr.count("\n") == 1


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    result = command("serve", str(tmp_path / "nothing"), "--port", "0", "--log-level", "error")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_help_and_version_do_not_wait_for_torch():
    code = (
        "import sys\nfrom decoding_server.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'fastapi'} & set(sys.modules)\n"
    )
    for arguments in (["--version"], ["--help"], ["serve", "--help"], ["chat", "--help"]):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=ENVIRONMENT, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        assert "decoding-server" in result.stdout
    assert "--max-num-batched-tokens" in command("serve", "--help").stdout
    assert "--no-prefix-cache" in command("serve", "--help").stdout


def test_terminal_chat(server):
    result = command("chat", "--url", server.url, "--max-tokens", "5", input="hello world\n/reset\n\nbye\n/quit\n")
    assert (result.returncode, result.stdout) == (0, "hello\nbye\n")


def test_terminal_chat_reports_errors(server):
    result = command("chat", "--url", server.url, "--model", "nope", input="hello\n")
    assert result.returncode == 1
    assert result.stderr.startswith("error: The model 'nope' does not exist.")
    result = command("chat", "--url", "http://127.0.0.1:9", input="hello\n")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
