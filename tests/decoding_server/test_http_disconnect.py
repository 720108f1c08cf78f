"""A client that goes away frees everything its request held, and harms nobody."""

import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest


def request(body):
    content = json.dumps(body).encode()
    return b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content)


def wait_until_idle(server, seconds=1.0):
    """The number of sequences still there after at most that many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = server.runtime.status()
        if status.running + status.waiting == 0:
            return 0
        time.sleep(0.01)
    return status.running + status.waiting


def wait_until_busy(server, sequences):
    deadline = time.monotonic() + 10
    while server.runtime.status().running < sequences:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("n", [1, 4])
def test_stream_closed_by_the_client(server, n):
    body = {"prompt": "~|", "max_tokens": 400, "n": n, "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=30) as response:
        lines = response.iter_lines()
        for _ in range(3):
            next(lines)
        wait_until_busy(server, n)
    assert wait_until_idle(server) == 0


@pytest.mark.parametrize("n", [1, 4])
def test_plain_request_given_up(server, n):
    address = urlsplit(server.url)
    body = {"prompt": "~|", "max_tokens": 400, "n": n}
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(request(body))
        wait_until_busy(server, n)
    assert wait_until_idle(server) == 0


def test_many_broken_connections_leave_a_working_server(server, client, caplog):
    address = urlsplit(server.url)
    body = {"prompt": "?|", "max_tokens": 50, "stream": True}
    for number in range(100):
        with socket.create_connection((address.hostname, address.port)) as connection:
            whole = request(body)
            connection.sendall(whole[: len(whole) if number % 4 else number + 20])  # some leave in mid-request
            if number % 2:
                connection.recv(10)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # reset, not close
    assert wait_until_idle(server, 5) == 0
    assert client.completions.create(model="scripted", prompt="fine|").choices[0].text == "fine"
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
