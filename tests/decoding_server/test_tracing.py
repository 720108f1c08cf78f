"""Traces: spans as a real OTLP/HTTP collector receives them, and as the SDK holds them in memory."""

import http.server
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from decoding_server.observability import MAX_PHASES, Observability, ObserveRequests
from decoding_server.tracing import Tracing, check_endpoint
from strategies.budget import Budget, Meter, Spend
from strategies.runtime import Delta, RuntimeStatus

STATUS = RuntimeStatus("ready", "", 0, 0, 10, 0, 0, 0)


def test_without_an_endpoint_nothing_is_imported_and_nothing_kept():
    program = """
import sys
from decoding_server.observability import Observability
from strategies.budget import Meter
from strategies.runtime import Delta
seen = Observability("tiny", lambda: __import__("strategies.runtime").runtime.RuntimeStatus("ready", "", *[0] * 6))
class Admitted(Meter):
    admitted = None
observer = seen.begin("a", "completions", {"traceparent": "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"})
observer.submitted(Admitted(), 1, 1)
observer.phase("verify", 1.0, 2.0)
observer.delta(0, Delta(tokens=[1], finish_reason="stop"))
observer.finished()
seen.close()
print([name for name in sys.modules if name.startswith("opentelemetry")], observer.record.phases)
print(observer.record.trace_context)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert output.stdout == "[] []\n{}\n"


@pytest.mark.parametrize("endpoint", ["", "collector:4318", "grpc://collector:4317", "http://", "http:///v1/traces"])
def test_an_unusable_endpoint_is_refused(endpoint):
    with pytest.raises(ValueError, match="must be the http or https URL"):
        check_endpoint(endpoint)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.setattr("importlib.util.find_spec", find_spec_without_opentelemetry)
    with pytest.raises(ValueError, match=r"pip install 'decoding-server\[otel\]'"):
        check_endpoint("http://collector:4318")


def find_spec_without_opentelemetry(name):
    raise ModuleNotFoundError(name)


TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@dataclass
class AdmittedMeter(Meter):
    admitted: float | None = None


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://collector/otlp/v1/traces", "https://collector/otlp/v1/traces"),
    ],
)
def test_the_collectors_url(endpoint, url):
    assert check_endpoint(endpoint) == url


class Traced:
    """An observed application whose spans stay in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(self.exporter)
        self.observability = Observability("tiny", lambda: STATUS, strategies=("phi",), tracing=self.tracing)

    def begin(self, **headers):
        return self.observability.begin("req_1", "chat.completions", headers)

    def spans(self):
        """By name; a request's own is "root"."""
        self.tracing.flush()
        finished = self.exporter.get_finished_spans()
        return {"root" if span.kind is SpanKind.SERVER else span.name: span for span in finished}


@pytest.fixture
def traced():
    observed = Traced()
    yield observed
    observed.observability.close()


def run(observer, meter=None, delta_seconds=0.0):
    """A request that waits, computes its prompt, and generates five tokens."""
    meter = meter or AdmittedMeter(spend=Spend(target_tokens=12, cached_tokens=3, forward_passes=6, flops=1e6))
    observer.described("tiny", "phi", stream=True, n=1, max_tokens=50, temperature=0.5, top_p=0.9)
    observer.submitted(meter, 10, 1)
    time.sleep(delta_seconds)
    meter.admitted = time.monotonic()
    for _ in range(4):
        time.sleep(delta_seconds)
        observer.delta(0, Delta(tokens=[1]))
    observer.delta(0, Delta(tokens=[1], finish_reason="stop"))
    return observer


def test_a_request_and_its_phases(traced):
    before = time.time_ns()
    observer = run(traced.begin(), delta_seconds=0.02)
    observer.finished()
    spans = traced.spans()
    assert set(spans) == {"root", "queue", "prefill", "decode"}
    root = spans["root"]
    assert root.name == "chat.completions tiny"
    assert root.parent is None
    assert f"{root.context.trace_id:032x}" == observer.record.trace_id
    assert root.status.status_code is StatusCode.UNSET
    attributes = dict(root.attributes)
    assert attributes["gen_ai.request.id"] == "req_1"
    assert attributes["gen_ai.request.max_tokens"] == 50
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.request.top_p"] == 0.9
    assert attributes["gen_ai.request.n"] == 1
    assert attributes["gen_ai.usage.prompt_tokens"] == 10
    assert attributes["gen_ai.usage.completion_tokens"] == 5
    assert attributes["gen_ai.latency.time_in_queue"] >= 0.02
    assert attributes["gen_ai.latency.time_to_first_token"] >= 0.04
    assert attributes["gen_ai.latency.e2e"] >= 0.1
    assert attributes["decoding.strategy"] == "phi"
    assert attributes["decoding.target_tokens"] == 12
    assert attributes["decoding.finish_reasons"] == "stop"
    assert attributes["http.response.status_code"] == 200
    for child in ("queue", "prefill", "decode"):
        assert spans[child].parent.span_id == root.context.span_id
        assert root.start_time <= spans[child].start_time <= spans[child].end_time <= root.end_time
    assert spans["queue"].end_time == spans["prefill"].start_time
    assert spans["prefill"].end_time == spans["decode"].start_time
    assert spans["decode"].end_time - spans["decode"].start_time >= 60e6
    assert spans["prefill"].attributes["decoding.cached_tokens"] == 3
    assert spans["decode"].attributes["decoding.completion_tokens"] == 5
    assert before <= root.start_time <= root.end_time <= time.time_ns() + 1_000_000
    assert root.resource.attributes["service.name"] == "decoding-server"


def test_the_callers_trace_is_continued(traced):
    run(traced.begin(traceparent=TRACEPARENT, tracestate="vendor=1")).finished()
    spans = traced.spans()
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    assert f"{spans['root'].parent.span_id:016x}" == PARENT
    assert spans["root"].context.trace_state.get("vendor") == "1"


def test_a_caller_that_does_not_sample_is_obeyed(traced):
    observer = run(traced.begin(traceparent=TRACEPARENT[:-1] + "0"))
    observer.finished()
    assert traced.spans() == {}
    assert observer.record.trace_id == TRACE


@pytest.mark.parametrize(
    "header", ["", "nonsense", TRACEPARENT[:-5], f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "\x00" * 55]
)
def test_a_malformed_traceparent_starts_a_trace_of_our_own(traced, header):
    run(traced.begin(traceparent=header)).finished()
    root = traced.spans()["root"]
    assert root.parent is None
    assert f"{root.context.trace_id:032x}" != TRACE


@pytest.mark.parametrize(("status", "code"), [(400, StatusCode.UNSET), (500, StatusCode.ERROR)])
def test_only_the_servers_own_failures_are_errors(traced, status, code):
    observer = traced.begin()
    observer.close(status, client_gone=False)
    spans = traced.spans()
    assert set(spans) == {"root"}
    assert spans["root"].status.status_code is code
    assert spans["root"].attributes["http.response.status_code"] == status


def test_a_request_that_ended_in_the_queue_has_no_further_phase(traced):
    observer = traced.begin()
    observer.described("tiny", "phi")
    observer.submitted(AdmittedMeter(Budget()), 10, 1)
    observer.cancelled()
    spans = traced.spans()
    assert set(spans) == {"root", "queue"}
    assert spans["root"].attributes["decoding.outcome"] == "cancelled"
    assert spans["queue"].end_time <= spans["root"].end_time


def test_phases_of_a_strategy(traced):
    observer = traced.begin()
    now = time.monotonic()
    for step in range(MAX_PHASES + 10):
        observer.phase("verify", now, now + 0.001, tokens=step)
    run(observer).finished()
    traced.tracing.flush()
    verify = [span for span in traced.exporter.get_finished_spans() if span.name == "verify"]
    assert [span.attributes["decoding.tokens"] for span in verify] == list(range(MAX_PHASES))
    assert traced.spans()["root"].attributes["decoding.phases_dropped"] == 10


async def test_the_middleware_takes_the_context_from_the_headers(traced):
    async def application(scope, receive, send):
        run(scope["state"]["observer"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def nothing(message=None):
        return {"type": "http.request"}

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "state": {"request_id": "r"}}
    scope["headers"] = [(b"traceparent", TRACEPARENT.encode()), (b"authorization", b"Bearer SECRET")]
    await ObserveRequests(application, traced.observability)(scope, nothing, nothing)
    root = traced.spans()["root"]
    assert f"{root.context.trace_id:032x}" == TRACE
    assert root.attributes["gen_ai.request.id"] == "r"
    assert not any("SECRET" in str(attribute) for attribute in root.attributes.values())


class Collector(http.server.ThreadingHTTPServer):
    """A real OTLP/HTTP receiver; `delay` makes it one that hangs."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.received: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()
        self.delay = delay
        threading.Thread(target=self.serve_forever, daemon=True).start()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-type"] == "application/x-protobuf"
            time.sleep(self.server.delay)
            self.server.received.append(ExportTraceServiceRequest.FromString(body))
            self.server.paths.add(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *arguments):
            pass

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def spans(self):
        return [
            (resource, span)
            for request in self.received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def test_a_collector_receives_the_spans():
    collector = Collector()
    try:
        tracing = Tracing.to(collector.url)
        seen = Observability("tiny", lambda: STATUS, tracing=tracing)
        run(seen.begin("req_9", "completions", {"traceparent": TRACEPARENT})).finished()
        seen.close()  # delivers
    finally:
        collector.shutdown()
        collector.server_close()
    assert collector.paths == {"/v1/traces"}
    spans = {span.name: (resource, span) for resource, span in collector.spans()}
    assert set(spans) == {"completions tiny", "queue", "prefill", "decode"}
    resource, root = spans["completions tiny"]
    assert root.trace_id.hex() == TRACE
    assert root.parent_span_id.hex() == PARENT
    assert all(span.parent_span_id == root.span_id for name, (_, span) in spans.items() if span is not root)
    attributes = {attribute.key: attribute.value for attribute in root.attributes}
    assert attributes["gen_ai.request.id"].string_value == "req_9"
    assert attributes["gen_ai.usage.completion_tokens"].int_value == 5
    assert attributes["gen_ai.request.temperature"].double_value == 0.5
    service = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert service["service.name"] == "decoding-server"


def test_a_collector_that_hangs_or_is_not_there_delays_neither_requests_nor_the_exit(monkeypatch):
    monkeypatch.setattr("decoding_server.tracing.CLOSE_SECONDS", 0.5)
    hanging = Collector(delay=20.0)
    gone = Collector()
    gone.shutdown()
    gone.server_close()
    try:
        for collector in (hanging, gone):
            seen = Observability("tiny", lambda: STATUS, tracing=Tracing.to(collector.url))
            started = time.monotonic()
            run(seen.begin("a", "completions")).finished()
            assert time.monotonic() - started < 5
            started = time.monotonic()
            seen.close()
            assert time.monotonic() - started < 10
    finally:
        hanging.shutdown()
        hanging.server_close()
