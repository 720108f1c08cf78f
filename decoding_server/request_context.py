"""What every reply carries, whoever wrote it: a request id, the processing time, leave for other origins to read it,
and one shape for the unforeseen."""

import logging
import re
import time
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from decoding_server.cross_origin import CrossOrigin
from decoding_server.errors import failure_of

logger = logging.getLogger("decoding_server")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""A client's x-request-id is echoed when it looks like one; anything else is replaced (it goes to headers and logs)."""


def in_context(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """The application inside all of this module. origins: whose pages may call it."""
    app = AnswerUnforeseen(app)
    if origins:
        app = CrossOrigin(app, origins)
    return HeadAsGet(RequestContext(app))


class HeadAsGet:
    """Answers HEAD wherever GET is answered: load balancers probe with it. uvicorn sends no body then."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


class RequestContext:
    """Adds `x-request-id` (the client's or a new one) and `openai-processing-ms` (time to the first byte of the
    reply)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round(1000 * (time.monotonic() - started)))
            await send(message)

        await self.app(scope, receive, send_with_headers)


class AnswerUnforeseen:
    """An exception that nothing else has answered becomes a 500 here, or ends the connection if the reply had begun."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answered = False

        async def watched_send(message: Message) -> None:
            nonlocal answered
            answered = answered or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except ClientDisconnect:
            logger.debug("request %s: the client went away while sending its body", scope["state"]["request_id"])
        except Exception as error:
            logger.error("request %s failed: %s %s", scope["state"]["request_id"], scope["method"], scope["path"])
            if answered:
                raise
            await failure_of(error).response()(scope, receive, send)
