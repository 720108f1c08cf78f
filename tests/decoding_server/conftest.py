"""Servers that many tests share, and servers with flags of their own."""

from collections.abc import Callable, Iterator

import openai
import pytest
from live_server import LiveServer, live_server


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """A server with the default configuration."""
    with live_server({}) as live:
        yield live


@pytest.fixture(scope="session")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with server.client() as openai_client:
        yield openai_client


@pytest.fixture
def serve() -> Iterator[Callable[..., LiveServer]]:
    """Starts further servers, with flags of their own."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda flags=None, **options: stack.enter_context(live_server(flags or {}, **options))
