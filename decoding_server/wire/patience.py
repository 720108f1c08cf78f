"""How long a connection may keep the server waiting for a request. uvicorn's only clock starts after an answer.

A client that doesn't read, or has vanished, is the kernel's business; see `server.listen`.
"""

import asyncio
from typing import Any

from decoding_server.wire.refusal import TOO_SLOW, refuse


class Patience:
    """A part of a protocol class, to stand before uvicorn's. Answers 408 and closes when time is up."""

    head_seconds = 60.0
    """For all of a request's first line and headers, and for the first byte of a new connection."""
    body_seconds = 60.0
    """Between two pieces of a body."""

    cycle: Any  # uvicorn's: a request and its answer, None before the first
    transport: Any
    loop: asyncio.AbstractEventLoop

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._clock: asyncio.TimerHandle | None = None
        self._in_body = False
        self._begun = False  # a byte of a request has come

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self._wait(self.head_seconds)

    def connection_lost(self, error: Exception | None) -> None:
        self._stop()
        super().connection_lost(error)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # type: ignore[misc]
        self.heard()

    def heard(self) -> None:
        """To be called when data has been parsed."""
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if self.transport.is_closing() or (answering and not cycle.more_body):
            self._stop()
        elif answering:
            self._in_body = True
            self._wait(self.body_seconds)
        elif self._clock is None or self._in_body or not self._begun:
            # The head of the next request; its time is not begun anew by every byte.
            self._in_body = False
            self._wait(self.head_seconds)
        self._begun = True

    def _wait(self, seconds: float) -> None:
        self._stop()
        self._clock = self.loop.call_later(seconds, self._give_up)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _give_up(self) -> None:
        self._clock = None
        cycle = self.cycle
        unfinished = cycle is not None and not cycle.response_complete
        if self.transport.is_closing() or (unfinished and not cycle.more_body):
            return
        if not self._begun or (unfinished and cycle.response_started):
            self.transport.close()  # nobody asked for anything, or the answer has begun and can only be cut off
        else:
            refuse(self.transport, TOO_SLOW, cycle if unfinished else None)
