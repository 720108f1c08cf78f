"""What is no HTTP, and what offers another protocol, over raw sockets and with both parsers."""

import contextlib
import json
import socket

import pytest
from live_server import live_server

from decoding_server.wire import protocol_class
from decoding_server.wire.on_h11 import PlainProtocol
from decoding_server.wire.on_httptools import HttptoolsProtocol
from decoding_server.wire.refusal import MAX_HEAD_BYTES

ASK = json.dumps({"prompt": "hello|"}).encode()
SLOW = json.dumps({"prompt": "~|", "max_tokens": 10, "stream": True}).encode()
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module", params=[PlainProtocol, HttptoolsProtocol])
def server(request):
    with live_server({}, http=request.param) as live:
        yield live


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def read_all(connection):
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def exchange(server, *parts):
    """All that the server sends until it closes the connection. It may close before everything was sent."""
    with connect(server) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break
        return read_all(connection)


def response(data):
    """(status, headers, body) of the only response in `data`."""
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    version, status, _ = status_line.split(" ", 2)
    assert version == "HTTP/1.1"
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert int(headers["content-length"]) == len(body)
    return int(status), headers, body


def check_refusal(data, status, code):
    got, headers, body = response(data)
    assert got == status
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"].startswith("req_")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


def test_the_fast_parser_is_chosen():
    assert protocol_class() is HttptoolsProtocol


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello?\r\n\r\n",
        b"GET /health SMTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # how TLS begins
        b"GET /health HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET /he\x00alth HTTP/1.1\r\nHost: x\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: many\r\n\r\n" + ASK,
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + ASK,
    ],
)
def test_what_is_no_http_gets_the_error_body(server, request_bytes):
    check_refusal(exchange(server, request_bytes), 400, "invalid_http")
    assert server.get("/health").status_code == 200


def test_a_broken_chunk_of_a_body_ends_its_request(server):
    data = exchange(server, POST + b"Transfer-Encoding: chunked\r\n\r\n", b'5\r\n{"pro\r\nzz\r\n')
    check_refusal(data, 400, "invalid_http")
    assert server.runtime.status().running == 0


def test_a_head_has_a_limit(server):
    start = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    fillers, rest = divmod(MAX_HEAD_BYTES + 100 - len(start), 1012)
    head = start + b"x-filler: %s\r\n" % (b"a" * 1000) * fillers + b"x-rest: %s\r\nx-end: 1\r\n" % (b"a" * rest)
    check_refusal(exchange(server, head), 431, "headers_too_large")


@pytest.mark.parametrize("start", [b"GET /health HTTP/1.1\r\nHost: x\r\nx-endless: ", b"GET /"])
def test_an_endless_head_is_cut_off(server, start):
    """It would fill the memory. What is still under way when the server closes may cost the client the answer."""
    with connect(server) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(start)
        for _ in range(64):
            connection.sendall(b"a" * MAX_HEAD_BYTES)
        assert connection.recv(1)  # raises TimeoutError where the server still wants more
    assert server.get("/health").status_code == 200


def test_a_connect_is_refused(server):
    """Nobody is a proxy here. h11 takes the target for a path."""
    data = exchange(server, b"CONNECT other.example:443 HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n")
    status, _, body = response(data)
    assert (status, json.loads(body)["error"]["code"]) in {(400, "invalid_http"), (404, "unknown_url")}


def test_a_head_below_the_limit_passes_and_bodies_do_not_count(server):
    headers = {f"x-filler-{i}": "a" * 1000 for i in range(40)}
    body = {"prompt": "hello|", "user": "u" * 200_000}
    assert server.post("/v1/completions", body, headers=headers).json()["choices"][0]["text"] == "hello"


def test_garbage_after_a_request_does_not_get_into_its_stream(server):
    request = POST + b"Content-Length: %d\r\n\r\n" % len(SLOW) + SLOW
    data = exchange(server, request, b"\x00garbage\r\n\r\n")
    assert data.count(b"HTTP/1.1 200 OK") == 1
    stream, end, rest = data.partition(b"data: [DONE]\n\n")
    assert end
    assert stream.count(b'"text": "z"') + stream.count(b'"text":"z"') == 10
    assert b"invalid_http" not in stream
    assert rest.count(b"HTTP/1.1") <= 1  # h11 reads on after the answer, and refuses what it finds


def upgrade(body, offer=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"):
    return POST + offer + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_an_offer_of_http2_is_declined(server):
    """What Java's HttpClient and `curl --http2` send, whole and in pieces."""
    request = upgrade(ASK)
    for cut in (len(request), len(POST) + 5, len(request) - 10):
        with connect(server) as connection:
            connection.sendall(request[:cut])
            if cut < len(request):
                assert server.get("/health").status_code == 200  # so that the pieces arrive one by one
                connection.sendall(request[cut:])
            data = b""
            while b'"usage"' not in data:
                part = connection.recv(65536)
                assert part
                data += part
            assert data.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b'"text":"hello"' in data.replace(b": ", b":")
            # The connection goes on with HTTP/1.1.
            connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b'"version"' in read_all(connection)


def test_an_offer_with_a_chunked_body_and_a_close(server):
    offer = b"Connection: close, Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = exchange(server, POST + offer, b"%x\r\n%s\r\n0\r\n\r\n" % (len(ASK), ASK))  # closes, as asked
    status, _, body = response(data)
    assert (status, json.loads(body)["choices"][0]["text"]) == (200, "hello")


def test_many_offers_at_once(server):
    get = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    data = exchange(server, get * 50 + b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert data.count(b"HTTP/1.1 200 OK") == 51


def test_head_has_the_headers_of_get(server):
    with connect(server) as connection:
        connection.sendall(b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: application/json" in head.lower()
    assert body == b""
