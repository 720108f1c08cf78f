"""Who may call what: keys and key files, guarded routes, other origins' pages, and /metrics."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from scripted_server import make_runtime

from decoding_server.api_keys import configured_keys
from decoding_server.app import create_app
from decoding_server.config import ConfigError, load_config
from decoding_server.gate import Gate

ROOT = Path(__file__).parents[2]
OPEN = {"/health", "/ping", "/version"}
PAGE, OTHER_PAGE = "http://page.example", "http://other.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}


def api_keys(config):
    return [key.key.get_secret_value() for key in configured_keys(config)]


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def key_file(tmp_path):
    def write(content):
        path = tmp_path / "keys"
        path.write_bytes(content)
        return str(path)

    return write


@pytest.fixture(scope="module")
def keyed():
    """A server with two keys."""
    from live_server import live_server

    with live_server({"api_key": ["first", "second"]}) as live:
        yield live


@pytest.fixture(scope="module")
def browsed():
    """A server with a key, which one origin's pages may call."""
    from live_server import live_server

    with live_server({"api_key": ["first"], "cors_origin": [PAGE]}) as live:
        yield live


# Keys and where they come from.


def test_keys_come_from_flags_and_file_together(key_file):
    path = key_file(b"# for the team\n\n  from-file  \r\nwith space\n\t\n#comment\nlast")
    config = load_config({"api_key": ["one", "two"], "api_key_file": path}, {}).config
    assert api_keys(config) == ["one", "two", "from-file", "with space", "last"]


def test_the_environment_can_name_the_file(key_file):
    config = load_config({}, {"DECODING_SERVER_API_KEY_FILE": key_file(b"secret\n")}).config
    assert api_keys(config) == ["secret"]


def test_each_key_opens_and_nothing_else_does(serve, key_file):
    server = serve({"api_key": ["flag"], "api_key_file": key_file(b"# note\n\nfile-1\nfile-2\n")})
    for key in ("flag", "file-1", "file-2"):
        assert server.get("/v1/models", headers=bearer(key)).status_code == 200
    for key in (
        "# note",
        "note",
        "file",
        "file-12",
        "FLAG",
        "flag,file-1",
        "flag file-1",
        b"flag\xe9",
        b"flag\xc3\xa9",
    ):
        value = b"Bearer " + (key if isinstance(key, bytes) else key.encode())
        assert server.get("/v1/models", headers={"authorization": value}).status_code == 401, key


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([("authorization", "Bearer first")], 200),
        ([("authorization", "bearer first")], 200),  # schemes have no case (RFC 9110, 11.1)
        ([("authorization", "BEARER   first")], 200),
        ([("authorization", "Bearer")], 401),
        ([("authorization", "first")], 401),
        ([("authorization", "Basic first")], 401),
        ([("authorization", "Basic Zmlyc3Q6")], 401),
        ([("authorization", "Bearer first second")], 401),
        ([("authorization", "Bearer first"), ("authorization", "Bearer wrong")], 401),
        ([("api-key", "first")], 401),
        ([("x-api-key", "first")], 401),
        ([("cookie", "authorization=Bearer first")], 401),
    ],
)
def test_forms_of_the_header(keyed, headers, status):
    response = keyed.get("/v1/models", headers=headers)
    assert response.status_code == status
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"


def test_a_key_in_the_address_is_no_key(keyed):
    assert keyed.get("/v1/models?api_key=first&authorization=Bearer%20first").status_code == 401


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# only a comment\n", b" \t\r\n"])
def test_a_file_without_a_key_is_refused(key_file, content):
    config = load_config({"api_key_file": key_file(content)}, {}).config
    with pytest.raises(ConfigError, match="it holds no key"):
        api_keys(config)
    with pytest.raises(ConfigError, match="it holds no key"):  # keys of flags don't make up for it
        api_keys(load_config({"api_key": ["one"], "api_key_file": config.api_key_file}, {}).config)


def test_files_that_can_not_be_read_are_one_line(tmp_path, key_file):
    for path in (str(tmp_path / "missing"), str(tmp_path), key_file(b"\xff\xfe\n")):
        with pytest.raises(ConfigError) as caught:
            api_keys(load_config({"api_key_file": path}, {}).config)
        assert str(caught.value).startswith(f"--api-key-file {path}: ")
        assert "\n" not in str(caught.value)


def test_a_useless_file_stops_the_start(key_file):
    path = key_file(b"# nothing\n")
    result = subprocess.run(
        [sys.executable, "-m", "decoding_server", "serve", "--port", "0", "--api-key-file", path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: --api-key-file {path}: it holds no key\n"


# What a key guards.


def test_every_route_and_method_is_guarded(keyed):
    document = keyed.get("/openapi.json", headers=bearer("second")).json()
    paths = [*document["paths"], "/openapi.json", "/docs", "/no/such/route"]
    assert set(paths) > OPEN
    with httpx.Client(base_url=keyed.url, timeout=30) as client:
        for path in paths:
            for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE"):
                refused = client.request(method, path)
                admitted = client.request(method, path, headers=bearer("second"))
                assert (refused.status_code == 401) == (path not in OPEN), (method, path)
                assert admitted.status_code != 401, (method, path)
                if method == "HEAD":
                    assert refused.content == admitted.content == b""


@pytest.mark.parametrize(
    "path",
    [
        "//health",
        "/health/",
        "/health/x",
        "/HEALTH",
        "/health%2f",
        "/health;x",
        "/health/../v1/models",
        "/v1/models?/health",
    ],
)
def test_paths_that_look_like_an_open_one_are_guarded(keyed, path):
    assert keyed.get(path).status_code == 401


def test_refusals_cost_nothing(keyed):
    """The model is not asked."""
    steps = keyed.runtime.status().steps
    response = keyed.post("/v1/completions", {"prompt": "?|", "max_tokens": 50, "stream": True})
    assert response.status_code == 401
    assert keyed.runtime.status().steps == steps
    assert keyed.post("/v1/completions", {"prompt": "?|"}, headers=bearer("first")).status_code == 200
    assert keyed.runtime.status().steps > steps


def test_without_keys_everything_is_open(server):
    assert server.get("/v1/models").status_code == 200
    assert server.get("/v1/models", headers=bearer("whatever")).status_code == 200  # clients must send something


# Pages of other origins.


def cors(response):
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


def test_other_origins_are_shut_out_unless_asked_for(server, keyed):
    for live, headers in ((server, {}), (keyed, bearer("first"))):
        simple = live.get("/v1/models", headers={"origin": PAGE, **headers})
        assert (simple.status_code, cors(simple)) == (200, {})
        preflight = httpx.options(live.url + "/v1/chat/completions", headers={"origin": PAGE, **PREFLIGHT})
        assert not preflight.is_success
        assert cors(preflight) == {}


def test_a_preflight_needs_no_key(browsed):
    """Browsers send none with it, and would give up on a 401."""
    for path in ("/v1/chat/completions", "/v1/models", "/health"):
        response = httpx.options(browsed.url + path, headers={"origin": PAGE, **PREFLIGHT})
        assert response.status_code == 200
        allowed = cors(response)
        assert allowed["access-control-allow-origin"] == PAGE
        assert "POST" in allowed["access-control-allow-methods"]
        assert {"authorization", "content-type"} <= set(allowed["access-control-allow-headers"].split(", "))
        assert "access-control-allow-credentials" not in allowed
        assert "Origin" in response.headers["vary"]


def test_the_request_after_the_preflight_does(browsed):
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    url = browsed.url + "/v1/chat/completions"
    refused = httpx.post(url, json=body, headers={"origin": PAGE})
    assert refused.status_code == 401
    assert cors(refused)["access-control-allow-origin"] == PAGE  # the page may read why
    answered = httpx.post(url, json=body, headers={"origin": PAGE, **bearer("first")})
    assert answered.text.endswith("data: [DONE]\n\n")
    assert cors(answered)["access-control-allow-origin"] == PAGE
    assert "x-request-id" in cors(answered)["access-control-expose-headers"]
    unknown = browsed.get("/no/such/route", headers={"origin": PAGE, **bearer("first")})
    assert (unknown.status_code, cors(unknown)["access-control-allow-origin"]) == (404, PAGE)


def test_an_options_request_that_is_no_preflight_needs_the_key(browsed):
    assert httpx.options(browsed.url + "/v1/models", headers={"origin": PAGE}).status_code == 401
    assert httpx.options(browsed.url + "/v1/models", headers=PREFLIGHT).status_code == 401  # no origin, no browser


def test_origins_that_are_not_listed_are_shut_out(browsed):
    for origin in (OTHER_PAGE, PAGE + ".evil.example", PAGE + ":81", "https://page.example", "null"):
        preflight = httpx.options(browsed.url + "/v1/models", headers={"origin": origin, **PREFLIGHT})
        assert preflight.status_code == 400
        assert preflight.headers["x-request-id"]
        error = preflight.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "cross_origin_refused")
        assert "origin" in error["message"]
        simple = browsed.get("/v1/models", headers={"origin": origin, **bearer("first")})
        for response in (preflight, simple):
            assert "access-control-allow-origin" not in response.headers


def test_a_page_may_read_an_internal_error(serve, monkeypatch):
    def broken(request):
        raise RuntimeError("a bug")

    monkeypatch.setattr("decoding_server.api.models.service_of", broken)
    server = serve({"cors_origin": [PAGE]})
    failed = server.get("/v1/models", headers={"origin": PAGE})
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")
    assert cors(failed)["access-control-allow-origin"] == PAGE
    assert failed.headers["x-request-id"]


def test_any_origin(serve):
    server = serve({"cors_origin": ["*"]})
    simple = server.get("/v1/models", headers={"origin": OTHER_PAGE})
    assert cors(simple)["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in simple.headers
    preflight = httpx.options(server.url + "/v1/models", headers={"origin": OTHER_PAGE, **PREFLIGHT})
    assert (preflight.status_code, cors(preflight)["access-control-allow-origin"]) == (200, "*")


# Metrics.


@pytest.mark.parametrize(
    ("flags", "without", "with_key"),
    [
        ({"api_key": ["k"]}, 401, 200),
        ({"api_key": ["k"], "metrics": "guarded"}, 401, 200),
        ({"api_key": ["k"], "metrics": "open"}, 200, 200),
        ({"api_key": ["k"], "metrics": "off"}, 401, 404),
        ({}, 200, 200),
        ({"metrics": "open"}, 200, 200),
        ({"metrics": "off"}, 404, 404),
    ],
)
def test_who_may_read_metrics(serve, flags, without, with_key):
    server = serve(flags)
    assert server.get("/metrics").status_code == without
    response = server.get("/metrics", headers=bearer("k"))
    assert response.status_code == with_key
    assert ("decoding:num_requests_running" in response.text) == (with_key == 200)
    assert server.get("/metrics/x").status_code == (401 if "api_key" in flags else 404)  # open is this path alone


@pytest.mark.parametrize(("choice", "without"), [("guarded", 401), ("open", 200)])
async def test_metrics_go_on_during_a_drain(choice, without):
    runtime = make_runtime()
    try:
        gate = Gate()
        gate.open(create_app(runtime, load_config({"api_key": ["k"], "metrics": choice}, {}).config))
        runtime.drain()
        assert await gate.drain(1)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://gate") as http:
            assert (await http.get("/metrics")).status_code == without
            metrics = await http.get("/metrics", headers=bearer("k"))
            assert metrics.status_code == 200
            assert 'decoding:engine_state{model_name="scripted",state="draining"} 1.0' in metrics.text
            assert (await http.get("/health")).json()["status"] == "draining"
            assert (await http.get("/version")).status_code == 200
            refused = await http.get("/v1/models", headers=bearer("k"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    finally:
        runtime.close()
