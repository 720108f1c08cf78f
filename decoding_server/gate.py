"""The outermost door: closed while the model loads, open, then closed to new requests while running ones finish."""

import asyncio
import time
from collections.abc import Collection

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from decoding_server.auth import OPEN_PATHS
from decoding_server.errors import failure_of
from decoding_server.request_context import in_context
from strategies.errors import RuntimeUnavailable

ALWAYS_ANSWERED = OPEN_PATHS | {"/metrics"}
"""What probes and Prometheus ask goes on during a drain (behind the key guard as ever)."""


class Gate:
    """An ASGI application that can be listened to before the model is there, and drained before it goes.

    origins: whose pages may read its refusals.
    """

    def __init__(self, origins: Collection[str] = ()) -> None:
        self.app: ASGIApp | None = None
        self.draining = False
        self.running = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.refusal = in_context(self._refuse, origins)

    def open(self, app: ASGIApp) -> None:
        self.app = app

    async def drain(self, timeout: float) -> bool:
        """Refuses new requests from now on. True once the running ones have finished, False after `timeout` seconds."""
        self.draining = True
        deadline = time.monotonic() + timeout
        while self.running:
            self.idle.clear()
            try:
                await asyncio.wait_for(self.idle.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return False
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self.app is None:
            await self.refusal(scope, receive, send)
        elif scope["path"] in ALWAYS_ANSWERED:
            await self.app(scope, receive, send)
        elif self.draining:
            await self.refusal(scope, receive, send)
        else:
            self.running += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.running -= 1
                if not self.running:
                    self.idle.set()

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """503: a client that waits a second may be served by then, or, after a drain, by another server."""
        if self.app is None and scope["path"] in ("/health", "/ping"):
            response = JSONResponse({"status": "loading", "detail": "the model is being loaded"}, status_code=503)
        else:
            reason = "The server is shutting down." if self.draining else "The model is being loaded."
            response = failure_of(RuntimeUnavailable(reason)).response()
            if self.draining:
                response.headers["connection"] = "close"
        await response(scope, receive, send)
