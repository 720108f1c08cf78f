"""Limits of API keys: their arithmetic with a clock of its own, and over HTTP; key files that change meanwhile."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pydantic import SecretStr

from decoding_server.api_keys import ApiKey, KeyRing, configured_keys
from decoding_server.config import ConfigError, load_config
from decoding_server.errors import KeyLimited
from decoding_server.key_limits import KeyLimits
from decoding_server.metrics import KeyMetrics

ROOT = Path(__file__).parents[2]
SLOW = {"prompt": "~|", "max_tokens": 100}  # two seconds
QUICK = {"prompt": "hello|"}


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def key_file(tmp_path):
    def write(text, name="keys.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def entry(name, **limits):
    return {"name": name, "key": f"secret-{name}", **limits}


def limits_of(*keys, capacity=64):
    ring = KeyRing(load_config({}, {}).config)
    ring.keys = list(keys) or [key("a"), key("b")]
    clock = Clock()
    registry = CollectorRegistry()
    return KeyLimits(capacity, ring, KeyMetrics(registry, "m"), clock), clock


def key(name="a", **limits):
    return ApiKey(key=SecretStr(f"secret-{name}"), name=name, **limits)


def bearer(name):
    return {"authorization": f"Bearer secret-{name}"}


# Files.


def test_entries_of_a_file(key_file):
    path = key_file(json.dumps([entry("a", requests_per_minute=3, budget={"seconds": 2}), entry("b")]))
    keys = configured_keys(load_config({"api_key": ["flag"], "api_key_file": path}, {}).config)
    assert [one.key.get_secret_value() for one in keys] == ["flag", "secret-a", "secret-b"]
    assert [one.label for one in keys] == ["unnamed", "a", "b"]
    assert (keys[1].requests_per_minute, keys[1].budget.seconds, keys[2].budget) == (3, 2, None)
    assert "secret" not in repr(keys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it holds no key"),
        ("[]", "it holds no key"),
        ("a: 1", "must be a list"),
        ("- [secret", "not valid YAML (line 1)"),
        ("- secret-1", "entry 1: it"),
        ("- {name: a}", "entry 1: key: field required"),
        ("- {key: secret-1}", "entry 1: name and key must not be empty"),
        ("- {name: a, key: ' '}", "entry 1: name and key must not be empty"),
        ("- {name: a, key: secret-1}\n- {name: a, key: secret-2}", "the name 'a' occurs twice"),
        ("- {name: a, key: secret-1}\n- {name: b, key: secret-1}", "the key occurs twice"),
        ("- {name: a, key: secret-1, requests_per_second: 1}", "entry 1: requests_per_second: extra"),
        ("- {name: a, key: secret-1, requests_per_minute: 0}", "entry 1: requests_per_minute: "),
        ("- {name: a, key: secret-1, requests_per_minute: '5'}", "entry 1: requests_per_minute: "),
        ("- {name: a, key: secret-1, budget: {dollars: 1}}", "entry 1: budget.dollars: "),
        ("- {name: a b, key: secret-1}", "entry 1: name: "),
        ("- {name: a, key: 12}", "entry 1: key: "),
    ],
)
def test_mistakes_in_a_file_are_one_line_without_the_key(key_file, text, words):
    path = key_file(text)
    with pytest.raises(ConfigError) as caught:
        configured_keys(load_config({"api_key_file": path}, {}).config)
    message = str(caught.value)
    assert message.startswith(f"--api-key-file {path}: ")
    assert words in message
    assert "\n" not in message
    assert "secret" not in message


# Arithmetic.


def test_requests_a_minute():
    limits, clock = limits_of()
    limited = key(requests_per_minute=3)
    for _ in range(3):
        limits.admit(limited).end(0)
    with pytest.raises(KeyLimited) as caught:
        limits.admit(limited)
    assert caught.value.retry_after == pytest.approx(20)
    clock.now += 19
    with pytest.raises(KeyLimited):
        limits.admit(limited)
    clock.now += 1
    limits.admit(limited).end(0)
    clock.now += 1e6  # no more than a minute's worth is saved up
    for _ in range(3):
        limits.admit(limited).end(0)
    with pytest.raises(KeyLimited):
        limits.admit(limited)


@pytest.mark.parametrize(("unit", "seconds"), [("minute", 60), ("day", 86400)])
def test_tokens_may_be_overdrawn_once_and_are_made_up_for(unit, seconds):
    limits, clock = limits_of()
    limited = key(**{f"tokens_per_{unit}": 100})
    two = [limits.admit(limited), limits.admit(limited)]
    for leave in two:
        leave.end(100)
    with pytest.raises(KeyLimited) as caught:  # 100 of 200 are owed, and there must be one
        limits.admit(limited)
    assert caught.value.quota == (unit == "day")
    assert caught.value.retry_after == pytest.approx(seconds * 1.01)
    clock.now += seconds
    with pytest.raises(KeyLimited):
        limits.admit(limited)
    clock.now += seconds * 0.0101
    limits.admit(limited)


def test_a_request_that_is_refused_uses_up_nothing():
    limits, clock = limits_of()
    limited = key(requests_per_minute=1, tokens_per_minute=60)
    limits.admit(limited).end(90)
    clock.now += 1
    with pytest.raises(KeyLimited, match="requests a minute"):
        limits.admit(limited)
    clock.now += 30
    for _ in range(20):
        with pytest.raises(KeyLimited, match="requests a minute"):
            limits.admit(limited)
    clock.now += 29
    limits.admit(limited)


def test_concurrent_requests():
    limits, _ = limits_of()
    limited = key(concurrent_requests=2)
    first, _second = limits.admit(limited), limits.admit(limited)
    with pytest.raises(KeyLimited, match="2 requests at once"):
        limits.admit(limited)
    limits.admit(key("b"))
    first.end(0)
    limits.admit(limited)


def test_a_changed_limit_holds_at_once_and_keys_that_are_gone_leave_nothing():
    limits, _ = limits_of()
    limits.admit(key(requests_per_minute=1)).end(0)
    with pytest.raises(KeyLimited):
        limits.admit(key(requests_per_minute=1))
    running = limits.admit(key(requests_per_minute=5))
    limits.keys.keys = [key("b")]
    limits.admit(key("b")).end(0)
    assert set(limits.uses) == {"a", "b"}  # a still runs
    running.end(0)
    assert set(limits.uses) == {"b"}


def test_one_key_leaves_room_for_others_and_each_next_one_less():
    a, b, c = (key(name) for name in "abc")
    limits, _ = limits_of(a, b, c, capacity=60)

    def flood(who):
        taken = []
        while True:
            leave = limits.admit(who)
            try:
                leave.queue(1)
            except KeyLimited:
                leave.end(0)
                return taken
            taken.append(leave)

    of_a, of_b, of_c = flood(a), flood(b), flood(c)
    assert (len(of_a), len(of_b), len(of_c)) == (30, 15, 7)
    for leave in of_a:
        leave.end(0)
    assert limits.sequences == 22
    assert len(flood(a)) == 19  # as much as is left: 60 - 22 - 19 = 19


def test_a_key_alone_may_have_it_all():
    limits, _ = limits_of(key("a"), capacity=5)
    for _ in range(9):  # the runtime refuses, not the share
        limits.admit(key("a")).queue(1)


# Over HTTP.


@pytest.fixture
def limited(serve, key_file):
    def start(*entries, **flags):
        return serve({"api_key_file": key_file(json.dumps(list(entries))), **flags})

    return start


def ask(server, name, body=QUICK, path="/v1/completions"):
    return server.post(path, body, headers=bearer(name))


def test_refusals_over_http(limited):
    server = limited(entry("a", requests_per_minute=2), entry("b"), entry("c", tokens_per_day=5))
    assert [ask(server, "a").status_code for _ in range(3)] == [200, 200, 429]
    refused = ask(server, "a")
    error = refused.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limit_exceeded", None)
    assert 28 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-request-id"]
    assert ask(server, "b").status_code == 200
    assert server.get("/v1/models", headers=bearer("a")).status_code == 200  # only what computes is limited
    assert ask(server, "c").status_code == 200
    spent = ask(server, "c")
    assert (spent.status_code, spent.json()["error"]["code"]) == (429, "insufficient_quota")
    assert spent.headers["x-should-retry"] == "false"
    found = {}

    def counted():  # at a request's end, which is a moment after its answer
        families = parse_text(server.get("/metrics", headers=bearer("a")).text)
        found.update(
            {(s.name, s.labels.get("key"), s.labels.get("outcome")): s.value for f in families for s in f.samples}
        )
        return found.get(("decoding:key_requests_total", "c", "admitted")) == 1

    until(counted)
    assert found["decoding:key_requests_total", "a", "admitted"] == 2
    assert found["decoding:key_requests_total", "a", "refused"] == 2
    assert found["decoding:key_requests_total", "c", "refused"] == 1
    assert found["decoding:key_forward_tokens_total", "c", None] > 5
    assert found["decoding:api_key_reloads_total", None, "failed"] == 0


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
def test_every_route_that_computes_is_limited(limited, path):
    server = limited(entry("a", tokens_per_minute=1))
    words = "hello world"
    bodies = {
        "/v1/completions": {"prompt": words},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": words}]},
        "/v1/responses": {"input": words},
        "/v1/embeddings": {"input": words},
    }
    assert ask(server, "a", bodies[path], path).status_code == 200
    assert ask(server, "a", bodies[path], path).status_code == 429


def test_concurrency_counts_streams_until_their_end_and_clients_that_left(limited):
    server = limited(entry("a", concurrent_requests=1))
    with httpx.stream("POST", server.url + "/v1/completions", json=SLOW | {"stream": True}, headers=bearer("a")) as one:
        pieces = one.iter_text()
        next(pieces)
        assert ask(server, "a").status_code == 429
    deadline = time.monotonic() + 10  # the client has left; the server notices soon
    while ask(server, "a").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_budget_of_the_key_caps_the_requests_own(limited):
    server = limited(entry("a", budget={"output_tokens": 3}))
    answer = ask(server, "a").json()
    assert answer["choices"][0]["text"] == "hel"
    assert answer["choices"][0]["stop_reason"] == "budget:output_tokens"
    assert answer["decoding"]["budget"] == {"output_tokens": 3}
    for own, text in ((2, "he"), (4, "hel")):
        own_budget = QUICK | {"decoding": {"budget": {"output_tokens": own}}}
        assert ask(server, "a", own_budget).json()["choices"][0]["text"] == text


def test_a_key_that_floods_the_server_does_not_keep_another_waiting(limited):
    """64 sequences run at once, 300 wait: without shares the other key would wait for all of them."""
    server = limited(entry("flood"), entry("calm"), max_num_seqs=4, max_waiting=400)
    bodies = SLOW | {"max_tokens": 30}
    statuses = []

    async def flood(client):
        statuses.append((await client.post("/v1/completions", json=bodies, headers=bearer("flood"))).status_code)

    async def both():
        limits = httpx.Limits(max_connections=350)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            tasks = [asyncio.create_task(flood(client)) for _ in range(300)]
            while server.runtime.status().waiting < 150:
                await asyncio.sleep(0.02)
            calm = await client.post("/v1/completions", json=QUICK, headers=bearer("calm"))
            waiting = server.runtime.status().waiting
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return calm, waiting

    calm, waiting = asyncio.run(both())
    assert calm.status_code == 200
    assert waiting > 100  # the flood was still waiting when the other had its answer
    assert statuses.count(429) >= 90  # 202 of 300 fit into its share of 404


def test_the_log_names_the_key(tmp_path, key_file):
    path = key_file(json.dumps([entry("team-a", requests_per_minute=1)]))
    process, url = started(f"api_key_file={path}")
    try:
        for status in (200, 429):
            assert httpx.post(url + "/v1/completions", json=QUICK, headers=bearer("team-a")).status_code == status
    finally:
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=20)[1]
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert [(line["key"], line["status"]) for line in lines] == [("team-a", 200), ("team-a", 429)]
    assert "secret" not in errors


# Files that change.


def started(*flags):
    """The scripted server as a process, and its address."""
    script = str(Path(__file__).with_name("scripted_server.py"))
    process = subprocess.Popen(
        [sys.executable, script, "port=0", *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    address = ""
    for line in process.stderr:
        if "listening on " in line:
            address = line.split("listening on ")[1].strip()
        if " ready in " in line:
            return process, address
    raise AssertionError("the server did not start")


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_keys_are_read_again_on_sighup_and_by_themselves(key_file):
    path = key_file(json.dumps([entry("a")]))
    process, url = started(f"api_key_file={path}")
    draining = threading.Thread(target=lambda: [None for _ in process.stderr])
    draining.start()

    def status(name):
        return httpx.get(url + "/v1/models", headers=bearer(name)).status_code

    try:
        assert (status("a"), status("b")) == (200, 401)
        key_file(json.dumps([entry("b")]))
        process.send_signal(signal.SIGHUP)
        until(lambda: (status("a"), status("b")) == (401, 200))
        key_file("- [broken")
        process.send_signal(signal.SIGHUP)
        reloads = 'decoding:api_key_reloads_total{model_name="scripted",outcome="failed"} 1.0'
        until(lambda: reloads in httpx.get(url + "/metrics", headers=bearer("b")).text)
        assert status("b") == 200  # the old ones stay
        fresh = Path(path + ".new")
        fresh.write_text(json.dumps([entry("a"), entry("b")]))
        fresh.rename(path)  # no signal: noticed within seconds
        until(lambda: (status("a"), status("b")) == (200, 200))
        Path(path).unlink()
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert (status("a"), status("b")) == (200, 200)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        draining.join(10)
        process.stderr.close()
