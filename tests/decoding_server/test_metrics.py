"""/metrics, and the requests behind its numbers: a small application over the scripted engine, on a real socket."""

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from scripted_server import TOKENIZER, make_runtime
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from decoding_server.api import metrics as metrics_route
from decoding_server.errors import answer_exception
from decoding_server.metrics import exposition
from decoding_server.observability import Observability, ObserveRequests, RequestObserver, observer_of
from decoding_server.request_context import RequestContext
from decoding_server.streaming import EventStream, unless_disconnected
from strategies.budget import Budget, Meter, Spend
from strategies.errors import DecodingError, InvalidRequest
from strategies.runtime import Delta, Generation, RuntimeStatus, StopConditions

STATUS = RuntimeStatus(
    state="ready",
    detail="",
    running=3,
    waiting=2,
    kv_slots=1000,
    kv_slots_used=700,
    kv_slots_cached=450,
    steps=40,
    prefix_cache_queries=300,
    prefix_cache_hits=120,
    preemptions=5,
    prompt_tokens=900,
    generation_tokens=80,
    iteration_tokens=860,
)
MODEL = {"model_name": "tiny"}
PHI = MODEL | {"strategy": "phi"}
STANDARD = MODEL | {"strategy": "standard"}


@dataclass
class AdmittedMeter(Meter):
    admitted: float | None = None


def samples(observability, accept="", parse=parse_text):
    """(name, labels) -> value of everything exposed."""
    observability.runtime.refresh()
    text = exposition(observability.registry, accept)[0].decode()
    return by_name(parse(text))


def by_name(families):
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(found, name, labels=MODEL):
    return found[f"decoding:{name}", frozenset(labels.items())]


def observability(status=STATUS, **options):
    return Observability("tiny", lambda: status, strategies=("phi", "rsd-s"), **options)


def test_the_runtimes_status():
    found = samples(observability(cache_config={"cache_dtype": "float32"}))
    assert value(found, "num_requests_running") == 3
    assert value(found, "num_requests_waiting") == 2
    assert value(found, "kv_cache_usage_perc") == 0.25
    assert value(found, "kv_cache_slots") == 1000
    assert value(found, "prefix_cache_queries_total") == 300
    assert value(found, "prefix_cache_hits_total") == 120
    assert value(found, "num_preemptions_total") == 5
    assert value(found, "prompt_tokens_total") == 900
    assert value(found, "generation_tokens_total") == 80
    assert value(found, "iteration_tokens_total_sum") == 860
    assert value(found, "iteration_tokens_total_count") == 40
    config = {"block_size": "1", "num_gpu_blocks": "1000", "cache_dtype": "float32"}
    assert value(found, "cache_config_info", MODEL | config) == 1
    states = {state: value(found, "engine_state", MODEL | {"state": state}) for state in ("ready", "dead", "draining")}
    assert states == {"ready": 1, "dead": 0, "draining": 0}
    assert found["process_resident_memory_bytes", frozenset()] > 1e6


async def test_status_is_read_at_each_scrape_and_zero_slots_are_no_division():
    status = replace(STATUS, kv_slots=0, kv_slots_used=0, kv_slots_cached=0)
    states = iter([status, replace(status, running=1), replace(status, running=7, state="dead")])
    seen = Observability("tiny", lambda: next(states))  # the first is taken at once
    first, second = [by_name(parse_text((await seen.exposition())[0].decode())) for _ in range(2)]
    assert value(first, "kv_cache_usage_perc") == 0
    assert [value(found, "num_requests_running") for found in (first, second)] == [1, 7]
    assert value(second, "engine_state", MODEL | {"state": "dead"}) == 1


def test_two_applications_share_nothing():
    one, other = observability(), observability()
    one.begin("a", "completions").failed(500)
    failure = ("decoding:request_failures_total", frozenset((MODEL | {"strategy": "other", "status": "500"}).items()))
    assert samples(one)[failure] == 1
    assert failure not in samples(other)


def finish(observer, meter, choices=((4, "stop"),), strategy="phi"):
    observer.described("tiny", strategy, n=len(choices))
    observer.submitted(meter, prompt_tokens=7, choices=len(choices))
    meter.admitted = time.monotonic()
    for choice, (tokens, reason) in enumerate(choices):
        for _ in range(tokens):
            observer.delta(choice, Delta(tokens=[1]))
        observer.delta(choice, Delta(finish_reason=reason))
    observer.finished()


def test_speculation():
    seen = observability()
    spend = Spend(target_tokens=30, rounds=5, drafted_tokens=20, accepted_tokens=9, accepted_by_level=[5, 3, 1])
    for _ in range(2):
        finish(seen.begin("a", "completions"), AdmittedMeter(spend=spend), strategy="rsd-s")
    found, labels = samples(seen), MODEL | {"strategy": "rsd-s"}
    assert value(found, "spec_decode_num_drafts_total", labels) == 10
    assert value(found, "spec_decode_num_draft_tokens_total", labels) == 40
    assert value(found, "spec_decode_num_accepted_tokens_total", labels) == 18
    levels = [value(found, "spec_decode_num_accepted_tokens_per_pos_total", labels | {"position": p}) for p in "012"]
    assert levels == [10, 6, 2]


def test_a_finished_request():
    seen = observability()
    observer = seen.begin("a", "completions")
    meter = AdmittedMeter(spend=Spend(target_tokens=11, output_tokens=9, forward_passes=5, flops=2e9))
    finish(observer, meter, [(4, "stop"), (3, "length")])
    found = samples(seen)
    assert value(found, "request_success_total", PHI | {"finished_reason": "length"}) == 1
    assert value(found, "request_success_total", PHI | {"finished_reason": "stop"}) == 0
    assert value(found, "request_prompt_tokens_sum", PHI) == 7
    assert value(found, "request_generation_tokens_sum", PHI) == 7
    assert value(found, "time_to_first_token_seconds_count", PHI) == 1
    assert value(found, "inter_token_latency_seconds_count", PHI) == 5  # 3 gaps in one choice, 2 in the other
    assert value(found, "e2e_request_latency_seconds_count", PHI) == 1
    for phase in ("queue", "prefill", "decode"):
        assert value(found, f"request_{phase}_time_seconds_count", PHI) == 1
    assert value(found, "estimated_flops_per_gpu_total", PHI) == 2e9
    assert value(found, "forward_tokens_total", PHI) == 11
    assert value(found, "explored_tokens_total", PHI) == 9
    assert value(found, "committed_tokens_total", PHI) == 7
    assert value(found, "budget_exhausted_total", PHI | {"unit": "flops"}) == 0
    assert value(found, "request_success_total", STANDARD | {"finished_reason": "stop"}) == 0


def test_tokens_that_come_together_share_their_time():
    seen = observability()
    observer = seen.begin("a", "completions")
    observer.described("tiny", "phi")
    observer.submitted(AdmittedMeter(), 1, 1)
    observer.delta(0, Delta(tokens=[1, 2]))
    time.sleep(0.12)
    observer.delta(0, Delta(tokens=[3, 4, 5, 6]))
    found = samples(seen)
    assert value(found, "inter_token_latency_seconds_count", PHI) == 4
    assert 0.12 <= value(found, "inter_token_latency_seconds_sum", PHI) < 0.4
    assert value(found, "inter_token_latency_seconds_bucket", PHI | {"le": "0.025"}) == 0
    assert value(found, "inter_token_latency_seconds_bucket", PHI | {"le": "0.1"}) == 4


def test_a_budget_that_ends_a_request_is_counted_by_unit():
    seen = observability()
    meter = AdmittedMeter(Budget(flops=1.0), exhausted="flops")
    finish(seen.begin("a", "completions"), meter, [(2, "length")])
    found = samples(seen)
    assert value(found, "budget_exhausted_total", PHI | {"unit": "flops"}) == 1
    assert value(found, "budget_exhausted_total", PHI | {"unit": "seconds"}) == 0


def test_failed_and_cancelled_requests_count_their_cost_but_no_latency():
    seen = observability()
    for end in (lambda observer: observer.failed(500), RequestObserver.cancelled):
        observer = seen.begin("a", "completions")
        observer.described("tiny", "rsd-s")
        observer.submitted(AdmittedMeter(spend=Spend(target_tokens=5, flops=10.0)), 3, 1)
        observer.delta(0, Delta(tokens=[1]))
        end(observer)
        observer.finished()  # too late
    found = samples(seen)
    rsd = MODEL | {"strategy": "rsd-s"}
    assert value(found, "request_failures_total", rsd | {"status": "500"}) == 1
    assert value(found, "request_success_total", rsd | {"finished_reason": "abort"}) == 1
    assert value(found, "request_success_total", rsd | {"finished_reason": "stop"}) == 0
    assert value(found, "e2e_request_latency_seconds_count", rsd) == 0
    assert value(found, "estimated_flops_per_gpu_total", rsd) == 20
    assert value(found, "committed_tokens_total", rsd) == 2


def test_free_text_never_becomes_a_label():
    seen = observability()
    for name in ("no such strategy", 'x"} 1\nevil 1', "\ud800", ""):
        finish(seen.begin("a", "completions"), AdmittedMeter(), strategy=name)
    found = samples(seen)
    assert value(found, "request_success_total", MODEL | {"strategy": "other", "finished_reason": "stop"}) == 4
    assert {dict(labels).get("strategy") for _, labels in found} == {None, "standard", "other"}


def test_observing_a_delta_costs_little():
    """The limit is 20 us on a quiet machine; a noisy one gets the fastest of many rounds and some slack."""
    seen = observability()
    observer = seen.begin("a", "completions")
    observer.described("tiny", "phi")
    observer.submitted(AdmittedMeter(), 1, 1)
    delta, fastest = Delta(text="x", tokens=[1]), math.inf
    for _ in range(40):
        started = time.perf_counter()
        for _ in range(200):
            observer.delta(0, delta)
        fastest = min(fastest, (time.perf_counter() - started) / 200)
    assert fastest < 40e-6


PROMETHEUS_2 = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.1"
)


@pytest.mark.parametrize("accept", [PROMETHEUS_2, PROMETHEUS_3, "application/openmetrics-text"])
def test_openmetrics_has_the_same_names_and_values(accept):
    seen = observability()
    finish(seen.begin("a", "completions"), AdmittedMeter())
    body, content_type = exposition(seen.registry, accept)
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert body.endswith(b"# EOF\n")
    found, plain = by_name(parse_openmetrics(body.decode())), samples(seen)
    for name, labels in plain:
        if not name.startswith("process_"):
            assert found[name, labels] == plain[name, labels]


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/plain", "text/plain;version=1.0.0;escaping=underscores", "nonsense;;"]
)
def test_everything_else_gets_prometheus_text(accept):
    seen = observability()
    body, content_type = exposition(seen.registry, accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b"\ndecoding:num_requests_running{" in body
    assert value(by_name(parse_text(body.decode())), "num_requests_running") == 3


# ---------------------------------------------------------------------------------------------- over a real socket


async def create_completion(request: Request) -> Response:
    """A stand-in for the real endpoint with the calls that it makes: one request of n choices on the real engine."""
    observer, runtime = observer_of(request), request.app.state.runtime
    body = await request.json()
    if "prompt" not in body:
        raise InvalidRequest("no prompt", "prompt")
    prompt, n = TOKENIZER.encode(body["prompt"], add_special_tokens=False), body.get("n", 1)
    observer.described("tiny", body.get("strategy", "standard"), stream=bool(body.get("stream")), n=n)
    meter = AdmittedMeter(Budget())
    stopping = StopConditions(max_tokens=body.get("max_tokens", 50))
    generations = [Generation(prompt, stopping=stopping, branch=(i,), meter=meter) for i in range(n)]
    streams = runtime.submit(generations)
    observer.submitted(meter, len(prompt), n)

    def cancel():
        for stream in streams:
            stream.cancel()

    async def deltas():
        try:
            for choice, stream in enumerate(streams):
                async for delta in stream:
                    observer.delta(choice, delta)
                    yield {"text": delta.text}
                    if body.get("bug"):
                        raise ValueError("a bug")
        except DecodingError as error:
            observer.raised(error)
            raise

    async def whole():
        return [piece["text"] async for piece in deltas()]

    if body.get("stream"):
        return EventStream(deltas(), cancel, 15.0)
    try:
        answer = await unless_disconnected(request.receive, whole())
    finally:
        cancel()
    return Response(status_code=499) if answer is None else JSONResponse({"text": "".join(answer)})


@contextmanager
def observed_server(**options) -> Iterator[tuple[str, Observability]]:
    runtime = make_runtime()
    app = FastAPI()
    app.state.runtime = runtime
    app.state.observability = Observability("tiny", runtime.status, strategies=("phi",), **options)
    app.add_api_route("/v1/completions", create_completion, methods=["POST"], response_model=None)
    app.include_router(metrics_route.router)
    app.add_exception_handler(DecodingError, answer_exception)
    app.add_middleware(ObserveRequests, observability=app.state.observability)
    app.add_middleware(RequestContext)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.observability
    finally:
        server.should_exit = True
        thread.join()
        runtime.close()


@pytest.fixture
def live():
    with observed_server() as (url, seen):
        yield url, seen


def scrape(url, **options):
    response = httpx.get(url + "/metrics", timeout=30, **options)
    assert response.status_code == 200
    return response


def scraped(url, name, labels, expected):
    """Waits until the series has that value: a reply may be read before the server has closed its books."""
    deadline = time.monotonic() + 10
    while True:
        found = by_name(parse_text(scrape(url).text)).get((f"decoding:{name}", frozenset(labels.items())))
        if found == expected or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_counted(live, stream):
    url, _ = live
    body = {"prompt": "hello|", "n": 2, "stream": stream, "strategy": "phi"}
    assert httpx.post(url + "/v1/completions", json=body, timeout=30).status_code == 200
    assert scraped(url, "request_success_total", PHI | {"finished_reason": "stop"}, 1) == 1
    found = by_name(parse_text(scrape(url).text))
    assert value(found, "request_generation_tokens_sum", PHI) == 12  # 2 * ("hello" and the end)
    assert value(found, "request_prompt_tokens_sum", PHI) == 6
    assert value(found, "generation_tokens_total") == 12
    assert value(found, "estimated_flops_per_gpu_total", PHI) > 0
    assert (
        0 < value(found, "time_to_first_token_seconds_sum", PHI) <= value(found, "e2e_request_latency_seconds_sum", PHI)
    )


def test_refusals_are_counted_by_status(live):
    url, _ = live
    assert httpx.post(url + "/v1/completions", json={}, timeout=30).status_code == 400
    assert scraped(url, "request_failures_total", MODEL | {"strategy": "other", "status": "400"}, 1) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_failures_of_the_engine_are_counted(live, stream):
    url, _ = live
    response = httpx.post(url + "/v1/completions", json={"prompt": "!|", "stream": stream}, timeout=30)
    assert response.status_code == (200 if stream else 500)
    assert scraped(url, "request_failures_total", STANDARD | {"status": "500"}, 1) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_bugs_are_counted_as_failures(live, stream):
    url, _ = live
    body = {"prompt": "hello|", "stream": stream, "bug": True}
    assert httpx.post(url + "/v1/completions", json=body, timeout=30).status_code == (200 if stream else 500)
    assert scraped(url, "request_failures_total", STANDARD | {"status": "500"}, 1) == 1
    assert scraped(url, "request_success_total", STANDARD | {"finished_reason": "abort"}, 0) == 0


def test_clients_that_go_are_counted(live):
    url, _ = live
    body = {"prompt": "~|", "max_tokens": 400, "stream": True}
    with httpx.stream("POST", url + "/v1/completions", json=body, timeout=30) as response:
        next(response.iter_lines())
    assert scraped(url, "request_success_total", STANDARD | {"finished_reason": "abort"}, 1) == 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url + "/v1/completions", json=body | {"stream": False}, timeout=0.3)
    assert scraped(url, "request_success_total", STANDARD | {"finished_reason": "abort"}, 2) == 2
    assert scraped(url, "num_requests_running", MODEL, 0) == 0


def test_the_route_negotiates_and_selects(live):
    url, _ = live
    plain, open_ = scrape(url), scrape(url, headers={"accept": PROMETHEUS_2})
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert open_.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert "decoding:num_requests_running" in {name for name, _ in by_name(parse_openmetrics(open_.text))}
    selected = by_name(parse_text(scrape(url, params={"name[]": "decoding:num_requests_waiting"}).text))
    assert {name for name, _ in selected} == {"decoding:num_requests_waiting"}
