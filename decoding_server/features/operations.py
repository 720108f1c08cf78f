"""Reference of what operators see: endpoints, configuration, metrics, errors and strategies, each from the code."""

from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry
from pydantic_core import PydanticUndefined
from starlette.exceptions import HTTPException

from decoding_server.config import ENV_PREFIX, ServerConfig
from decoding_server.cross_origin import cross_origin_refused
from decoding_server.errors import BodyTooLarge, Failure, InvalidField, KeyLimited, failure_of, unauthorized
from decoding_server.features.comparison import markdown_table
from decoding_server.features.routes import routes
from decoding_server.features.strategy_notes import documented
from decoding_server.metrics import STANDARD, KeyMetrics, ProgramMetrics, RequestMetrics, RuntimeCollector
from decoding_server.wire.refusal import HEAD_TOO_LARGE, MALFORMED, TOO_SLOW
from strategies.errors import (
    ContextLengthExceeded,
    ModelNotFound,
    QueueFull,
    RequestFailed,
    RuntimeUnavailable,
)
from strategies.runtime import RuntimeStatus

LIMITS = (
    "max_n",
    "max_prompts",
    "max_logprobs",
    "max_stop",
    "max_body",
    "max_waiting",
    "max_model_len",
    "max_num_seqs",
)


def endpoints() -> str:
    rows = [[f"`{route.name}`", route.summary] for route in routes()]
    return markdown_table(["route", "what it does"], rows)


def limits() -> str:
    """The settings that bound a request."""
    return _settings(LIMITS)


def settings() -> str:
    """All settings."""
    return _settings(tuple(ServerConfig.model_fields))


def _settings(names: tuple[str, ...]) -> str:
    rows = []
    for name in names:
        field = ServerConfig.model_fields[name]
        flag = "MODEL" if name == "model" else "--" + name.replace("_", "-")
        rows.append(
            [f"`{flag}`", f"`{ENV_PREFIX}{name.upper()}`", _default(field.get_default()), field.description or ""]
        )
    return markdown_table(["flag", "environment", "default", "meaning"], rows)


def _default(value: Any) -> str:
    return (
        "–"
        if value in (None, [], {}, PydanticUndefined)
        else str(value).lower()
        if value in (True, False)
        else str(value)
    )


def errors() -> str:
    """Every failure that the server distinguishes, as it maps it."""
    failures = [
        failure_of(InvalidField("a value is out of range, or does not go with another field", "…")),
        failure_of(InvalidField("a value has the wrong type", "…", "invalid_type")),
        failure_of(InvalidField("a field is missing", "…", "missing_required_parameter")),
        failure_of(
            InvalidField("this server, model or configuration can't honour a field", "…", "unsupported_parameter")
        ),
        failure_of(InvalidField("strict mode: a field that the server doesn't know", "…", "unknown_parameter")),
        failure_of(InvalidField("the body is not a JSON object", None, "invalid_json")),
        failure_of(ContextLengthExceeded("prompt and max_tokens do not fit the context", "…")),
        replace(cross_origin_refused(""), message="`--cors-origin` does not allow what a browser asks beforehand"),
        MALFORMED,
        unauthorized(),
        failure_of(ModelNotFound("the model is not served here")),
        failure_of(HTTPException(404)),
        failure_of(HTTPException(405)),
        TOO_SLOW,
        failure_of(BodyTooLarge("the body is larger than max_body")),
        failure_of(QueueFull("the queue is full", 1.0)),
        failure_of(KeyLimited("the API key's limit of requests, tokens or share of the queue is reached", 1.0)),
        failure_of(KeyLimited("the API key's tokens of a day are used up", 1.0, quota=True)),
        HEAD_TOO_LARGE,
        failure_of(RequestFailed("a fault in this request alone, such as logits that are not numbers")),
        Failure(500, "a fault of the server", "server_error", None, "internal_error", {"x-should-retry": "false"}),
        failure_of(RuntimeUnavailable("the model loads, the server drains, or the engine has died")),
    ]
    rows = [
        [str(one.status), f"`{one.code}`", f"`{one.type}`", one.message, ", ".join(f"`{name}`" for name in one.headers)]
        for one in failures
    ]
    return markdown_table(["status", "code", "type", "when", "headers"], rows)


def metrics() -> str:
    """The series of GET /metrics, apart from the process's own."""
    registry_ = CollectorRegistry()
    status = RuntimeStatus("ready", "", 0, 0, 0, 0, 0, 0)
    registry_.register(RuntimeCollector("", lambda: status, {}))
    series = RequestMetrics(registry_, "").of(STANDARD)
    series.failures(400)  # a series with labels of its own shows on first use
    series.accepted_at(0)
    ProgramMetrics(registry_, "").searched("", 0, 1)
    KeyMetrics(registry_, "").of("")
    rows = []
    for family in registry_.collect():
        suffix = "_total" if family.type == "counter" else ""
        labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
        rows.append([f"`{family.name}{suffix}`", family.type, ", ".join(labels), family.documentation])
    return markdown_table(["name", "type", "labels", "meaning"], sorted(rows))


def strategies() -> str:
    """Built-in strategies that requests can name; plug-ins are not listed."""
    return markdown_table(
        ["name", "slot of `decoding`", "what it does", "runtimes"],
        [[f"`{one.name}`", f"`{one.slot}`", one.summary, ", ".join(one.runtimes)] for one in documented().values()],
    )
