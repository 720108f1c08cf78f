"""Bytes that are no proper body, broken framing, and odd text: an answer in time, in the one envelope."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from fuzzing import NEEDED, ODD_TEXT, TIMEOUT, check, kinds, path_of
from peer_server import PeerServer
from pydantic import BaseModel

DEEP = 100_000
ODD_BODIES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda good: b"",
    "white space": lambda good: b" \n\t ",
    "cut in half": lambda good: good[: len(good) // 2],
    "cut by one": lambda good: good[:-1],
    "twice": lambda good: good * 2,
    "something after it": lambda good: good + b"x",
    "byte order mark": lambda good: b"\xef\xbb\xbf" + good,
    "utf-16": lambda good: good.decode().encode("utf-16"),
    "utf-32": lambda good: good.decode().encode("utf-32-le"),
    "latin-1": lambda good: good[:-1] + b', "x": "\xe9"}',
    "overlong nul": lambda good: good[:-1] + b', "x": "\xc0\x80"}',
    "surrogate bytes": lambda good: good[:-1] + b', "x": "\xed\xa0\x80"}',
    "raw nul": lambda good: good[:-1] + b', "x": "\x00"}',
    "raw control": lambda good: good[:-1] + b', "x": "\x1b[0m\n"}',
    "deep lists": lambda good: good[:-1] + b', "x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": lambda good: good[:-1] + b', "x": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "unclosed": lambda good: b'{"a":' * DEEP,
    "huge integer": lambda good: good[:-1] + b', "x": ' + b"9" * 100_000 + b"}",
    "huge exponent": lambda good: good[:-1] + b', "x": 1e99999}',
    "huge negative exponent": lambda good: good[:-1] + b', "x": 1e-99999}',
    "not a number": lambda good: good[:-1] + b', "x": NaN}',
    "infinity": lambda good: good[:-1] + b', "x": -Infinity}',
    "hexadecimal": lambda good: good[:-1] + b', "x": 0x10}',
    "trailing comma": lambda good: good[:-1] + b",}",
    "comment": lambda good: good[:-1] + b"/* */}",
    "single quotes": lambda good: good.replace(b'"', b"'"),
    "a list": lambda good: b"[" + good + b"]",
    "a string": lambda good: json.dumps(good.decode()).encode(),
    "a number": lambda good: b"1",
    "null": lambda good: b"null",
    "form": lambda good: b"prompt=a&max_tokens=1",
    "multipart": lambda good: b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n',
    "half a pair as a key": lambda good: good[:-1] + b', "\\udc00": 1}',
    "many keys": lambda good: good[:-1] + b"".join(b', "k%d": 1' % i for i in range(20_000)) + b"}",
    "long key": lambda good: good[:-1] + b', "' + b"k" * 500_000 + b'": 1}',
}


@kinds
@pytest.mark.parametrize("name", ODD_BODIES)
def test_odd_bytes(fuzzed: PeerServer, kind: type[BaseModel], name: str) -> None:
    good = json.dumps(NEEDED[kind.__name__]).encode()
    response = fuzzed.http.post(path_of(kind, fuzzed), content=ODD_BODIES[name](good), timeout=TIMEOUT)
    status = check(response)
    assert (status == 200) == (name in ("huge negative exponent", "many keys", "long key"))
    assert len(response.content) < 10_000


@kinds
def test_of_duplicate_keys_one_counts(fuzzed: PeerServer, kind: type[BaseModel]) -> None:
    """As JSON readers do: the last one. Never both, never a crash."""
    path, good = path_of(kind, fuzzed), json.dumps(NEEDED[kind.__name__])
    for key in NEEDED[kind.__name__]:
        body = good[:-1] + f', "{key}": {{"wrong": 1}}}}'
        assert check(fuzzed.http.post(path, content=body.encode(), timeout=TIMEOUT)) == 400
        body = f'{{"{key}": {{"wrong": 1}}, {good[1:]}'
        assert check(fuzzed.http.post(path, content=body.encode(), timeout=TIMEOUT)) == 200


@kinds
@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json; charset=utf-16",
        "\xff",
        "application/json, application/json",
        "a" * 5000,
    ],
)
def test_the_content_type_changes_nothing(fuzzed: PeerServer, kind: type[BaseModel], content_type: str | None) -> None:
    """The body is JSON whatever it is called, as with OpenAI's own clients' proxies that drop the header."""
    headers = [] if content_type is None else [(b"content-type", content_type.encode("latin-1"))]
    content = json.dumps(NEEDED[kind.__name__]).encode()
    response = fuzzed.http.post(path_of(kind, fuzzed), content=content, headers=headers, timeout=TIMEOUT)
    assert check(response) == 200


@kinds
def test_a_body_in_pieces(fuzzed: PeerServer, kind: type[BaseModel]) -> None:
    """Chunked, byte by byte, across the borders of characters."""
    content = json.dumps({**NEEDED[kind.__name__], "user": "\N{GRINNING FACE}"}, ensure_ascii=False).encode()

    def pieces() -> Iterator[bytes]:
        for i in range(len(content)):
            yield content[i : i + 1]

    assert check(fuzzed.http.post(path_of(kind, fuzzed), content=pieces(), timeout=TIMEOUT)) == 200


def exchange(server: PeerServer, request: bytes) -> bytes:
    """What comes back for these bytes after which the client sends no more."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port or 0), timeout=TIMEOUT) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@kinds
@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 9999\r\n\r\n%b",
        b"content-length: 3\r\n\r\n%b",
        b"content-length: -1\r\n\r\n%b",
        b"content-length: x\r\n\r\n%b",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\n%b",
        b"transfer-encoding: chunked\r\n\r\n5\r\n%b",
        b"transfer-encoding: chunked\r\n\r\nzz\r\n%b",
        b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n%b",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n%b",
        b"\r\n%b",
        b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n{}%b",
    ],
)
def test_broken_framing(fuzzed: PeerServer, kind: type[BaseModel], framing: bytes) -> None:
    """A body that ends too early, too late or never: 4xx or a closed connection, in time."""
    content = json.dumps(NEEDED[kind.__name__]).encode()
    head = b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" % path_of(kind, fuzzed).encode()
    answer = exchange(fuzzed, head + framing % content)
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", answer)
    assert all(status in (b"100", b"200", b"400", b"413") for status in statuses), answer


ODD_PROMPTS = [text for text in ODD_TEXT if not re.search("[\ud800-\udfff]", text)]


@pytest.mark.parametrize("text", ODD_PROMPTS)
@pytest.mark.parametrize("stream", [False, True])
def test_odd_text_comes_back_as_it_was(fuzzed: PeerServer, text: str, stream: bool) -> None:
    """Echoed, streamed or not: no character is lost, and lines stay lines."""
    body = {"prompt": text[:200] + "?", "echo": True, "max_tokens": 1, "stream": stream, "stop": ["\u2028"]}
    reply = fuzzed.complete(body.pop("prompt"), **body)
    assert reply.text.startswith(text[:200] + "?")
