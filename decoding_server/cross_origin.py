"""Calls from web pages of other origins: which may make them, and what browsers may show of the answers."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from decoding_server.errors import Failure

EXPOSED = ("x-request-id", "openai-processing-ms", "retry-after", "x-should-retry")
"""Headers of a reply that a page may read."""


class CrossOrigin(CORSMiddleware):
    """Starlette's CORS, for all methods and headers, whose refusals have our error body."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=list(EXPOSED)
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return cross_origin_refused(bytes(response.body).decode(), kept).response()


def cross_origin_refused(reason: str, headers: dict[str, str] | None = None) -> Failure:
    """A preflight request for what `--cors-origin` does not allow."""
    message = f"This cross-origin request is not allowed: {reason}."
    return Failure(400, message, "invalid_request_error", None, "cross_origin_refused", headers or {})
