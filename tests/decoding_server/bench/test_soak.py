"""The soak test's parts that decide: which requests there are, and what counts as a fault."""

import asyncio
import json
import threading
import time
from collections import Counter

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from decoding_server.bench.process import free_port
from decoding_server.bench.soak import Row, Sample, answered, exchange, flatness, healthy, idle, parse_metrics
from decoding_server.bench.soak_requests import SAMPLERS, Mix, Reply, SoakRequest, fault
from decoding_server.decoding import expand
from decoding_server.protocol.chat import ChatCompletionRequest
from decoding_server.protocol.completions import CompletionRequest
from decoding_server.protocol.decoding import DecodingOptions
from decoding_server.request_body import parse_json, validate
from strategies.errors import InvalidRequest

REQUESTS = list(Mix(5, 64).requests(600))
OK = {"x-request-id": "req_1"}
TYPES = {"/v1/completions": CompletionRequest, "/v1/chat/completions": ChatCompletionRequest}


def test_the_mix_has_every_kind_and_a_seed_repeats_it():
    assert set(Counter(request.kind for request in REQUESTS)) == {kind for kind, _ in Mix.KINDS}
    assert list(Mix(5, 64).requests(50)) == REQUESTS[:50]
    assert list(Mix(6, 64).requests(50)) != REQUESTS[:50]
    streamed = [request.stream for request in REQUESTS if request.kind == "plain"]
    assert 0.3 < sum(streamed) / len(streamed) < 0.7


@pytest.mark.parametrize("request_", [one for one in REQUESTS if one.path in TYPES][:200], ids=lambda one: one.kind)
def test_what_should_be_valid_is_and_what_should_not_is_not(request_):
    def accepted():
        body = parse_json(request_.content)
        body["decoding"] = expand(body.get("decoding"), {})
        validate(TYPES[request_.path], body)

    if request_.kind in ("malformed", "bad_field"):
        with pytest.raises(InvalidRequest):
            accepted()
    else:
        accepted()  # an unknown model and a long prompt are found out later


@pytest.mark.parametrize("decoding", SAMPLERS, ids=str)
def test_samplers_are_valid(decoding):
    DecodingOptions.model_validate(expand(decoding, {}))


def answer(text="a", reason="stop", index=0, usage=(3, 2, 5)):
    counts = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), usage, strict=True))
    return {"id": "x", "choices": [{"index": index, "text": text, "finish_reason": reason}], "usage": counts}


def whole(body, status=200, headers=OK):
    return Reply(status, json.dumps(body), headers)


PLAIN = SoakRequest(0, "plain", "/v1/completions", b"")
STREAM = SoakRequest(0, "plain", "/v1/completions", b"", stream=True)
REFUSED = SoakRequest(0, "bad_field", "/v1/completions", b"", status=400)
ERROR = {"error": {"message": "no", "type": "t", "param": None, "code": None}}


@pytest.mark.parametrize(
    ("request_", "reply", "words"),
    [
        (PLAIN, whole(answer()), None),
        (PLAIN, whole(answer("", "stop")), None),
        (PLAIN, whole(answer("", "length")), "choice 0 is empty"),
        (PLAIN, whole(answer(reason="abort")), "finish reason 'abort'"),
        (PLAIN, whole(answer(index=1)), "not the indices of 1 choices"),
        (PLAIN, whole(answer(usage=(3, 0, 3))), "usage is"),
        (PLAIN, whole(answer(usage=(3, 2, 6))), "usage is"),
        (PLAIN, whole({"choices": []}), "not the indices"),
        (PLAIN, whole({}), "malformed reply (KeyError"),
        (PLAIN, Reply(200, "", OK), "malformed reply"),
        (PLAIN, whole(answer(), headers={}), "no x-request-id"),
        (PLAIN, whole(ERROR, status=500), "status 500, not 200"),
        (REFUSED, whole(ERROR, status=400), None),
        (REFUSED, whole(answer()), "status 200, not 400"),
        (REFUSED, whole({"error": {"message": "no"}}, status=400), "not the error body"),
        (REFUSED, whole({"detail": "no"}, status=400), "malformed reply"),
    ],
)
def test_faults_of_whole_replies(request_, reply, words):
    found = fault(request_, reply)
    assert found is None if words is None else words in (found or "")


def chunk(text, reason=None, index=0, id_="x"):
    return {"id": id_, "choices": [{"index": index, "text": text, "finish_reason": reason}], "usage": None}


USAGE = {"id": "x", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}


def events(*payloads, end="data: [DONE]\n\n"):
    return Reply(200, "".join(f"data: {json.dumps(one)}\n\n" for one in payloads) + end, OK)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (events(chunk("a"), chunk("b", "length"), USAGE), None),
        (Reply(200, ": keep-alive\n\n" + events(chunk("b", "stop"), USAGE).text, OK), None),
        (events(chunk("a"), USAGE, end=""), "does not end with [DONE]"),
        (events(chunk("a"), USAGE), "finish reasons are {}"),
        (events(chunk("a", "stop"), chunk("b", "stop"), USAGE), "finish reasons are"),
        (events(chunk("a", "stop"), chunk("b", index=1), USAGE), "finish reasons are"),
        (events(chunk("a", "stop", index=1), USAGE), "not the indices"),
        (events(chunk("a"), chunk("b", "stop", id_="y"), USAGE), "different ids"),
        (events(chunk("a"), ERROR), "error in the stream"),
        (events(chunk("", "length"), USAGE), "choice 0 is empty"),
        (events(chunk("a", "stop")), "malformed reply"),
        (Reply(200, "", OK), "does not end"),
    ],
)
def test_faults_of_streams(reply, words):
    found = fault(STREAM, reply)
    assert found is None if words is None else words in (found or "")


def sample(finished, mebibytes, health=200):
    return Sample(0.0, finished, mebibytes * 2**20, health)


def test_memory_is_judged_after_the_warm_up():
    grown = [sample(number, 500 if number < 20 else 1000 + number) for number in range(60)]
    assert flatness(grown, 20).passed
    assert not flatness(grown, 0).passed
    assert not flatness(grown, 55).passed  # five samples say nothing


def test_a_level_that_rises_fails_and_a_spike_does_not():
    level = [sample(number, 1000) for number in range(90)]
    assert flatness([*level, *[sample(90, 1051)] * 10], 0).passed is False
    assert flatness([*level, *[sample(90, 1049)] * 10], 0).passed
    spiked = flatness([*level, *[sample(90, 1500)] * 4, *[sample(90, 1000)] * 6], 0)
    assert spiked.passed
    assert "peak 1500" in spiked.detail


def row(number, outcome, fault_=None):
    return Row(number, "plain", "/v1/completions", False, 200, 0.1, outcome, fault_)


def test_lost_and_wrong_answers_fail():
    rows = [row(0, "ok"), row(1, "left")]
    assert answered(rows, 2).passed
    assert not answered(rows, 3).passed
    wrong = answered([*rows, row(2, "wrong", "empty")], 3)
    assert not wrong.passed
    assert "request 2 (plain): empty" in wrong.detail


def test_health_must_have_answered_every_time():
    assert healthy([sample(0, 1)]).passed
    assert not healthy([sample(0, 1), sample(1, 1, None)]).passed
    assert not healthy([sample(0, 1, 503)]).passed
    assert not healthy([]).passed


def test_what_is_left_at_the_end():
    text = (
        '# HELP decoding:num_requests_running x\ndecoding:num_requests_running{model_name="m"} 0.0\n'
        'decoding:num_requests_waiting{model_name="m"} 0.0\ndecoding:kv_cache_usage_perc{model_name="m"} 0.0\n'
        'decoding:kv_cache_cached_slots{model_name="m"} 17.0\nprocess_open_fds 9.0\n'
    )
    metrics = parse_metrics(text)
    assert metrics["kv_cache_cached_slots"] == 17
    assert idle({"running": 0, "waiting": 0}, metrics).passed
    assert not idle({"running": 1, "waiting": 0}, metrics).passed
    assert not idle({"running": 0, "waiting": 0}, metrics | {"kv_cache_usage_perc": 0.001}).passed


async def slow(request: Request) -> JSONResponse:
    await request.body()
    await asyncio.sleep(0.2)
    return JSONResponse(answer(), headers=OK)


@pytest.fixture(scope="module")
def url():
    port = free_port()
    app = Starlette(routes=[Route("/v1/completions", slow, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({}, "ok"),
        ({"leaves_after": 5.0}, "ok"),
        ({"leaves_after": 0.05}, "left"),
        ({"leaves_after": 0.4, "half_body": True}, "left"),
        ({"status": 400}, "wrong"),
    ],
)
async def test_a_client_waits_or_leaves(url, fields, outcome):
    request = SoakRequest(1, "plain", "/v1/completions", b"{}", **fields)
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        assert (await exchange(client, request)).outcome == outcome


async def test_a_server_that_is_not_there_is_a_fault():
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{free_port()}", timeout=None) as client:
        found = await exchange(client, PLAIN)
    assert (found.outcome, found.status) == ("wrong", None)
    assert "ConnectError" in (found.fault or "")
