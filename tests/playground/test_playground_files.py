"""The playground's files as a client gets them: types, policy, caching, keys, and the switch."""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from runtime_server import serve_runtime
from scripted_server import make_runtime

from decoding_server.api.playground import FILES, PATHS, POLICY

SOURCES = {entry.name: entry.read_text() for entry in files("decoding_server").joinpath("playground").iterdir()}
SCRIPTS = {name: text for name, text in SOURCES.items() if name.endswith(".js")}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serve_runtime(make_runtime(), {}) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.mark.parametrize("path", sorted(PATHS))
def test_each_file_comes_with_its_type_and_policy(http: httpx.Client, path: str) -> None:
    reply = http.get(path)
    kind = {"/": "html", "/playground/icon.svg": "svg"}.get(path, path.rpartition(".")[2])
    types = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert reply.status_code == 200
    assert reply.headers["content-type"] == f"{types[kind]}; charset=utf-8"
    assert reply.headers["content-security-policy"] == POLICY
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.content == FILES[path].body
    assert http.head(path).status_code == 200
    assert http.post(path).status_code == 405


def test_a_file_that_is_known_is_not_sent_again(http: httpx.Client) -> None:
    first = http.get("/")
    again = http.get("/", headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert http.get("/", headers={"if-none-match": '"other"'}).status_code == 200


def test_nothing_else_is_served_from_its_folder(http: httpx.Client) -> None:
    for path in ("/playground/", "/playground/index.html", "/playground/../config.py", "/playground/%2e%2e/config.py"):
        assert http.get(path).status_code == 404


def test_it_can_be_switched_off() -> None:
    with serve_runtime(make_runtime(), {"playground": False}) as server:
        for path in PATHS:
            assert httpx.get(server.url + path, timeout=30).status_code == 404


@pytest.mark.parametrize("playground", [True, False])
def test_with_keys_the_page_is_open_and_nothing_else(playground: bool) -> None:
    with serve_runtime(make_runtime(), {"api_key": "secret", "playground": playground}) as server:
        for path in PATHS:
            assert httpx.get(server.url + path, timeout=30).status_code == (200 if playground else 401)
        for path in ("/playground", "/playground/none.js", "/v1/models", "/v1/strategies"):
            assert httpx.get(server.url + path, timeout=30).status_code == 401


def test_the_policy_lets_nothing_in() -> None:
    for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"):
        assert part in POLICY.split("; ")
    assert "unsafe" not in POLICY


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_scripts_make_no_markup_of_text_and_load_only_their_neighbours(name: str) -> None:
    text = SCRIPTS[name]
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "srcdoc",
    ):
        assert forbidden not in text
    for module in re.findall(r'from "([^"]+)"', text):
        assert module.removeprefix("./") in SCRIPTS
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert len(text.splitlines()) <= 300


def test_the_page_names_only_its_own_files() -> None:
    page = SOURCES["index.html"]
    assert not re.findall(r"<style|\sstyle=|\son\w+=|https?://|<script(?![^>]*\ssrc=)", page)
    for name in re.findall(r'(?:src|href)="([^"#]+)"', page):
        assert f"/{name}" in PATHS


def test_the_pictures_of_the_docs_are_there_and_small() -> None:
    docs = Path(__file__).parents[2] / "docs"
    named = set(re.findall(r"\]\(playground/([\w-]+\.png)\)", (docs / "playground.md").read_text()))
    assert named == {path.name for path in (docs / "playground").glob("*.png")}
    assert max(path.stat().st_size for path in (docs / "playground").glob("*.png")) <= 150 * 1024
