"""A server on a real socket around any runtime, with all routes, and the `openai` clients that talk to it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import uvicorn
from fastapi import FastAPI

from decoding_server.app import create_app
from decoding_server.config import load_config
from decoding_server.response_store import ResponseStore
from models.torch_runtime.runtime import TorchRuntime


@dataclass(frozen=True)
class RuntimeServer:
    url: str
    app: FastAPI
    runtime: TorchRuntime

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=30, **options)


class Server(uvicorn.Server):
    """Closes at its end what the application has opened on its event loop."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            await self.config.app.state.service.close()  # type: ignore[union-attr]


@contextmanager
def serve_runtime(
    runtime: TorchRuntime, flags: dict[str, Any] | None = None, store: ResponseStore | None = None
) -> Iterator[RuntimeServer]:
    """Closes the runtime at the end. store: instead of the configured one."""
    app = create_app(runtime, load_config(flags or {}, {}).config)
    if store is not None:
        app.state.response_store = store
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield RuntimeServer(f"http://127.0.0.1:{listener.getsockname()[1]}", app, runtime)
    finally:
        server.should_exit = True
        thread.join()
        runtime.close()
