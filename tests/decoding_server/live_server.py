"""A real server on a real socket, in a thread, around the scripted model, and the clients that talk to it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import uvicorn
from scripted_server import make_runtime

from decoding_server.app import create_app
from decoding_server.config import load_config
from decoding_server.wire import protocol_class
from models.torch_runtime.runtime import TorchRuntime


@dataclass(frozen=True)
class LiveServer:
    url: str
    runtime: TorchRuntime

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **({"api_key": "none", "max_retries": 0} | options))

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=30, **options)


@contextmanager
def live_server(
    flags: dict[str, Any],
    http: type[asyncio.Protocol] | None = None,
    listener: socket.socket | None = None,
    **runtime_options: int,
) -> Iterator[LiveServer]:
    """http: the protocol, instead of the one that the server would choose. listener: a socket that listens."""
    config = load_config(flags, {}).config
    runtime = make_runtime(
        **{"max_waiting": config.max_waiting, "max_num_seqs": config.max_num_seqs, **runtime_options}
    )
    listener = listener or socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(runtime, config),
            http=http or protocol_class(),
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield LiveServer(f"http://127.0.0.1:{listener.getsockname()[1]}", runtime)
    finally:
        server.should_exit = True
        thread.join()
        runtime.close()
