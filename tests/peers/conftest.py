"""Servers for the rows of the peer survey."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from peer_server import COMPLETIONS, PeerServer, peer_server


@pytest.fixture(scope="session")
def peer() -> Iterator[PeerServer]:
    """A server with the default configuration and a context of 512 tokens."""
    with peer_server({}) as server:
        yield server


@pytest.fixture
def serve_peer() -> Iterator[Callable[..., PeerServer]]:
    """serve_peer(flags, **options of the runtime): a further server, for one test."""
    with ExitStack() as stack:

        def start(flags: dict[str, Any] | None = None, **options: Any) -> PeerServer:
            return stack.enter_context(peer_server(flags or {}, **options))

        yield start


@pytest.fixture(scope="session")
def fuzzed() -> Iterator[PeerServer]:
    """The server that gets it all, and must then be as before."""
    with peer_server({"trust_request_chat_template": "true"}) as server:
        yield server
        server.wait_until_idle(5.0)
        assert server.ask(COMPLETIONS, "fine").end == ("fine", "stop")
        assert server.http.get("/health").json()["status"] == "ready"
