"""Rows 18, 19 and 21: clients that go away, and a server that is told to go."""

import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from peer_server import CHAT, COMPLETIONS, ENDPOINTS, PeerServer, peer_server, read_reply, request_body

both = pytest.mark.parametrize("path", ENDPOINTS)


@pytest.fixture(scope="module")
def roomy() -> Iterator[PeerServer]:
    """A server with a context of 4608 tokens, that computes prompts 16 tokens at a time."""
    with peer_server({}, max_model_len=4608, num_slots=24576, max_num_batched_tokens=16) as server:
        yield server


def raw_request(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(content), content)


def connect(server: PeerServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port or 0), timeout=20)


def read_events(connection: socket.socket, count: int) -> None:
    """Reads until that many events have come."""
    seen = b""
    while seen.count(b"data: ") < count:
        piece = connection.recv(65536)
        assert piece, seen
        seen += piece


@both
@pytest.mark.parametrize("n", [1, 4])
def test_row_18_a_stream_given_up_after_three_chunks(roomy: PeerServer, path: str, n: int) -> None:
    """row 18: ggml-org/llama.cpp#24496, #11720, vllm-project/vllm#9428: running is 0 within a second, KV free."""
    with connect(roomy) as connection:
        connection.sendall(raw_request(path, request_body(path, "~?", max_tokens=4000, n=n, stream=True)))
        read_events(connection, 3)
        roomy.wait_for_running(n)
        generated = roomy.status.generation_tokens
    roomy.wait_until_idle(1.0)
    assert roomy.status.generation_tokens - generated < 4000


@both
@pytest.mark.parametrize("n", [1, 4])
def test_row_18_a_plain_request_given_up(roomy: PeerServer, path: str, n: int) -> None:
    """row 18: ggml-org/llama.cpp#11720 without a stream: nothing is written that could fail; it must be seen."""
    with connect(roomy) as connection:
        connection.sendall(raw_request(path, request_body(path, "~?", max_tokens=4000, n=n)))
        roomy.wait_for_running(n)
    roomy.wait_until_idle(1.0)


@pytest.mark.parametrize("stream", [False, True])
def test_row_18_given_up_during_prefill(roomy: PeerServer, stream: bool) -> None:
    """row 18: vllm-project/vllm#9428: the client goes while its long prompt is computed (slowly, as it is scored)."""
    fields: dict[str, Any] = {"echo": True, "logprobs": 0, "stream": stream, "max_tokens": 10}
    before = roomy.status
    with connect(roomy) as connection:
        connection.sendall(raw_request(COMPLETIONS, {"prompt": "~" + "x" * 4000, **fields}))
        roomy.wait_for_running(1)
        while roomy.status.iteration_tokens == before.iteration_tokens:
            time.sleep(0.005)
    roomy.wait_until_idle(1.0)
    assert roomy.status.iteration_tokens - before.iteration_tokens < 4000
    assert roomy.status.generation_tokens == before.generation_tokens


def test_row_18_a_batch_and_a_best_of_given_up(roomy: PeerServer) -> None:
    """row 18: ggml-org/llama.cpp#24496: every sequence of the request ends, whatever made it one."""
    for body, sequences in (
        ({"prompt": ["~?|", "~%|", "~zzzz|"], "n": 2}, 6),
        ({"prompt": "~?|", "n": 2, "best_of": 5}, 5),
    ):
        with connect(roomy) as connection:
            connection.sendall(raw_request(COMPLETIONS, {**body, "max_tokens": 3000, "ignore_eos": True}))
            roomy.wait_for_running(sequences)
        roomy.wait_until_idle(1.0)


@pytest.mark.parametrize("stream", [False, True])
def test_row_18_given_up_while_waiting(serve_peer: Any, stream: bool) -> None:
    """row 18: vllm-project/vllm#9428: a queued request of a client that went never runs."""
    narrow = serve_peer({}, max_num_seqs=1)
    body = request_body(CHAT, "~?", max_tokens=400, stream=True)
    with connect(narrow) as running:
        running.sendall(raw_request(CHAT, body))
        read_events(running, 3)
        with connect(narrow) as waiting:
            waiting.sendall(raw_request(CHAT, body | {"stream": stream}))
            _wait(lambda: narrow.status.waiting == 1)
        _wait(lambda: narrow.status.waiting == 0)
        assert narrow.status.running == 1
        read_events(running, 3)
    narrow.wait_until_idle(1.0)


def test_row_18_what_a_cancelled_request_computed_stays_right(roomy: PeerServer) -> None:
    """row 18: ggml-org/llama.cpp#24496: the same prompt afterwards, from what the cancelled one left in the cache."""
    body = request_body(COMPLETIONS, "~?left", seed=4, max_tokens=30)
    expected = roomy.post(COMPLETIONS, {**body, "cache_salt": "fresh"}).json()["choices"][0]["text"]
    with connect(roomy) as connection:
        connection.sendall(raw_request(COMPLETIONS, {**body, "stream": True}))
        read_events(connection, 3)
    roomy.wait_until_idle(1.0)
    assert roomy.post(COMPLETIONS, body).json()["choices"][0]["text"] == expected


def _wait(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_row_19_broken_pipes_break_nothing(roomy: PeerServer, caplog: pytest.LogCaptureFixture) -> None:
    """row 19: ml-explore/mlx-lm#677: a hundred sockets reset in mid-write: one log line each, and service goes on."""
    caplog.set_level(logging.INFO, "decoding_server.requests")
    body = request_body(COMPLETIONS, "?", max_tokens=4000, stream=True)
    for number in range(100):
        connection = connect(roomy)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # reset, not close
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(raw_request(ENDPOINTS[number % 2], _of(ENDPOINTS[number % 2], body)))
        read_events(connection, 1)
        connection.close()
    roomy.wait_until_idle(5.0)
    assert roomy.ask(COMPLETIONS, "fine").end == ("fine", "stop")

    def written() -> list[dict[str, Any]]:
        return [json.loads(record.message) for record in caplog.records if record.name == "decoding_server.requests"]

    for _ in range(100):  # a line is written behind the last byte, so a client may be quicker
        if len(written()) >= 101:
            break
        time.sleep(0.05)
    lines = written()
    assert len(lines) == 101
    assert sum(line["client_disconnected"] for line in lines) == 100
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def _of(path: str, body: dict[str, Any]) -> dict[str, Any]:
    return body if path == COMPLETIONS else request_body(CHAT, "?", max_tokens=4000, stream=True)


def test_row_19_half_a_request_breaks_nothing(roomy: PeerServer, caplog: pytest.LogCaptureFixture) -> None:
    """row 19: ml-explore/mlx-lm#677 while the client is still sending."""
    whole = raw_request(COMPLETIONS, request_body(COMPLETIONS, "?", stream=True))
    for length in range(1, len(whole), 5):
        with connect(roomy) as connection:
            connection.sendall(whole[:length])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    roomy.wait_until_idle(1.0)
    assert roomy.ask(COMPLETIONS, "fine").text == "fine"
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


class InBackground(threading.Thread):
    """Posts one request in a thread; `content` is the whole body of the answer."""

    def __init__(self, url: str, path: str, body: dict[str, Any]) -> None:
        super().__init__()
        self.url, self.path, self.body = url, path, body
        self.content, self.status, self.begun = b"", 0, threading.Event()
        self.start()

    def run(self) -> None:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        connection.request("POST", self.path, json.dumps(self.body))
        response = connection.getresponse()
        self.begun.set()
        self.status, self.content = response.status, response.read()
        connection.close()


def test_row_21_sigterm_lets_running_requests_finish() -> None:
    """row 21: vllm-project/vllm#24885: streams and plain requests end whole, new ones get 503, the exit code is 0."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(Path(__file__).with_name("peer_server.py")), "port=0", "shutdown_timeout=30"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        log = ""
        while " ready in " not in log:
            log += process.stderr.readline() or pytest.fail(log)
        address = re.search(r"listening on (http://\S+)", log)
        assert address is not None
        jobs = [
            (COMPLETIONS, request_body(COMPLETIONS, "~?", max_tokens=100, stream=True)),
            (CHAT, request_body(CHAT, "~?", max_tokens=80, stream=True, n=2)),
            (COMPLETIONS, request_body(COMPLETIONS, "~?", max_tokens=90)),
            (CHAT, request_body(CHAT, "~?", max_tokens=70, n=2)),
        ]
        running = [InBackground(address[1], path, body) for path, body in jobs]
        with httpx.Client(base_url=address[1], timeout=10) as client:
            for reader in running[:2]:
                assert reader.begun.wait(10)
            _wait(lambda: client.get("/health").json()["running"] == 6)
            process.send_signal(signal.SIGTERM)
            _wait(lambda: client.get("/health").status_code == 503)
            for path in (*ENDPOINTS, "/tokenize"):
                refused = client.post(path, json=request_body(path, "a"))
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "unavailable"
                assert refused.headers["retry-after"]
        for reader, (_, body) in zip(running, jobs, strict=True):
            reader.join(30)
            assert reader.status == 200
            reply = read_reply(reader.content.decode(), bool(body.get("stream")))
            assert {len(text) for text in reply.texts} == {body["max_tokens"]}
            assert set(reply.finish_reasons) == {"length"}
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
