"""A server around `peer_model` on a socket, and one way to ask both generating endpoints, streaming or not.

Run as a program, it serves the same model with the flags given (`key=value`) until it gets a signal.
"""

import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
from peer_model import make_runtime

from decoding_server.app import create_app
from decoding_server.config import load_config
from decoding_server.server import run
from models.torch_runtime.runtime import TorchRuntime
from strategies.runtime import RuntimeStatus

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDPOINTS = (COMPLETIONS, CHAT)


def strict_json(text: str | bytes) -> Any:
    """JSON as other languages read it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response that must have this status and the one envelope."""
    assert response.status_code == status, response.text
    body = strict_json(response.content)
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert response.headers["content-type"] == "application/json"
    return dict(body["error"])


@dataclass
class Reply:
    """An answer, the same for both endpoints, whole or put together from a stream.

    chunks: the stream's payloads, or the whole response alone. logprobs: `logprobs` objects of each choice, in order.
    """

    chunks: list[dict[str, Any]]
    texts: list[str]
    finish_reasons: list[str]
    stop_reasons: list[Any]
    logprobs: list[list[dict[str, Any]]]
    usage: dict[str, Any] | None = None
    decoding: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        (text,) = self.texts
        return text

    @property
    def end(self) -> tuple[str, str]:
        """Text and finish reason of the only choice."""
        (reason,) = self.finish_reasons
        return self.text, reason

    @property
    def arrays(self) -> dict[str, list[Any]]:
        """The completions arrays of the only choice."""
        (parts,) = self.logprobs
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        return {name: [value for part in parts for value in part[name]] for name in names}

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The chat entries of the only choice."""
        (parts,) = self.logprobs
        return [entry for part in parts for entry in part["content"]]


@dataclass
class PeerServer:
    url: str
    runtime: TorchRuntime
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=30)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def ask(self, path: str, script: str, *, stream: bool = False, **fields: Any) -> Reply:
        """Both endpoints' answer to the same instruction for the model (see `peer_model`)."""
        body = request_body(path, script, stream=stream, **fields)
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return read_reply(response.text, stream)

    def complete(self, prompt: Any, **fields: Any) -> Reply:
        """A completion of a prompt as it is."""
        response = self.post(COMPLETIONS, {"prompt": prompt, **fields})
        assert response.status_code == 200, response.text
        return read_reply(response.text, bool(fields.get("stream")))

    def at_once(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[Reply]:
        """The replies to (path, body) of many requests that are sent at the same time, a connection each."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(self._exchange, requests))

    def _exchange(self, request: tuple[str, dict[str, Any]]) -> Reply:
        path, body = request
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        assert response.status == 200, content
        return read_reply(content.decode(), bool(body.get("stream")))

    @property
    def status(self) -> RuntimeStatus:
        return self.runtime.status()

    def wait_until_idle(self, seconds: float = 1.0) -> None:
        """Nothing runs, nothing waits, and all KV slots are free or may be evicted, within that time."""
        deadline = time.monotonic() + seconds
        while (status := self.status).running + status.waiting or status.kv_slots_used != status.kv_slots_cached:
            assert time.monotonic() < deadline, status
            time.sleep(0.005)

    def wait_for_running(self, sequences: int) -> None:
        deadline = time.monotonic() + 10
        while self.status.running < sequences:
            assert time.monotonic() < deadline, self.status
            time.sleep(0.005)


def request_body(path: str, script: str, **fields: Any) -> dict[str, Any]:
    if path == CHAT:
        return {"messages": [{"role": "user", "content": script}], "max_tokens": 24, **fields}
    return {"prompt": f"{script}|", "max_tokens": 24, **fields}


def events(text: str) -> list[dict[str, Any]]:
    """The payloads of a whole event stream, whose form is checked."""
    assert text.endswith("data: [DONE]\n\n")
    lines = text.removesuffix("data: [DONE]\n\n").split("\n\n")
    assert lines.pop() == ""
    return [strict_json(line.removeprefix("data: ")) for line in lines if not line.startswith(":")]


def read_reply(text: str, stream: bool) -> Reply:
    """The reply in a response's body."""
    chunks = events(text) if stream else [strict_json(text)]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    count = 1 + max(choice["index"] for choice in choices)
    reply = Reply(chunks, [""] * count, [""] * count, [None] * count, [[] for _ in range(count)])
    for choice in choices:
        index = choice["index"]
        part = choice.get("message") or choice.get("delta") or choice
        reply.texts[index] += part.get("content") or part.get("text") or ""
        if choice["logprobs"] is not None:
            reply.logprobs[index].append(choice["logprobs"])
        if choice["finish_reason"] is not None:
            assert not reply.finish_reasons[index], "a choice has one finish reason"
            reply.finish_reasons[index] = choice["finish_reason"]
            reply.stop_reasons[index] = choice["stop_reason"]
    assert all(reply.finish_reasons)
    for chunk in chunks:
        reply.usage = chunk.get("usage") or reply.usage
        reply.decoding = chunk.get("decoding") or reply.decoding
    return reply


@contextmanager
def peer_server(flags: dict[str, Any], runtime: TorchRuntime | None = None, **options: int) -> Iterator[PeerServer]:
    """Serves on a free port, in a thread. options: of `scripted_runtime`, unless a runtime is given."""
    config = load_config(flags, {}).config
    runtime = runtime or make_runtime(**{"max_waiting": config.max_waiting, **options})
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(
        uvicorn.Config(create_app(runtime, config), lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    peer = PeerServer(f"http://127.0.0.1:{listener.getsockname()[1]}", runtime)
    try:
        yield peer
    finally:
        peer.http.close()
        server.should_exit = True
        thread.join()
        runtime.close()


if __name__ == "__main__":
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    sys.exit(run(load_config(arguments), make_runtime))
