"""The answer to what can't be parsed, written without the parser's help."""

import asyncio
import json
import uuid
from typing import Protocol

from decoding_server.errors import Failure

MAX_HEAD_BYTES = 64 * 1024
"""Of one request: its first line and its headers."""

MALFORMED = Failure(400, "The request is not valid HTTP.", "invalid_request_error", None, "invalid_http")
HEAD_TOO_LARGE = Failure(
    431,
    f"The request's first line and headers are larger than {MAX_HEAD_BYTES} bytes.",
    "invalid_request_error",
    None,
    "headers_too_large",
)
TOO_SLOW = Failure(408, "The request did not arrive in time.", "invalid_request_error", None, "request_timeout")
PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class Cycle(Protocol):
    """What uvicorn knows of a request and its answer."""

    disconnected: bool
    message_event: asyncio.Event


def refuse(transport: asyncio.Transport, failure: Failure, unfinished: Cycle | None = None) -> None:
    """Answers with an error and closes, since nobody knows where the next request would begin.

    unfinished: the request whose body is at fault. Its application is told that the client has gone.
    """
    if unfinished is not None:
        unfinished.disconnected = True
        unfinished.message_event.set()
    body = json.dumps(failure.body()).encode()
    head = [
        f"HTTP/1.1 {failure.status} {PHRASES[failure.status]}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        f"x-request-id: req_{uuid.uuid4().hex}",
        "openai-processing-ms: 0",
    ]
    transport.write("\r\n".join([*head, "", ""]).encode() + body)
    transport.close()
