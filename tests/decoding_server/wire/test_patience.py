"""Clients that send slowly or not at all, over raw sockets and with both parsers."""

import json
import socket
import time

import pytest
from live_server import live_server

from decoding_server.wire.on_h11 import PlainProtocol
from decoding_server.wire.on_httptools import HttptoolsProtocol

SECONDS = 1.0
ASK = json.dumps({"prompt": "hello|"}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(ASK)


@pytest.fixture(scope="module", params=[PlainProtocol, HttptoolsProtocol])
def server(request):
    impatient = type("Impatient", (request.param,), {"head_seconds": SECONDS, "body_seconds": SECONDS})
    with live_server({}, http=impatient) as live:
        yield live


@pytest.fixture
def connection(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as one:
        yield one


def read_all(connection):
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def check_408(data):
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "request_timeout"


def test_a_connection_without_a_byte_is_closed(connection):
    assert read_all(connection) == b""


def test_half_a_head(connection):
    connection.sendall(HEAD[:40])
    check_408(read_all(connection))


def test_a_head_that_drips_gets_no_more_time(connection):
    """One byte at a time would keep a connection open for hours."""
    connection.settimeout(0.2)
    data = b""
    for byte in HEAD * 2:
        try:
            connection.sendall(bytes([byte]))
            data = connection.recv(65536)
        except TimeoutError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            pass
        break
    check_408(data)


def test_half_a_body_ends_its_request(server, connection):
    connection.sendall(HEAD + ASK[:5])
    check_408(read_all(connection))
    assert server.runtime.status().running == 0


def test_a_body_that_goes_on_has_all_the_time_it_needs(connection):
    connection.sendall(HEAD)
    for start in range(0, len(ASK), 4):
        connection.sendall(ASK[start : start + 4])
        time.sleep(0.4)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_the_next_request_of_a_connection_has_the_same_limit(connection):
    connection.sendall(HEAD + ASK)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    connection.sendall(HEAD[:40])
    check_408(read_all(connection))


def test_the_answer_may_take_longer(server):
    slow = {"prompt": "~|", "max_tokens": 100}  # 2 s
    assert server.post("/v1/completions", slow).json()["choices"][0]["text"] == "z" * 100
    assert server.post("/v1/completions", slow | {"stream": True}).text.endswith("data: [DONE]\n\n")
