"""Whom a benchmark asks: a server over HTTP, or the same application in this process without a socket."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from fastapi import FastAPI

from decoding_server.config import ServerConfig
from strategies.errors import ContextLengthExceeded, DecodingError, QueueFull, RequestFailed
from strategies.runtime import Runtime

Record = dict[str, Any]
Load = Callable[[ServerConfig], Runtime]

HTTP_SECONDS = 3600.0
"""The longest a reply may take."""
PAUSES = (2.0, 10.0)
"""Seconds before the second and the third try."""
QUIET = {
    "log_requests": False,
    "playground": False,
    "metrics": "off",
    "api_key": [],
    "api_key_file": None,
    "otlp_endpoint": None,
}
"""Settings of the application in this process: nobody else can reach it."""


class Unusable(DecodingError):
    """Nothing can be asked like this: the request, the key or the model is wrong."""


class Endpoint:
    """model: the served name. extended: whether it takes `decoding` and reports what a request cost. app: the
    application, where it is in this process."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        model: str,
        *,
        extended: bool,
        app: FastAPI | None = None,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.client = client
        self.model = model
        self.extended = extended
        self.app = app
        self._close = close

    @classmethod
    async def connected(
        cls, base_url: str, model: str | None, api_key: str | None, limits: httpx.Limits | None = None
    ) -> "Endpoint":
        """base_url: with or without `/v1`. model: a served name, None for the server's first. Raises RequestFailed."""
        root = base_url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        client = httpx.AsyncClient(
            base_url=root,
            headers=headers,
            timeout=httpx.Timeout(HTTP_SECONDS, connect=10.0),
            limits=limits or httpx.Limits(max_connections=None),
        )
        try:
            reply = await client.get("/v1/models")
            reply.raise_for_status()
            served = [str(one["id"]) for one in reply.json()["data"]]
            if model is None and not served:
                raise ValueError("it serves no model")
            extended = await has_strategies(client)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            await client.aclose()
            raise RequestFailed(f"{root} does not answer as a server: {error}") from None
        if model is not None and model not in served:
            await client.aclose()
            raise RequestFailed(f"{root} does not serve {model!r}, but {served}")
        return cls(client, model or served[0], extended=extended)

    @classmethod
    async def in_process(cls, config: ServerConfig, load: Load) -> "Endpoint":
        """The model of the configuration, behind the server's own routes. Raises DecodingError."""
        from decoding_server.app import create_app

        runtime = await asyncio.to_thread(load, config)
        try:
            app = create_app(runtime, config.model_copy(update=QUIET))
        except BaseException:
            await asyncio.to_thread(runtime.close)
            raise
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://in-process", timeout=None)

        async def close() -> None:
            await app.state.service.close()
            await asyncio.to_thread(runtime.close)

        return cls(client, app.state.service.served_names[0], extended=True, app=app, close=close)

    async def close(self) -> None:
        """In this process also the runtime."""
        await self.client.aclose()
        if self._close is not None:
            await self._close()

    async def post(self, path: str, body: Record) -> Record:
        """The reply to a request that does not stream.

        Raises RequestFailed, QueueFull, ContextLengthExceeded, and Unusable for every other status below 500.
        """
        try:
            reply = await self.client.post(path, json=body)
        except httpx.HTTPError as error:
            raise RequestFailed(f"{type(error).__name__}: {error}") from None
        if reply.status_code != 200:
            raise refused(reply.status_code, reply.text)
        try:
            found = reply.json()
        except ValueError:
            raise RequestFailed(f"not JSON: {reply.text[:200]}") from None
        if not isinstance(found, dict):
            raise RequestFailed(f"no object: {reply.text[:200]}")
        return found

    async def tokens(self, messages: list[Record]) -> int:
        """How many tokens a conversation takes as a prompt. Raises as `post`."""
        found = await self.post("/tokenize", {"model": self.model, "messages": messages})
        return int(found["count"])


async def has_strategies(client: httpx.AsyncClient) -> bool:
    """Whether the server is one of this project. Raises httpx.HTTPError."""
    reply = await client.get("/v1/strategies")
    try:
        return reply.status_code == 200 and "budget" in reply.json()
    except ValueError:
        return False


def refused(status: int, text: str) -> DecodingError:
    """What a status says, as the exception that a runtime would have raised."""
    try:
        error = json.loads(text)["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = text[:300], None
    if code == "context_length_exceeded":
        return ContextLengthExceeded(message)
    if status == 429:
        return QueueFull(message)
    if status < 500:
        return Unusable(f"status {status}: {message}")
    return RequestFailed(f"status {status}: {message}")


async def persistent(ask: Callable[[], Awaitable[Record]]) -> Record:
    """The reply, at most tried three times. Raises what `ask` raises."""
    for pause in PAUSES:
        try:
            return await ask()
        except (QueueFull, RequestFailed):
            await asyncio.sleep(pause)
    return await ask()
