"""Searches for programs over HTTP: an ordinary answer from the real sandbox, and what is refused without one."""

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from runtime_server import RuntimeServer, serve_runtime

from strategies.search import coding_search

sys.path.insert(0, str(Path(__file__).parents[1] / "strategies" / "search"))
from scripted_coder import ScriptedCoder, code

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
WRONG, RIGHT = code("return a"), code("return a + b")
ANSWER = "```python\ndef add(a, b):\n    return a + b\n```"
TESTS = [{"assert": "assert add(1, 2) == 3"}, {"call": "add(2, 0)", "expected": "1 + 1"}]
SEARCH = {"type": "scattered-forest", "tests": TESTS, "k": 4, "seeds": 2}


def coder() -> ScriptedCoder:
    return ScriptedCoder(
        seed=[WRONG],
        code=[RIGHT],
        directions=["Direction 1: add both\nDirection 2: use sum"],
        lessons=["Lessons:\n- x"],
    )


@pytest.fixture(scope="module")
def server() -> Iterator[RuntimeServer]:
    with coder().serving() as runtime, serve_runtime(runtime) as live:
        reply = live.post(CHAT, body())
        if reply.status_code == 503:
            pytest.skip(reply.json()["error"]["message"])
        yield live


@pytest.fixture(scope="module")
def without() -> Iterator[RuntimeServer]:
    with coder().serving() as runtime, serve_runtime(runtime, {"sandbox": "off"}) as live:
        yield live


def body(search: Any = SEARCH, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Write add(a, b), which adds."}]
    return {"messages": messages, "max_tokens": 500, "seed": 3, "decoding": {"search": search}, **fields}


def refused(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    return error


def test_chat(server: RuntimeServer) -> None:
    reply = server.post(CHAT, body({**SEARCH, "trace": "full"})).json()
    (choice,) = reply["choices"]
    assert choice["message"]["content"] == ANSWER
    assert choice["finish_reason"] == "stop"
    spent = reply["usage"]["decoding"]
    assert spent["search"]["programs"] == 3
    assert spent["search"]["programs_run"] == 2
    assert spent["search"]["programs_passed"] == 1
    assert spent["search"]["programs_duplicate"] == 1
    assert spent["output_tokens"] > reply["usage"]["completion_tokens"] == len(ANSWER)
    asked = reply["decoding"]["search"]
    assert asked["tests"] == TESTS
    assert (asked["type"], asked["k"], asked["stop"]) == ("scattered-forest", 4, "eager")


def test_the_chat_around_the_task_costs_nothing(server: RuntimeServer) -> None:
    """It is no part of any question, so it is not computed, needs no budget, and may be longer than the context."""
    task = {"role": "user", "content": "Write add(a, b), which adds."}
    search = {**SEARCH, "k": 1, "seeds": 1}
    short = server.post(CHAT, body(search)).json()["usage"]
    for length in (3000, 9000):
        messages = [{"role": "system", "content": "x" * length}, task]
        budget = {"forward_tokens": short["decoding"]["target_tokens"] + short["decoding"]["cached_tokens"]}
        asked = {**body(search, messages=messages), "decoding": {"search": search, "budget": budget}}
        reply = server.post(CHAT, asked)
        assert reply.status_code == 200, reply.text
        usage = reply.json()["usage"]
        assert reply.json()["choices"][0]["finish_reason"] == "stop"
        assert usage["prompt_tokens"] == short["prompt_tokens"] + length + 2
        assert usage["decoding"]["target_tokens"] <= budget["forward_tokens"]
    for repeats, param in ((2000, "messages"), (1150, "max_tokens")):
        error = refused(server.post(CHAT, body(search, messages=[{**task, "content": "add(1) " * repeats}])), 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)


def test_metrics(server: RuntimeServer) -> None:
    def counted() -> dict[str, float]:
        text = httpx.get(f"{server.url}/metrics", timeout=30).text
        tests = re.findall(r'^decoding:program_tests_total{.*outcome="(\w+)".*} (.+)$', text, re.MULTILINE)
        counts = re.findall(r"^decoding:program_(\w+)_seconds_count{.*} (.+)$", text, re.MULTILINE)
        own = r'^decoding:(program\w+){.*strategy="scattered-forest".*} (.+)$'
        return {name: float(value) for name, value in [*tests, *counts, *re.findall(own, text, re.MULTILINE)]}

    before = counted()
    assert server.post(CHAT, body()).status_code == 200
    after = counted()
    # Two programs are run, of two tests each: the wrong one passes the second.
    assert after["pass"] - before["pass"] == 3
    assert after["wrong_value"] - before["wrong_value"] == 1
    assert after["timeout"] == 0
    assert after["run"] - before["run"] == after["wait"] - before["wait"] == 2
    # Both first programs are the same; the third program passes.
    assert after["program_duplicates_total"] - before["program_duplicates_total"] == 1
    assert after["programs_until_solved_count"] - before["programs_until_solved_count"] == 1
    assert after["programs_until_solved_sum"] - before["programs_until_solved_sum"] == 3


def test_stream(server: RuntimeServer) -> None:
    text, reasons = "", []
    for line in server.post(CHAT, body(stream=True)).text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                text += choice["delta"].get("content") or ""
                reasons.append(choice["finish_reason"])
    assert text == ANSWER
    assert [reason for reason in reasons if reason] == ["stop"]


def test_special_tokens_in_a_program_are_its_text() -> None:
    """What was tested is what the client gets, streamed or not, in every choice."""
    programs = [code(f"""return a + b if "<|end|>" else {i}""") for i in range(2)]
    answers = [program.removeprefix("Sure.\n").rstrip("\n") for program in programs]
    search = {**SEARCH, "stop": "never", "k": 2, "trace": "full"}
    with ScriptedCoder(seed=programs).serving() as runtime, serve_runtime(runtime) as live:
        reply = live.post(CHAT, body(search, n=2, return_token_ids=True))
        if reply.status_code == 503:
            pytest.skip(reply.json()["error"]["message"])
        streamed = live.post(CHAT, body(search, n=2, stream=True)).text
    whole = reply.json()
    (report,) = whole["trace"]
    assert [choice["message"]["content"] for choice in whole["choices"]] == answers
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["stop"] * 2
    assert [node["text"] for node in report["tree"] if "program" in node] == answers
    assert report["verified"] == "given"
    lengths = [len(choice["token_ids"]) for choice in whole["choices"]]
    assert lengths == [len(answer) - len("<|end|>") + 1 for answer in answers]
    assert whole["usage"]["completion_tokens"] == sum(lengths)
    texts = ["", ""]
    for line in streamed.splitlines():
        for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else []:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == answers


SPY = """import os
    found = str(os.environ)
    for pid in (os.getppid(), 1, {pid}):
        try:
            found += open(f"/proc/{{pid}}/environ").read()
        except OSError as error:
            found += str(error)
    print(found)
    if a == 1:
        raise ValueError(found[-150:])
    return found"""


def test_the_servers_environment_stays_inside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A secret in the server's environment is in no result, log or trace of a program that looks for it."""
    canary = "canary-4711"
    monkeypatch.setenv("SERVER_SECRET", canary)
    caplog.set_level("DEBUG")
    spy = code(SPY.format(pid=os.getpid()))
    writer = ScriptedCoder(seed=[spy], code=[spy], directions=["Hm.\nDirection 1: look"], lessons=["Lessons:\n- x"])
    with writer.serving() as runtime, serve_runtime(runtime) as live:
        reply = live.post(CHAT, body({**SEARCH, "k": 2, "seeds": 1, "trace": "full"}))
        if reply.status_code == 503:
            pytest.skip(reply.json()["error"]["message"])
        metrics = httpx.get(f"{live.url}/metrics", timeout=30).text
    assert reply.status_code == 200
    (asked,) = writer.prompts("directions")
    assert "ValueError" in asked
    assert 'got "environ({' in asked
    for text in (reply.text, caplog.text, metrics, *(prompt for _, prompt in writer.asked)):
        assert canary not in text


def test_responses_and_completions(server: RuntimeServer) -> None:
    asked = {"input": "Write add(a, b), which adds.", "max_output_tokens": 500, "decoding": {"search": SEARCH}}
    reply = server.post(RESPONSES, asked).json()
    assert reply["output"][0]["content"][0]["text"] == ANSWER


def test_strategies_say_that_it_is_usable(server: RuntimeServer) -> None:
    listed = httpx.get(f"{server.url}/v1/strategies", timeout=30).json()
    assert listed["sandbox"]["state"] == "ready"
    assert listed["sandbox"]["backend"] in ("bwrap", "lsm")
    assert listed["sandbox"]["confines"] is True
    found = {one["id"]: one for one in listed["data"] if one["slot"] == "search"}
    assert found["scattered-forest"]["supports"]["needs_sandbox"]
    assert not found["scattered-forest"]["supports"]["logprobs"]
    assert not found["code-greedy"]["supports"]["needs_sandbox"]
    assert "assert" in json.dumps(found["scattered-forest"]["parameters"])


def test_strategies_say_that_it_has_failed(server: RuntimeServer) -> None:
    """Until a program has it probed again."""
    server.app.state.service.sandbox.opened._broken = "no more processes"
    listed = httpx.get(f"{server.url}/v1/strategies", timeout=30).json()["sandbox"]
    assert listed["state"] == "unavailable"
    assert listed["reason"] == "no more processes"
    assert server.post(CHAT, body()).status_code == 200
    listed = httpx.get(f"{server.url}/v1/strategies", timeout=30).json()["sandbox"]
    assert listed["state"] == "ready"
    assert listed["reason"] is None


@pytest.mark.parametrize("path", [CHAT, RESPONSES, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
def test_without_a_sandbox(without: RuntimeServer, path: str, stream: bool) -> None:
    fields: dict[str, Any] = {
        CHAT: body(),
        RESPONSES: {"input": "Write add(a, b).", "decoding": {"search": SEARCH}},
        COMPLETIONS: {"prompt": "def add(a, b):", "decoding": {"search": SEARCH}},
    }[path]
    error = refused(without.post(path, {**fields, "stream": stream}), 503)
    assert error["code"] == "sandbox_unavailable"
    assert "--sandbox off" in error["message"]
    listed = httpx.get(f"{without.url}/v1/strategies", timeout=30).json()["sandbox"]
    assert listed["state"] == "unavailable"
    assert "--sandbox off" in listed["reason"]


def test_greedy_needs_no_sandbox(without: RuntimeServer) -> None:
    reply = without.post(CHAT, body({"type": "code-greedy", "entry_point": "add"})).json()
    assert reply["choices"][0]["message"]["content"] == ANSWER.replace("a + b", "a")


@pytest.mark.parametrize(
    ("search", "fields", "param"),
    [
        ({"tests": [{"assert": "assert sub(1) == 1"}, *TESTS]}, {}, "decoding.search.entry_point"),
        ({"tests": [{"assert": "assert sub(1) == 1"}], "entry_point": "add"}, {}, "decoding.search.tests[0]"),
        ({"sandbox": {"test_s": 6.0}}, {}, "decoding.search.sandbox.test_s"),
        ({"sandbox": {"memory_mb": 513}}, {}, "decoding.search.sandbox.memory_mb"),
        ({"k": 129}, {}, "decoding.search.k"),
        ({"tests": [*TESTS, {"call": "add(1, 2)"}]}, {}, "decoding.search.tests[2].expected"),
        ({"tests": [{"call": 3, "expected": "3"}]}, {}, "decoding.search.tests[0].call"),
        ({"tests": [{"stdin": "1"}]}, {}, "decoding.search.tests[0].stdout"),
        ({"tests": [{"assert": "assert add(1, 2)", "call": "add(1, 2)"}]}, {}, "decoding.search.tests[0].call"),
        ({"tests": [{"other": 1}]}, {}, "decoding.search.tests[0]"),
        ({"tests": ["assert add(1, 2) == 3"]}, {}, "decoding.search.tests[0]"),
        ({"tests": [*TESTS, {"stdin": "1", "stdout": "2"}]}, {}, "decoding.search.tests"),
        ({"tests": [{"assert": "assert add(1, 2)" + " " * 16000}] * 20}, {}, "decoding.search.tests"),
        ({"tests": [{"stdin": "1", "stdout": "2"}], "entry_point": "add"}, {}, "decoding.search.entry_point"),
        ({"themes": ["a", ""]}, {}, "decoding.search.themes[1]"),
        ({"themes": ["a"] * 65}, {}, "decoding.search.themes"),
        ({"themes": "other"}, {}, "decoding.search.themes"),
        ({"tree": False, "c": 1.0}, {}, "decoding.search.c"),
        ({"tree": False, "selection": "puct"}, {}, "decoding.search.selection"),
        ({"tree": False, "stop": "official"}, {}, "decoding.search.stop"),
        ({}, {"logprobs": True}, "logprobs"),
        ({}, {"n": 5}, "n"),
        ({}, {"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_refusals(server: RuntimeServer, search: dict[str, Any], fields: dict[str, Any], param: str) -> None:
    assert refused(server.post(CHAT, body({**SEARCH, **search}, **fields)), 400)["param"] == param


def test_tests_are_read_once_beside_the_event_loop(server: RuntimeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each prompt; what is wrong with one is told before anything runs."""
    whole, beside = coding_search.coding_tasks, []

    def noted(search: Any, asked: Any, *rest: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            beside.append(len(asked))
        else:
            beside.append(0)
        return whole(search, asked, *rest)

    monkeypatch.setattr(coding_search, "coding_tasks", noted)
    wrong = {**SEARCH, "entry_point": "add", "tests": [*TESTS, {"call": "add(", "expected": "3"}]}
    asked = {"prompt": ["Write add(a, b).", "Add a and b."], "decoding": {"search": wrong}}
    fields = {"input": "Write add(a, b).", "max_output_tokens": 500, "decoding": {"search": SEARCH}}
    assert server.post(CHAT, body()).status_code == 200
    assert refused(server.post(COMPLETIONS, asked), 400)["param"] == "decoding.search.tests[2]"
    assert server.post(RESPONSES, fields).status_code == 200
    assert beside == [1, 2, 1]


def test_a_client_that_leaves_ends_its_program(server: RuntimeServer) -> None:
    """Its tests never end by themselves, and have 5 s each."""

    def busy() -> set[int]:
        found = set()
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cpu_times().user > 0.3:
                    found.add(process.pid)
        return found

    def wait(condition: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        return condition()

    endless = {"assert": "assert all(True for _ in iter(int, 1)) and add(1, 2)"}
    search = {**SEARCH, "tests": [endless, endless]}
    before = busy()
    with httpx.stream("POST", server.url + CHAT, json=body(search, stream=True), timeout=30) as reply:
        assert reply.status_code == 200
        assert wait(lambda: bool(busy() - before), 30)
        running = busy() - before
    assert wait(lambda: not running & set(psutil.pids()), 3)


def test_the_operators_words(tmp_path: Path) -> None:
    words = tmp_path / "prompts.toml"
    words.write_text('seed = "PLEASE: {task}"\n', encoding="utf-8")
    writer = coder()
    with writer.serving() as runtime, serve_runtime(runtime, {"program_prompts": str(words)}) as live:
        assert live.post(CHAT, body({"type": "code-greedy", "entry_point": "add"})).status_code == 200
    assert "PLEASE: Write add(a, b)" in writer.prompts("seed")[0]
