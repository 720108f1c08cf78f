"""`decoding-server serve --runtime vllm` as a process: the API, searches, refusals, clients that leave, its end.

The tests run in order: the last ones end the engine, then the server.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from strategies.registry import registered

ROOT = Path(__file__).parents[3]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
START_SECONDS = 240
VARIABLES = {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
FLAGS = (
    *("--runtime", "vllm", "--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "16"),
    *("--max-waiting", "32", "--kv-cache-memory", "256MiB"),
    *("--engine-args", "enforce_eager=true", "--engine-args", "block_size=32"),
)
SEARCHES: dict[str, dict[str, Any]] = {
    "best-of-n": {"samples": 3, "value": "self-eval"},
    "weighted-majority": {"samples": 3, "value": "self-eval"},
    "majority": {"samples": 3},
    "beam": {"width": 3},
    "phi": {"beams": 2, "rollouts": 2, "t_max": 2, "t_min": 1},
    "predictive": {"rollouts": 2, "t_max": 2},
    "rebase": {"samples": 3, "value": "self-eval", "max_depth": 3},
    "litesearch": {"max_children": 2, "max_iterations": 2, "value": "self-eval"},
    "step-beam": {"beams": 2, "samples": 2, "value": "self-eval", "max_depth": 3},
    "mcts": {"expansions": 2, "value": "self-eval", "max_depth": 3},
    "tot-dfs": {"max_nodes": 4, "value": "self-eval", "max_depth": 3},
}
PROGRAMS: dict[str, dict[str, Any]] = {
    "scattered-forest": {"k": 3, "seeds": 2, "directions": 1},
    "code-best-of-n": {"k": 2},
    "code-line": {"k": 2},
    "code-tree": {"k": 3},
    "code-greedy": {},
}


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    log: Path

    def post(self, body: dict[str, Any], path: str = COMPLETIONS) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=180)

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.url}/health", timeout=20)

    def wait_until_idle(self, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while (status := self.health().json())["running"] or status["waiting"]:
            assert time.monotonic() < end, status
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def start(log: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "decoding_server", "serve", "--port", "0", *flags]
    with log.open("w") as sink:
        return subprocess.Popen(command, stderr=sink, env=os.environ | VARIABLES, text=True)


@pytest.fixture(scope="module")
def server(vllm_is_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("vllm") / "log"
    process = start(log, *FLAGS)
    try:
        end = time.monotonic() + START_SECONDS
        while "ready in" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        listening = re.search(r"listening on (http://\S+)", log.read_text())
        assert listening is not None
        yield Server(process, listening[1], log)
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()


def asking(**fields: Any) -> dict[str, Any]:
    return {"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0} | fields


def test_an_answer(server: Server) -> None:
    answer = server.post(asking()).json()
    assert answer["choices"][0]["text"].startswith(" Paris")
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["decoding"]["target_tokens"] + answer["usage"]["decoding"]["cached_tokens"] == 5 + 11
    assert server.health().json()["status"] in ("ok", "ready")


def test_a_chat_stream_says_what_the_whole_answer_says(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 30}
    body |= {"temperature": 0.9, "seed": 4, "top_p": 0.9}
    whole = server.post(body, CHAT).json()["choices"][0]["message"]["content"]
    pieces = []
    with httpx.stream("POST", server.url + CHAT, json=body | {"stream": True}, timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                pieces += [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
    assert "".join(pieces) == whole != ""
    assert len(pieces) > 3


@pytest.mark.parametrize(
    "decoding",
    [
        {"sampler": {"type": "bregman", "alpha": 1.5, "tau": 0.05}},
        {"penalty": {"type": "grammar", "language": "python"}},
        {"sampler": "mirostat", "penalty": {"type": "dry", "multiplier": 1.0}},
    ],
)
def test_strategies_of_sampling(server: Server, decoding: dict[str, Any]) -> None:
    body = asking(temperature=1.0, seed=3, n=2, logprobs=2, decoding=decoding)
    first, second = server.post(body), server.post(body)
    assert first.status_code == 200, first.text
    texts = [choice["text"] for choice in first.json()["choices"]]
    assert texts == [choice["text"] for choice in second.json()["choices"]]
    assert texts[0] != texts[1]
    assert all(len(choice["logprobs"]["tokens"]) > 0 for choice in first.json()["choices"])


def test_structured_output_and_echo(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 22]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "Give JSON."}], "max_tokens": 40, "response_format": form}
    assert json.loads(server.post(body, CHAT).json()["choices"][0]["message"]["content"])["a"] in (1, 22)
    scored = server.post(asking(echo=True, max_tokens=0, logprobs=1)).json()["choices"][0]
    assert scored["text"] == "The capital of France is"
    assert scored["logprobs"]["token_logprobs"][0] is None
    assert len(scored["logprobs"]["token_logprobs"]) == 5


@pytest.mark.parametrize("name", SEARCHES)
def test_searches(server: Server, name: str) -> None:
    """One of each kind: an answer, made of more tokens than it has, and nothing left running."""
    search = {"type": name, "trace": "summary"} | SEARCHES[name]
    messages = [{"role": "user", "content": "What is 2 + 3? Think step by step."}]
    body = {"messages": messages, "max_tokens": 32, "temperature": 0.8, "seed": 1, "decoding": {"search": search}}
    response = server.post(body, CHAT)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["decoding"]["output_tokens"] > answer["usage"]["completion_tokens"] > 0
    server.wait_until_idle()


@pytest.mark.parametrize("name", PROGRAMS)
def test_searches_for_programs(server: Server, name: str) -> None:
    """Run in the real sandbox; none has to be right."""
    tests = [{"assert": "assert add(1, 2) == 3"}, {"call": "add(2, 0)", "expected": "2"}]
    search = {"type": name, "tests": tests} | PROGRAMS[name]
    messages = [{"role": "user", "content": "Write a Python function add(a, b), which adds two numbers."}]
    body = {"messages": messages, "max_tokens": 96, "seed": 1, "decoding": {"search": search}}
    response = server.post(body, CHAT)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"]
    spent = response.json()["usage"]["decoding"]
    assert (spent["search"].get("programs_run", 0) > 0) is (name != "code-greedy")
    assert spent["output_tokens"] > 0
    server.wait_until_idle()


def test_every_search_is_tried() -> None:
    assert set(registered("search")) == {*SEARCHES, *PROGRAMS}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, asking(decoding={"speculation": {"type": "rsd-s", "width": 2, "length": 2}}), "speculation"),
        (COMPLETIONS, asking(decoding={"speculation": "ngram"}), "speculation"),
        (COMPLETIONS, asking(decoding={"sampler": {"type": "contrastive"}}), "sampler"),
        ("/v1/embeddings", {"input": "a"}, "pooling"),
    ],
)
def test_what_vllm_does_not_have_is_a_400_that_names_it(
    server: Server, path: str, body: dict[str, Any], param: str
) -> None:
    response = server.post(body, path)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert param in error["param"]
    assert "--runtime torch" in error["message"]


def test_embeddings_of_the_last_token(server: Server) -> None:
    vectors = server.post({"input": ["a cat", "a dog"], "pooling": "last"}, "/v1/embeddings").json()["data"]
    assert [len(one["embedding"]) for one in vectors] == [576, 576]
    assert vectors[0]["embedding"] != vectors[1]["embedding"]


def test_strategies_tell_their_runtimes(server: Server) -> None:
    listed = {one["id"]: one["runtimes"] for one in httpx.get(f"{server.url}/v1/strategies").json()["data"]}
    assert listed["bregman"] == listed["phi"] == ["torch", "vllm"]
    assert listed["rsd-s"] == listed["contrastive"] == ["torch"]


def test_a_client_that_leaves_ends_its_work(server: Server) -> None:
    body = asking(max_tokens=400, ignore_eos=True, stream=True, n=4)
    with httpx.stream("POST", server.url + COMPLETIONS, json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert server.health().json()["running"] == 4
    server.wait_until_idle(10)


def test_overload_is_a_429(server: Server) -> None:
    """32 may wait behind 16."""
    statuses: list[int] = []

    def client() -> None:
        with contextlib.suppress(httpx.HTTPError):
            body = asking(max_tokens=40, ignore_eos=True, n=16)
            statuses.append(server.post(body).status_code)

    threads = [threading.Thread(target=client) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 3
    server.wait_until_idle()
    assert server.post(asking()).status_code == 200


def test_metrics_count(server: Server) -> None:
    text = httpx.get(f"{server.url}/metrics", timeout=20).text
    total = re.search(r"^decoding:generation_tokens_total\S* (\S+)$", text, re.MULTILINE)
    assert total is not None, text[:2000]
    assert float(total[1]) > 100


def test_when_the_engine_dies_requests_fail_and_health_says_so(server: Server) -> None:
    """503 for who waits and for who comes, and 503 from /health; not a hang."""
    outcome: dict[str, Any] = {}

    def client() -> None:
        body = asking(max_tokens=450, ignore_eos=True, stream=True)
        with httpx.stream("POST", server.url + COMPLETIONS, json=body, timeout=60) as stream:
            outcome["text"] = "\n".join(stream.iter_lines())

    thread = threading.Thread(target=client)
    thread.start()
    end = time.monotonic() + 20
    while not server.health().json()["running"]:
        assert time.monotonic() < end
    time.sleep(0.5)
    for child in server.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "multiprocessing.resource_tracker" not in " ".join(child.cmdline()):
                child.kill()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert "the engine is down" in outcome["text"]
    assert outcome["text"].rstrip().endswith("[DONE]")
    response = server.health()
    assert response.status_code == 503
    refused = server.post(asking())
    assert refused.status_code == 503
    assert "engine is down" in refused.json()["error"]["message"]


def test_the_server_ends_cleanly(server: Server) -> None:
    """Also after its engine has died: exit code 0, no process left behind."""
    children = server.processes()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0, server.log.read_text()[-3000:]
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


@pytest.mark.parametrize(
    ("number", "when", "code"),
    [(signal.SIGTERM, "listening on", 128 + signal.SIGTERM), (signal.SIGKILL, "ready in", -signal.SIGKILL)],
)
def test_a_server_that_is_gone_leaves_no_process(
    vllm_is_here: None, tmp_path: Path, number: signal.Signals, when: str, code: int
) -> None:
    """While vLLM's engine is starting, and killed while it serves: the engine doesn't notice by itself."""
    log = tmp_path / "log"
    process = start(log, *FLAGS)
    try:
        end = time.monotonic() + START_SECONDS
        while when not in log.read_text() or len(children := psutil.Process(process.pid).children(recursive=True)) < 2:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        _, alive = psutil.wait_procs(children, timeout=60)
        for one in alive:
            one.kill()
        assert alive == []
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--engine-args", "no_such_thing=1"), 1, "vLLM has no such argument"),
        (("--engine-args", "logprobs_mode=raw_logits"), 1, "can't be set here"),
        (("--draft-model", "x"), 2, "--draft-model needs --runtime torch"),
        (("--device", "cuda"), 1, "runs on cpu"),
    ],
)
def test_settings_that_can_not_be_are_one_line(
    vllm_is_here: None, tmp_path: Path, flags: tuple[str, ...], code: int, words: str
) -> None:
    log = tmp_path / "log"
    process = start(log, "--runtime", "vllm", *flags)
    assert process.wait(timeout=120) == code
    last = log.read_text().strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
