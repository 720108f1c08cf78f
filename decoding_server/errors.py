"""Every failure has one shape on the wire, and this is the one place where exceptions become statuses.

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}}

A deterministic fault is a 4xx, since clients retry 5xx by themselves; a 500 says `x-should-retry: false`, since work
was spent on it.
"""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from strategies.errors import (
    ContextLengthExceeded,
    DecodingError,
    InvalidRequest,
    ModelNotFound,
    ProgramsUnavailable,
    QueueFull,
    RequestFailed,
    RuntimeUnavailable,
)

logger = logging.getLogger("decoding_server")

LOADING_RETRY_SECONDS = 1


class InvalidField(InvalidRequest):
    """A field of the body is missing, of the wrong type, out of range or not supported; `code` says which."""

    def __init__(self, message: str, param: str | None = None, code: str | None = "invalid_value") -> None:
        super().__init__(message, param)
        self.code = code


class BodyTooLarge(DecodingError):
    """The body has more bytes than the server reads."""


class KeyLimited(DecodingError):
    """The API key may use no more for now; `retry_after` is in seconds. quota: it is the daily one, so that a client
    should not just wait."""

    def __init__(self, message: str, retry_after: float, *, quota: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.quota = quota


@dataclass(frozen=True, slots=True)
class Failure:
    """One error as the client sees it."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def failure_of(error: BaseException) -> Failure:
    """The answer to an exception. Only messages of our own hierarchy reach the client; others are logged."""
    match error:
        case ContextLengthExceeded():
            return Failure(400, str(error), "invalid_request_error", error.param, "context_length_exceeded")
        case InvalidField():
            return Failure(400, str(error), "invalid_request_error", error.param, error.code)
        case InvalidRequest():
            return Failure(400, str(error), "invalid_request_error", error.param, "invalid_value")
        case ModelNotFound():
            return Failure(404, str(error), "invalid_request_error", "model", "model_not_found")
        case BodyTooLarge():
            return Failure(413, str(error), "invalid_request_error", None, "request_too_large")
        case QueueFull():
            retry = {"retry-after": str(max(1, math.ceil(error.retry_after)))}
            return Failure(429, str(error), "rate_limit_error", None, "queue_full", retry)
        case KeyLimited():
            headers = {"retry-after": str(max(1, math.ceil(error.retry_after)))}
            if not error.quota:
                return Failure(429, str(error), "rate_limit_error", None, "rate_limit_exceeded", headers)
            headers["x-should-retry"] = "false"
            return Failure(429, str(error), "insufficient_quota", None, "insufficient_quota", headers)
        case ProgramsUnavailable():
            # Trying again does not help: it is the machine, or how the server was started.
            message = f"This server can't run programs: {error}"
            return Failure(
                503,
                message,
                "service_unavailable_error",
                "decoding.search",
                "sandbox_unavailable",
                {"x-should-retry": "false"},
            )
        case RuntimeUnavailable():
            retry = {"retry-after": str(LOADING_RETRY_SECONDS)}
            return Failure(503, str(error), "service_unavailable_error", None, "unavailable", retry)
        case RequestFailed():
            return Failure(500, str(error), "server_error", None, "request_failed", {"x-should-retry": "false"})
        case HTTPException():
            return _http_failure(error)
        case _:
            logger.error("unexpected failure", exc_info=error)
            return Failure(
                500,
                "The server had an internal error; its log has the details.",
                "server_error",
                None,
                "internal_error",
                {"x-should-retry": "false"},
            )


def _http_failure(error: HTTPException) -> Failure:
    """What the router raises: unknown route, wrong method."""
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return Failure(404, "There is no such route.", "invalid_request_error", None, "unknown_url", headers)
    if error.status_code == 405:
        message = "This route does not answer that method."
        return Failure(405, message, "invalid_request_error", None, "method_not_allowed", headers)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    return Failure(error.status_code, str(error.detail), kind, None, None, headers)


def unauthorized() -> Failure:
    """No key, or a wrong one."""
    message = "Incorrect or missing API key. Send it as 'Authorization: Bearer KEY'."
    headers = {"www-authenticate": "Bearer"}
    return Failure(401, message, "invalid_request_error", None, "invalid_api_key", headers)


async def answer_exception(request: Request, error: Exception) -> JSONResponse:
    """Exception handler for the whole application."""
    return failure_of(error).response()
