"""One line of JSON per request: what was asked, what it cost, how it ended. No prompt or answer text by default."""

import json
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TextIO

from decoding_server.request_record import RequestRecord

logger = logging.getLogger("decoding_server.requests")

MAX_NAME = 256
"""Characters of a string that is no prompt or answer; a client chooses some of them."""


class RequestLog:
    """Writes a record as a line. `log_prompts`: with the prompts' and the answers' text."""

    def __init__(self, log_prompts: bool = False) -> None:
        self.log_prompts = log_prompts

    def ended(self, record: RequestRecord) -> None:
        """Failures of the server are errors, everything else is information (the status tells)."""
        level = logging.ERROR if record.outcome == "failed" and (record.status or 500) >= 500 else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "%s", line(record, log_prompts=self.log_prompts))


def line(record: RequestRecord, *, log_prompts: bool = False) -> str:
    """The record as one line of ASCII JSON. Times are in seconds."""
    meter = record.meter
    seconds: dict[str, float | None] = {"total": record.seconds, "to_first_token": record.seconds_to_first_token}
    seconds |= {phase.name: phase.seconds for phase in record.engine_phases()}
    seconds |= record.phase_seconds
    entry: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.started_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        "id": record.id,
        "endpoint": record.endpoint,
        "model": record.model or None,
        "strategy": record.strategy or None,
        "stream": record.stream,
        "n": record.n,
        "status": record.status,
        "outcome": record.outcome,
        "client_disconnected": record.outcome == "cancelled",
        "finish_reasons": record.finish_reasons,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "budget": None if meter is None else _given(asdict(meter.budget)),
        "budget_exhausted": None if meter is None else meter.exhausted,
        "spent": None if meter is None else asdict(meter.spend),
        "seconds": {name: round(value, 6) for name, value in seconds.items() if value is not None},
    }
    entry |= _given({"key": record.key, "error": record.error, "trace_id": record.trace_id})
    clean = _clean(entry)
    if log_prompts:
        clean["prompts"] = list(record.prompts)
        clean["answers"] = ["".join(parts) for parts in record.answers]
    # ASCII: half a surrogate pair, a line separator or a terminal's control sequence comes out as an escape.
    return json.dumps(clean, separators=(",", ":"), allow_nan=False)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _clean(value: Any) -> Any:
    """What JSON can carry: not-a-number and infinity become null, long strings are cut, the rest is spelt out."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _clean(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return str(value)[:MAX_NAME]


def configure_request_log(stream: TextIO | None = None) -> None:
    """Sends the lines to `stream` (default stderr) bare: a prefix would make them something else than JSON."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
