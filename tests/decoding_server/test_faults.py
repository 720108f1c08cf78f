"""What goes wrong around the server: it is killed, its engine ends, clients stop reading, files run out, clocks jump.

Full disks are in tests/models/test_full_disk.py, malformed HTTP in wire/ and tests/peers/test_fuzz_bytes.py."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from live_server import live_server

from decoding_server import server as server_module

ROOT = Path(__file__).parents[2]
QUICK = {"prompt": "hello|"}
SLOW = {"prompt": "~|", "max_tokens": 450, "stream": True}  # nine seconds


def until(condition, seconds=40.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path):
    """Starts the scripted server as a process; gives it, its address and its log."""
    processes = []

    def start_one(*flags, files=None, port=0):
        log = tmp_path / f"log-{len(processes)}"

        def limit():
            if files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

        with log.open("w") as sink:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("scripted_server.py")), f"port={port}", *flags],
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                stderr=sink,
                preexec_fn=limit,
            )
        processes.append(process)
        until(lambda: "ready in " in log.read_text() or process.poll() is not None)
        return process, re.search(r"listening on (http://[\w.:]+)", log.read_text())[1], log

    yield start_one
    for process in processes:
        process.kill()
        process.wait()


def ask(url):
    return httpx.post(url + "/v1/completions", json=QUICK, timeout=30)


# The process, and its engine.


def test_a_killed_server_cuts_its_streams_and_can_be_started_again_at_once(start):
    process, url, _ = start()
    with httpx.stream("POST", url + "/v1/completions", json=SLOW, timeout=30) as response:
        pieces = response.iter_text()
        seen = [next(pieces)]
        process.kill()
        with pytest.raises(httpx.TransportError):  # never an end that looks like one
            seen.extend(pieces)
    seen = "".join(seen)
    assert "[DONE]" not in seen
    assert '"finish_reason":"' not in seen
    with pytest.raises(httpx.ConnectError):
        ask(url)
    process.wait()
    again = start(port=url.rsplit(":", 1)[1])[1]
    assert again == url
    assert ask(url).json()["choices"][0]["text"] == "hello"


def test_when_the_engine_ends_running_requests_are_told_and_health_says_so(start):
    process, url, _ = start()
    with httpx.stream("POST", url + "/v1/completions", json=SLOW, timeout=30) as response:
        pieces = response.iter_text()
        next(pieces)
        killer = httpx.post(url + "/v1/completions", json={"prompt": "#|"}, timeout=30)
        text = "".join(pieces)
    assert (killer.status_code, killer.json()["error"]["code"]) == (503, "unavailable")
    assert '"code":"unavailable"' in text
    assert text.endswith("data: [DONE]\n\n")
    health = httpx.get(url + "/health")
    assert (health.status_code, health.json()["status"]) == (503, "dead")
    assert ask(url).status_code == 503
    assert 'state="dead"} 1.0' in httpx.get(url + "/metrics").text
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_with_exit_when_dead_the_process_ends_for_whoever_starts_it_again(start):
    process, url, log = start("exit_when_dead=true")
    with httpx.stream("POST", url + "/v1/completions", json=SLOW, timeout=30) as response:
        pieces = response.iter_text()
        next(pieces)
        killer = httpx.post(url + "/v1/completions", json={"prompt": "#|"}, timeout=30)
        text = "".join(pieces)
    assert killer.status_code == 503
    assert '"code":"unavailable"' in text
    assert process.wait(30) == server_module.EXIT_DEAD
    assert "the engine is dead (its thread has ended)" in log.read_text()


def test_a_live_engine_is_no_reason_to_exit(start):
    process, url, _ = start("exit_when_dead=true")
    assert ask(url).status_code == 200
    time.sleep(2 * server_module.DEAD_SECONDS)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_with_json_every_line_of_the_log_is_json(start):
    process, url, log = start("log_format=json", "log_level=debug", "sandbox=off")
    assert ask(url).status_code == 200
    assert httpx.post(url + "/v1/completions", json={"prompt": "!|"}, timeout=30).status_code == 500
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    messages = [line["message"] for line in lines if "message" in line]
    assert any(message.startswith("configuration\n") for message in messages)
    assert "drained" in messages
    assert [line["status"] for line in lines if "status" in line] == [200, 500]
    assert all({"time", "level", "logger"} <= set(line) for line in lines if "message" in line)


# Clients that don't read.

READER = """
import socket, sys, time
one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
one.connect(("127.0.0.1", int(sys.argv[1])))
body = sys.argv[2].encode()
one.sendall(b"POST /v1/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
one.recv(100)
print("reading", flush=True)
while one.recv(100):
    time.sleep(0.01)
"""
LONG = {"prompt": "?|", "max_tokens": 15_000, "stream": True}  # some 3 MB


def small_buffers():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listener


def metric(server, name):
    found = re.findall(rf"^decoding:{name}(?:{{.*}})? (\S+)$", server.get("/metrics").text, re.MULTILINE)
    return sum(map(float, found))


def aborted(server):
    return (
        re.search(r'request_success_total{finished_reason="abort".*?} (\S+)', server.get("/metrics").text)[1] != "0.0"
    )


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system can't give up on unread data")
def test_a_client_that_is_stopped_in_mid_stream_harms_nobody_and_is_given_up(monkeypatch):
    monkeypatch.setattr(server_module, "UNREAD_SECONDS", 3)
    listener = small_buffers()
    server_module.give_up_on_the_lost(listener)
    with live_server({}, listener=listener, max_model_len=16_384, num_slots=20_000) as server:
        port = server.url.rsplit(":", 1)[1]
        client = subprocess.Popen([sys.executable, "-c", READER, port, json.dumps(LONG)], stdout=subprocess.PIPE)
        try:
            assert client.stdout.readline() == b"reading\n"
            client.send_signal(signal.SIGSTOP)
            for _ in range(5):
                assert ask(server.url).json()["choices"][0]["text"] == "hello"
            until(lambda: aborted(server))
            until(lambda: server.get("/health").json()["running"] == 0)
            assert ask(server.url).status_code == 200
        finally:
            client.kill()
            client.wait()
            client.stdout.close()


def test_a_slow_reader_gets_everything_and_is_not_given_up(monkeypatch):
    """Longer than the limit, since it reads on. What waits for it is held once: 64 KiB in the socket's buffer, and the
    tokens that the request may have."""
    monkeypatch.setattr(server_module, "UNREAD_SECONDS", 2)
    listener = small_buffers()
    server_module.give_up_on_the_lost(listener)
    with live_server({}, listener=listener, max_model_len=16_384, num_slots=20_000) as server:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.settimeout(30)
            one.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
            body = json.dumps(LONG | {"max_tokens": 2000}).encode()
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            one.sendall(head % len(body) + body)
            data = b""
            while part := one.recv(4096):
                data += part
                if len(data) < 300_000:
                    time.sleep(0.05)
        text = data.decode()
        assert text.count('"text":"') >= 2000
        assert '"finish_reason":"length"' in text
        assert "data: [DONE]" in text


# Files and connections.


def opened(url, count):
    """Connections that say nothing."""
    host, port = url.removeprefix("http://").split(":")
    made = []
    for _ in range(count):
        one = socket.socket()
        one.settimeout(10)
        with contextlib.suppress(OSError):
            one.connect((host, int(port)))
        made.append(one)
    return made


def test_when_files_run_out_who_is_connected_is_served_and_it_recovers(start):
    process, url, log = start(files=96)
    with httpx.Client(base_url=url, timeout=30) as early:
        assert early.post("/v1/completions", json=QUICK).status_code == 200
        idle = opened(url, 150)
        try:
            for _ in range(5):
                assert early.post("/v1/completions", json=QUICK).json()["choices"][0]["text"] == "hello"
            assert psutil.Process(process.pid).num_fds() <= 96
        finally:
            for one in idle:
                one.close()

        def answers():
            try:
                return ask(url).status_code == 200
            except httpx.TransportError:
                return False

        until(answers)
    assert len(log.read_text().splitlines()) < 500  # no flood of the same line
    assert process.poll() is None


def test_ten_thousand_idle_connections(start):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 11_000:
        pytest.skip(f"this process may open {hard} files only")
    process, url, _ = start("sandbox=off")  # it raises its own limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 11_000), hard))
    try:
        idle = opened(url, 10_000)
        try:
            until(lambda: psutil.Process(process.pid).num_fds() > 10_000)
            assert ask(url).json()["choices"][0]["text"] == "hello"
            assert httpx.get(url + "/health").status_code == 200
        finally:
            for one in idle:
                one.close()
        until(lambda: psutil.Process(process.pid).num_fds() < 200)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ask(url).status_code == 200


# Clocks.


def test_clocks_that_jump_change_no_limit_and_no_measured_time(serve, tmp_path, monkeypatch, caplog):
    """The wall clock goes a day forth and back at every look; all that is measured uses the clock that never jumps."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(json.dumps([{"name": "a", "key": "k", "requests_per_minute": 4}]))
    real, real_ns, days = time.time, time.time_ns, [0]

    def jumping():
        days[0] = (days[0] + 1) % 2
        return real() + 86_400 * (days[0] * 2 - 1)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(1e9 * (jumping() - real())))
    server = serve({"api_key_file": str(keys)})
    header = {"authorization": "Bearer k"}
    body = {"prompt": "~|", "max_tokens": 450, "decoding": {"budget": {"seconds": 0.5}}}
    for stream in (False, True):
        answer = server.post("/v1/completions", body | {"stream": stream}, headers=header)
        assert "budget:seconds" in answer.text
        assert '"z' in answer.text  # it did not end at once
    usage = server.post("/v1/completions", QUICK, headers=header).json()["usage"]["decoding"]
    assert 0 <= usage["seconds"] < 60
    assert server.post("/v1/completions", QUICK, headers=header).status_code == 200
    assert server.post("/v1/completions", QUICK, headers=header).status_code == 429
    text = server.get("/metrics", headers=header).text
    for name in ("e2e_request_latency", "time_to_first_token", "request_queue_time", "request_decode_time"):
        assert 0 <= float(re.search(rf"decoding:{name}_seconds_sum{{.*?}} (\S+)", text)[1]) < 60
