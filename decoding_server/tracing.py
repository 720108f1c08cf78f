"""OpenTelemetry traces: a span per request and one per phase, sent to an OTLP/HTTP collector.

The packages are optional (`decoding-server[otel]`) and imported only when an endpoint is configured. Spans are made
from the finished record, with its times, so a running request pays nothing for them; and in a thread, since those of a
long search would hold up the event loop for tens of milliseconds.
"""

import importlib.util
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from decoding_server import __version__
from decoding_server.request_record import Phase, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

logger = logging.getLogger("decoding_server")

TRACE_HEADERS = ("traceparent", "tracestate")
"""W3C Trace Context; the only request headers that a trace takes in."""
EXPORT_TIMEOUT_SECONDS = 5.0
CLOSE_SECONDS = 5.0
"""How long the last spans may take to be delivered when the server stops."""


def check_endpoint(endpoint: str) -> str:
    """The full URL of the collector's traces: `/v1/traces` is added to one without a path.

    Raises ValueError with one line for a URL that can't be used, and when the packages are not installed.
    """
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("must be the http or https URL of an OTLP collector, such as http://collector:4318")
    if not _installed():
        raise ValueError("traces need the OpenTelemetry packages: pip install 'decoding-server[otel]'")
    return endpoint if url.path.strip("/") else url._replace(path="/v1/traces").geturl()


def _installed() -> bool:
    """Whether the packages are there; looks without importing them."""
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


class Tracing:
    """Turns records into spans and exports them, in batches, from threads of its own."""

    def __init__(self, exporter: "SpanExporter", service_name: str = "decoding-server") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": service_name, "service.version": __version__})
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # not the process's global one
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self.provider.get_tracer("decoding_server", __version__)
        self.emitter = ThreadPoolExecutor(1, "traces")

    @classmethod
    def to(cls, endpoint: str) -> "Tracing":
        """Exports to an OTLP/HTTP collector. Raises ValueError, see `check_endpoint`.

        Headers, compression, certificates and sampling come from OpenTelemetry's own environment variables.
        """
        url = check_endpoint(endpoint)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return cls(OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT_SECONDS))

    def flush(self) -> None:
        """Exports everything that has ended so far. Blocks."""
        self.emitter.submit(self.provider.force_flush).result()

    def close(self) -> None:
        """Delivers what is left, within `CLOSE_SECONDS`. Blocks: call it off the event loop."""

        def deliver() -> None:
            self.emitter.shutdown()
            self.provider.shutdown()

        # A daemon thread, for the library itself would wait half a minute for a collector that hangs.
        closing = threading.Thread(target=deliver, name="close-traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def ended(self, record: RequestRecord) -> None:
        """Emits the request's spans, as children of the caller's where it sent a traceparent; notes the trace's id."""
        from opentelemetry.trace import SpanKind

        root = self.tracer.start_span(
            f"{record.endpoint} {record.model}".rstrip(),
            context=remote_context(record.trace_context),
            kind=SpanKind.SERVER,
            start_time=record.started_ns,
        )
        context = root.get_span_context()
        if context.is_valid:
            record.trace_id = f"{context.trace_id:032x}"
        if root.is_recording():
            self.emitter.submit(self._finish, record, root)

    def _finish(self, record: RequestRecord, root: "Span") -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        try:
            root.set_attributes(request_attributes(record))
            inside = set_span_in_context(root)
            for phase in (*record.engine_phases(), *record.phases):
                self._emit(record, phase, inside)
            if record.outcome == "failed" and (record.status or 500) >= 500:
                root.set_status(Status(StatusCode.ERROR, record.error))
            root.end(_nanoseconds(record, record.started + record.seconds))
        except Exception:  # a thread's exception would vanish in its future
            logger.exception("request %s could not be traced", record.id)

    def _emit(self, record: RequestRecord, phase: Phase, context: "Context") -> None:
        attributes = {f"decoding.{name}": value for name, value in phase.attributes.items()}
        start = _nanoseconds(record, phase.started)
        span = self.tracer.start_span(phase.name, context=context, attributes=attributes, start_time=start)
        span.end(_nanoseconds(record, phase.started + phase.seconds))


def remote_context(headers: Mapping[str, str]) -> "Context | None":
    """The caller's span, from W3C headers. Malformed ones count as absent, as the standard says."""
    if not headers:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(headers)


def request_attributes(record: RequestRecord) -> dict[str, str | int | float | bool]:
    """The span's attributes: vLLM's `gen_ai` names, then what decoding cost. Only those that are known."""
    values: dict[str, str | int | float | bool | None] = {
        "gen_ai.request.id": record.id,
        "gen_ai.request.model": record.model or None,
        "gen_ai.request.max_tokens": record.max_tokens,
        "gen_ai.request.temperature": record.temperature,
        "gen_ai.request.top_p": record.top_p,
        "gen_ai.request.n": record.n,
        "gen_ai.usage.prompt_tokens": record.prompt_tokens,
        "gen_ai.usage.completion_tokens": record.completion_tokens,
        "gen_ai.latency.time_to_first_token": record.seconds_to_first_token,
        "gen_ai.latency.e2e": record.seconds,
        "http.response.status_code": record.status,
        "error.type": record.error,
        "decoding.strategy": record.strategy or None,
        "decoding.outcome": record.outcome,
        "decoding.stream": record.stream,
    }
    queue = next((phase for phase in record.engine_phases() if phase.name == "queue"), None)
    values["gen_ai.latency.time_in_queue"] = None if queue is None else queue.seconds
    reasons = [reason for reason in record.finish_reasons if reason is not None]
    values["decoding.finish_reasons"] = ",".join(reasons) or None
    if record.phases_dropped:
        values["decoding.phases_dropped"] = record.phases_dropped
    if record.meter is not None:
        spend = record.meter.spend
        values |= {
            "decoding.target_tokens": spend.target_tokens,
            "decoding.cached_tokens": spend.cached_tokens,
            "decoding.output_tokens": spend.output_tokens,
            "decoding.forward_passes": spend.forward_passes,
            "decoding.flops": spend.flops + spend.scorer_flops,
            "decoding.budget_exhausted": record.meter.exhausted,
        }
    return {name: value for name, value in values.items() if value is not None}


def _nanoseconds(record: RequestRecord, moment: float) -> int:
    """A monotonic time as nanoseconds since 1970."""
    return record.started_ns + round(1e9 * (moment - record.started))
