"""Server-sent events, and noticing that the client has gone."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from decoding_server.errors import failure_of

Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which clients skip; it keeps proxies from closing a connection on which a long search is silent."""


def event(payload: Mapping[str, Any]) -> bytes:
    """One event on one line. ASCII only: U+2028, U+2029 and U+0085 inside strings trip naive line splitters."""
    return b"data: " + json.dumps(payload, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of `work`, or None if the client went first, which cancels it. The body must have been read before."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await _cancelled(task, gone)


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """Sends payloads as events, then [DONE].

    A failure after the first byte is sent as an `error` event, since the status can't change any more. When the client
    goes, or the end is reached, `close` is called at once.
    """

    def __init__(
        self, payloads: AsyncIterator[Mapping[str, Any]], close: Callable[[], None], keep_alive_seconds: float
    ) -> None:
        self.payloads = payloads
        self.close = close
        self.keep_alive_seconds = keep_alive_seconds
        self.last_sent = 0.0
        self.status_code = 200
        self.background = None
        # x-accel-buffering: reverse proxies must pass events on as they come.
        self.init_headers(
            {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self.last_sent = time.monotonic()
            sending = asyncio.create_task(self._send_all(send))
            gone = asyncio.create_task(wait_for_disconnect(receive))
            pinging = asyncio.create_task(self._keep_alive(send))
            try:
                await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            finally:
                await _cancelled(sending, gone, pinging)
        finally:
            self.close()

    async def _send_all(self, send: Send) -> None:
        try:
            async for payload in self.payloads:
                await self._send(send, event(payload))
        except Exception as error:
            await self._send(send, event(failure_of(error).body()))
        await send({"type": "http.response.body", "body": DONE, "more_body": False})

    async def _send(self, send: Send, body: bytes) -> None:
        self.last_sent = time.monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _keep_alive(self, send: Send) -> None:
        while self.keep_alive_seconds:
            wait = self.last_sent + self.keep_alive_seconds - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            else:
                await self._send(send, KEEP_ALIVE)
        await asyncio.Event().wait()
