"""One object per request hears what happens to it, and hands that to metrics, log and traces.

`ObserveRequests` makes it, and says how the request ended; whoever runs the request calls `described`, `submitted` and,
for every delta, `delta`. Everything happens on the event loop.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol, cast

from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from decoding_server.key_limits import KeyPass
from decoding_server.metrics import OTHER, ProgramMetrics, RequestMetrics, RuntimeCollector, exposition
from decoding_server.request_log import RequestLog
from decoding_server.request_record import STATUS_CLIENT_GONE, Outcome, Phase, RequestMeter, RequestRecord
from decoding_server.tracing import TRACE_HEADERS, Tracing
from strategies.errors import RuntimeUnavailable
from strategies.runtime import Delta, RuntimeStatus

logger = logging.getLogger("decoding_server")

MAX_PHASES = 512
"""Spans a strategy may add to one request's trace: a search can have many thousand steps."""

ENDPOINTS = {
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat.completions",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
}
"""The routes whose requests are observed, and their names in the log and in traces."""


class RequestSink(Protocol):
    """Wants to know of every request, once it has ended."""

    def ended(self, record: RequestRecord) -> None: ...


class Observability:
    """What one application observes.

    model_name: label of every series. strategies: names that may be labels. cache_config: facts for
    `cache_config_info`. log_requests: a line each, with log_prompts their texts too. tracing: None switches traces off,
    and with them all their costs.
    """

    def __init__(
        self,
        model_name: str,
        status: Callable[[], RuntimeStatus],
        *,
        strategies: Iterable[str] = (),
        cache_config: Mapping[str, str] | None = None,
        log_requests: bool = True,
        log_prompts: bool = False,
        tracing: Tracing | None = None,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.runtime = RuntimeCollector(model_name, status, cache_config or {})
        self.registry.register(self.runtime)
        ProcessCollector(registry=self.registry)  # CPU, memory and file descriptors of this process
        self.metrics = RequestMetrics(self.registry, model_name, strategies)
        self.programs = ProgramMetrics(self.registry, model_name)
        self.log_prompts = log_requests and log_prompts
        self.tracing = tracing
        self.sinks: list[RequestSink] = []
        if tracing is not None:
            self.sinks.append(tracing)
        if log_requests:
            self.sinks.append(RequestLog(log_prompts))  # after traces: its line has the trace's id

    def begin(self, request_id: str, endpoint: str, headers: Mapping[str, str] | None = None) -> "RequestObserver":
        """A request has arrived. `headers`: its own, in lower case; traces take their context from them."""
        context = {}
        if self.tracing is not None and headers is not None:
            context = {name: headers[name] for name in TRACE_HEADERS if name in headers}
        return RequestObserver(self, RequestRecord(request_id, endpoint, trace_context=context))

    async def exposition(self, accept: str = "", names: Sequence[str] = ()) -> tuple[bytes, str]:
        """The metrics as of now, and their content type, see `metrics.exposition`. Written in a thread: with many
        strategies that takes some hundred milliseconds."""
        self.runtime.refresh()
        return await asyncio.to_thread(exposition, self.registry, accept, names)

    def close(self) -> None:
        """Delivers the last traces. Blocks for seconds at most: call it off the event loop."""
        if self.tracing is not None:
            self.tracing.close()


class RequestObserver:
    """The events of one request, in the order of the methods. It ends once: the first end counts."""

    __slots__ = ("_last", "_owner", "_series", "_unfinished", "leave", "record")

    def __init__(self, owner: Observability, record: RequestRecord) -> None:
        self._owner = owner
        self.record = record
        self.leave: KeyPass | None = None  # the API key's leave to run, where keys are set
        self._series = owner.metrics.of(OTHER)
        self._last: list[float] = []  # by choice, when its newest token came; 0.0 before the first
        self._unfinished = 0

    def described(
        self,
        model: str,
        strategy: str,
        *,
        stream: bool = False,
        n: int = 1,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> None:
        """The request is valid. `model` is a served name; a strategy that isn't registered shares one label."""
        record = self.record
        record.model, record.strategy, record.stream, record.n = model, strategy, stream, n
        record.max_tokens, record.temperature, record.top_p = max_tokens, temperature, top_p
        self._series = self._owner.metrics.of(strategy)

    def submitted(self, meter: RequestMeter, prompt_tokens: int, choices: int, prompts: Sequence[str] = ()) -> None:
        """The runtime has taken it. choices: those of the reply, over all prompts; 0 where nothing is generated."""
        record = self.record
        record.submitted = time.monotonic()
        record.meter = meter
        record.prompt_tokens = prompt_tokens
        record.finish_reasons = [None] * choices
        self._last = [0.0] * choices
        self._unfinished = choices
        if self._owner.log_prompts:
            record.prompts = prompts
            record.answers = [[] for _ in range(choices)]

    def delta(self, choice: int, delta: Delta) -> None:
        """A choice has grown, or ended."""
        record = self.record
        if count := len(delta.tokens):
            now = time.monotonic()
            before = self._last[choice]
            self._last[choice] = record.last_token = now
            record.completion_tokens += count
            if record.first_token is None:
                record.first_token = now
                self._series.first_token.observe(now - record.started)
            if before:
                self._series.tokens(now - before, count)
        if record.answers and delta.text:
            record.answers[choice].append(delta.text)
        if delta.finish_reason is not None and record.finish_reasons[choice] is None:
            record.finish_reasons[choice] = delta.finish_reason
            self._unfinished -= 1

    def called_tools(self, choice: int) -> None:
        """A choice that stopped has made calls: its reply says `tool_calls`, of which the runtime knows nothing."""
        self.record.finish_reasons[choice] = "tool_calls"

    def phase(self, name: str, started: float, ended: float, **attributes: str | int | float) -> None:
        """A strategy has spent `time.monotonic` seconds from `started` to `ended` on a phase: draft, verify, ..."""
        record, phase = self.record, Phase(name, started, ended, attributes)
        record.phase_seconds[name] = record.phase_seconds.get(name, 0.0) + phase.seconds
        if self._owner.tracing is None:
            return
        if len(record.phases) < MAX_PHASES:
            record.phases.append(phase)
        else:
            record.phases_dropped += 1

    def searched(self, strategy: str, duplicates: int, solved_at: int | None) -> None:
        """A search for programs has ended, see `ProgramMetrics.searched`."""
        self._owner.programs.searched(strategy, duplicates, solved_at)

    def raised(self, error: Exception) -> None:
        """Running it raised `error`. Of the error only its type is kept: its message may quote the prompt."""
        self.record.error = type(error).__name__
        self.record.status = 503 if isinstance(error, RuntimeUnavailable) else 500

    def finished(self, status: int = 200) -> None:
        """The whole answer was sent."""
        self._end("finished", status)

    def failed(self, status: int) -> None:
        """The answer is an error, or, after its beginning, has ended with one."""
        self._end("failed", status)

    def cancelled(self) -> None:
        """The client went away."""
        self._end("cancelled", STATUS_CLIENT_GONE)

    def close(self, status: int | None, client_gone: bool) -> None:
        """The exchange is over. status: of the reply, None if none began. An answer that began and is not whole has
        failed, since its status could not tell."""
        if client_gone or status == STATUS_CLIENT_GONE:
            self.cancelled()
        elif status is None or status >= 400:
            self.failed(status or self.record.status or 500)
        elif self._unfinished or self.record.error is not None:
            self.failed(self.record.status or 500)
        else:
            self.finished(status)

    def _end(self, outcome: Outcome, status: int) -> None:
        record = self.record
        if record.outcome is not None:
            return
        record.ended = time.monotonic()
        record.outcome, record.status = outcome, status
        for sink in (self._series, *self._owner.sinks):
            try:
                sink.ended(record)
            except Exception:  # observing must not change what the client gets
                logger.exception("request %s could not be recorded by %s", record.id, type(sink).__name__)


def observer_of(request: Request) -> RequestObserver:
    """The observer of a request to one of the observed routes."""
    return cast(RequestObserver, request.state.observer)


class ObserveRequests:
    """Middleware: one observer per POST to an observed route, in `request.state.observer`, closed with the exchange.

    Belongs inside `RequestContext`, which names the request, and outside everything that can refuse it.
    """

    def __init__(self, app: ASGIApp, observability: Observability, endpoints: Mapping[str, str] = ENDPOINTS) -> None:
        self.app = app
        self.observability = observability
        self.endpoints = endpoints

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self.endpoints.get(scope["path"].removeprefix(scope.get("root_path", "")))
            if endpoint is not None:
                return self._observe(endpoint, scope, receive, send)
        return self.app(scope, receive, send)

    async def _observe(self, endpoint: str, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        observer = self.observability.begin(state.get("request_id", ""), endpoint, Headers(scope=scope))
        state["observer"] = observer
        status: int | None = None
        complete = gone = False

        async def watched_receive() -> Message:
            nonlocal gone
            message = await receive()
            if message["type"] == "http.disconnect" and not complete:
                gone = True
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body"):
                complete = True
            await send(message)

        try:
            await self.app(scope, watched_receive, watched_send)
        except ClientDisconnect:
            gone = True
            raise
        except Exception as error:
            observer.raised(error)
            raise
        finally:
            observer.close(status, gone)
