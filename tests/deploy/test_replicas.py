"""Two replicas behind the router that compose.replicas.yaml starts: prompts go where their beginning is cached, and
what clients see when a replica dies."""

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTED = ROOT / "tests" / "decoding_server" / "scripted_server.py"
MODEL = "scripted"


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def answers(url):
    try:
        return httpx.get(url + "/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def stack(tmp_path):
    """Two replicas (process, address) and the router's address, whose flags are those of the compose file."""
    if importlib.util.find_spec("vllm_router") is None:
        if os.environ.get("DECODING_SERVER_TEST_DEPLOY") == "required":
            pytest.fail("vllm-router is not installed")
        pytest.skip("vllm-router is not installed: make check-deploy")
    processes = []

    def spawn(name, *command):
        sink = (tmp_path / name).open("w")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        processes.append(process)
        return process

    ports = [free_port() for _ in range(3)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    replicas = [
        (spawn(f"replica-{i}", sys.executable, str(SCRIPTED), f"port={ports[i]}", "shutdown_timeout=20"), urls[i])
        for i in range(2)
    ]
    until(lambda: all(answers(url) for url in urls[:2]))
    compose = (ROOT / "deploy" / "compose.replicas.yaml").read_text().replace("!override", "")
    flags = [flag for flag in yaml.safe_load(compose)["services"]["router"]["command"] if flag.startswith("--")]
    kept = [flag for flag in flags if not flag.startswith(("--host", "--port", "--worker-urls"))]
    quick = ["--health-check-interval-secs=1", "--health-failure-threshold=2", "--health-success-threshold=1"]
    listening = ["--host=127.0.0.1", f"--port={ports[2]}", f"--prometheus-port={free_port()}"]
    router = "import sys; from vllm_router.launch_router import main; sys.exit(main())"
    spawn("router", sys.executable, "-c", router, *listening, *kept, *quick, "--worker-urls", *urls[:2])
    until(lambda: answers(urls[2]))
    yield replicas, urls[2], tmp_path / "router"
    for process in reversed(processes):
        process.kill()
        process.wait()


def ask(url, prompt, **fields):
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 3, **fields}
    return httpx.post(url + "/v1/completions", json=body, timeout=60)


def cached(url):
    """Prompt tokens that this replica has found in its cache."""
    text = httpx.get(url + "/metrics").text
    return float(re.search(r"^decoding:prefix_cache_hits_total{.*?} (\S+)$", text, re.MULTILINE)[1])


def test_a_prompt_goes_where_its_beginning_is_cached(stack):
    replicas, router, _ = stack
    stems = [f"document {letter} " + letter * 200 + " " for letter in "abcdef"]
    for stem in stems:
        assert ask(router, stem + "first question").status_code == 200
    hits = 0
    for turn in range(3):
        for stem in stems:
            usage = ask(router, stem + f"question {turn}").json()["usage"]
            hits += usage["prompt_tokens_details"]["cached_tokens"] >= len(stem)
    assert hits == 18  # two of three would go to the wrong replica by chance: 2^-18
    assert sum(cached(url) for _, url in replicas) >= 18 * 200


def test_a_replica_that_drains_or_dies_costs_only_its_own_streams(stack):
    replicas, router, _log = stack
    body = {"model": MODEL, "prompt": "~|", "max_tokens": 200, "stream": True}  # four seconds

    def running(url):
        return httpx.get(url + "/health", timeout=5).json()["running"]

    # A drain: what runs is finished, what comes goes to the other one.
    with httpx.stream("POST", router + "/v1/completions", json=body, timeout=60) as response:
        pieces = response.iter_text()
        seen = [next(pieces)]
        (drained,) = [one for one in replicas if running(one[1])]
        (other,) = [one for one in replicas if one is not drained]
        drained[0].send_signal(signal.SIGTERM)
        statuses = [ask(router, f"hello {i}|").status_code for i in range(10)]
        seen.extend(pieces)
    text = "".join(seen)
    assert text.count('"text":"z"') == 200
    assert text.endswith("data: [DONE]\n\n")
    assert drained[0].wait(30) == 0
    assert statuses == [200] * 10  # the router tries a 503 again, elsewhere
    # A death: its stream is cut, never ended as if it were whole.
    with httpx.stream("POST", router + "/v1/completions", json=body, timeout=60) as response:
        pieces = response.iter_text()
        seen = [next(pieces)]
        other[0].kill()
        with contextlib.suppress(httpx.TransportError):
            seen.extend(pieces)
    assert "[DONE]" not in "".join(seen)
    assert '"finish_reason":"' not in "".join(seen)
    other[0].wait()
    assert ask(router, "hello|").status_code >= 500  # nobody is left: an error, not a hang
