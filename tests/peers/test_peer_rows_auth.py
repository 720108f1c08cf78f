"""Row 25: with a key set, nothing is open but what is documented."""

import http.client
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from peer_server import CHAT, COMPLETIONS, PeerServer, error_of, peer_server, request_body

KEY, OTHER_KEY = "sk-first-key", "sk-second-key"
OPEN = {"/health", "/ping", "/version"}
ALSO = ["/docs", "/openapi.json", "/none/such", "/v1", "/v1/models/scripted", "/metrics", "/docs/oauth2-redirect"]
"""Beside the OpenAPI list: pages, and what does not exist, which is nobody's business either."""


@pytest.fixture(scope="module")
def guarded() -> Iterator[PeerServer]:
    with peer_server({"api_key": [KEY, OTHER_KEY]}) as server:
        yield server


def routes(server: PeerServer) -> list[tuple[str, str]]:
    """(method, path) of every route of the OpenAPI document."""
    document = server.http.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
    return [
        (method.upper(), path.replace("{model}", "scripted"))
        for path, operations in document["paths"].items()
        for method in operations
    ]


def refused(server: PeerServer, method: str, path: str, headers: Any) -> None:
    response = server.http.request(method, path, headers=headers, json={} if method == "POST" else None)
    error = error_of(response, 401)
    assert error["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]
    assert KEY not in response.text


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
def test_row_25_every_route_needs_the_key(guarded: PeerServer, headers: dict[str, str]) -> None:
    """row 25: vllm-project/vllm#18892, #58144: 401 everywhere but the documented few"""
    listed = routes(guarded)
    assert {path for _, path in listed} > OPEN | {CHAT, COMPLETIONS, "/tokenize", "/detokenize", "/v1/models"}
    for method, path in [*listed, *(("GET", path) for path in ALSO)]:
        if path not in OPEN:
            refused(guarded, method, path, headers)
    for path in OPEN:
        assert guarded.http.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"])
def test_row_25_no_method_is_a_way_around(guarded: PeerServer, method: str) -> None:
    """row 25: vllm-project/vllm#58144"""
    for path in (CHAT, "/v1/models", "/metrics", "/docs"):
        assert guarded.http.request(method, path).status_code == 401


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer  {}"])
def test_row_25_the_forms_of_a_right_key(guarded: PeerServer, key: str, form: str) -> None:
    """row 25: vllm-project/vllm#18892: each of several keys, in the spellings that HTTP allows."""
    headers = {"authorization": form.format(key)}
    assert guarded.http.get("/v1/models", headers=headers).status_code == 200
    body = request_body(CHAT, "hello")
    assert guarded.http.post(CHAT, headers=headers, json=body).json()["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer{KEY}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {KEY.upper()}"},
        {"authorization": f"Bearer {KEY},{OTHER_KEY}"},
        {"authorization": f"Bearer {KEY} {OTHER_KEY}"},
        {"authorization": f"Bearer '{KEY}'"},
        {"authorization": b"Bearer " + KEY.encode() + b"\xff"},
        {"authorization": b"Bearer \xff\xfe"},
        {"authorization": "Bearer null"},
        {"authorization": "Bearer " + "x" * 10_000},
        {"x-api-key": KEY},
        {"api-key": KEY},
        {"proxy-authorization": f"Bearer {KEY}"},
        {"cookie": f"authorization=Bearer {KEY}"},
        {"x-original-url": "/health"},
        {"x-forwarded-for": "127.0.0.1"},
    ],
)
def test_row_25_the_forms_of_a_wrong_key(guarded: PeerServer, headers: dict[str, Any]) -> None:
    """row 25: vllm-project/vllm#18892"""
    refused(guarded, "GET", "/v1/models", headers)
    refused(guarded, "POST", CHAT, headers)


def test_row_25_a_key_in_the_address_or_the_body_is_none(guarded: PeerServer) -> None:
    """row 25: vllm-project/vllm#58144: addresses end up in logs."""
    for query in (f"?api_key={KEY}", f"?key={KEY}", f"?authorization=Bearer%20{KEY}"):
        refused(guarded, "GET", f"/v1/models{query}", {})
    body = {**request_body(CHAT, "hello"), "api_key": KEY}
    error_of(guarded.http.post(CHAT, json=body), 401)


@pytest.mark.parametrize(
    "path",
    [
        "/health/../v1/models",
        "/health/%2e%2e/v1/models",
        "//v1/models",
        "/v1/./models",
        "/v1//models",
        "/V1/models",
        "/v1/models/../../health",
        "/health/",
        "/health;/v1/models",
        "/health%2f..%2fv1/models",
        "/health%00",
        "/v1/models?/health",
        "/v1/models#/health",
        "/ping/x",
        "http://x/v1/models",
        "*",
    ],
)
def test_row_25_no_spelling_of_a_path_is_a_way_around(guarded: PeerServer, path: str) -> None:
    """row 25: vllm-project/vllm#58144: sent as they are, without a client's tidying."""
    address = urlsplit(guarded.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    connection.putrequest("GET", path)
    connection.endheaders()
    response = connection.getresponse()
    content = response.read()
    connection.close()
    assert response.status in (400, 401, 404), content
    assert b'"data"' not in content


def test_row_25_two_headers_are_not_two_tries(guarded: PeerServer) -> None:
    """row 25: vllm-project/vllm#18892: with several authorization headers one answer, never a crash."""
    for first, second in (("Bearer wrong", "Bearer wronger"), (f"Basic {KEY}", "Bearer wrong")):
        headers = [("authorization", first), ("authorization", second)]
        refused(guarded, "GET", "/v1/models", headers)


def test_row_25_a_body_is_not_read_without_the_key(guarded: PeerServer) -> None:
    """row 25: vllm-project/vllm#58144: neither its faults nor its size matter to a stranger."""
    before = guarded.status.prompt_tokens
    for content in (b"{", b"\xff" * 100, b"[" * 100_000, b" " * 9_000_000, b'{"prompt": "a|"}'):
        error_of(guarded.http.post(COMPLETIONS, content=content), 401)
    assert guarded.status.prompt_tokens == before


@pytest.mark.parametrize(("metrics", "status"), [("open", 200), ("guarded", 401), ("off", 401)])
def test_row_25_metrics_are_guarded_by_choice(serve_peer: Any, metrics: str, status: int) -> None:
    """row 25: vllm-project/vllm#58144: the one route whose guard is the operator's choice."""
    server = serve_peer({"api_key": [KEY], "metrics": metrics})
    assert server.http.get("/metrics").status_code == status
    with_key = server.http.get("/metrics", headers={"authorization": f"Bearer {KEY}"})
    assert with_key.status_code == (404 if metrics == "off" else 200)
    assert server.http.get("/v1/models").status_code == 401


def test_row_25_without_a_key_all_is_open(peer: PeerServer) -> None:
    """row 25: vllm-project/vllm#18892: a server without keys asks for none, and minds none."""
    assert peer.http.get("/v1/models").status_code == 200
    assert peer.http.get("/v1/models", headers={"authorization": "Bearer anything"}).status_code == 200
