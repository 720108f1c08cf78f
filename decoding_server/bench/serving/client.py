"""One streamed chat completion and its times, as a client sees them."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

Record = dict[str, Any]
TEXTS = ("content", "reasoning_content", "reasoning")
"""Where a chunk has text: servers that tell reasoning apart name it in two ways."""
WHOLE = ("stop", "length", "tool_calls", "content_filter")
"""Finish reasons of an answer that is one; others ("abort", "error") say that it broke off."""


class StreamFault(Exception):
    """The reply is no whole stream. kind: what went wrong, in one word or two."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(slots=True)
class Answer:
    """Seconds on the monotonic clock. texts: when each chunk with text came; the first is the first token's.

    usage: as the server's last chunk has it; {} where it sends none. error: None, "refused" (429), "unavailable" (503),
    "status N", "timeout", "connection", "stream error" (told by the server), "incomplete" (the stream just ended),
    "finish NAME" (a finish reason that is none of WHOLE).
    """

    sent: float
    ended: float = 0.0
    texts: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Record = field(default_factory=dict)
    error: str | None = None
    detail: str = ""


async def streamed(client: httpx.AsyncClient, body: Record, timeout: float) -> Answer:
    """Never raises for what a server does: that is part of the result."""
    answer = Answer(time.perf_counter())
    try:
        async with asyncio.timeout(timeout):
            await _read(client, body, answer)
    except StreamFault as fault:
        answer.error, answer.detail = fault.kind, str(fault)[:300]
    except TimeoutError:
        answer.error = "timeout"
    except httpx.HTTPError as error:
        answer.error = "timeout" if isinstance(error, httpx.TimeoutException) else "connection"
        answer.detail = f"{type(error).__name__}: {error}"[:300]
    answer.ended = time.perf_counter()
    return answer


async def _read(client: httpx.AsyncClient, body: Record, answer: Answer) -> None:
    """Raises StreamFault, httpx.HTTPError."""
    whole = False
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            kinds = {429: "refused", 503: "unavailable"}
            text = (await response.aread()).decode(errors="replace")
            raise StreamFault(kinds.get(response.status_code, f"status {response.status_code}"), text)
        async for line in response.aiter_lines():
            if not line.startswith("data:"):  # a comment, or the blank line behind an event
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                whole = True
                continue
            _take(data, answer)
    if not whole or answer.finish_reason is None:
        raise StreamFault("incomplete", f"finish reason {answer.finish_reason}, [DONE] {whole}")
    if answer.finish_reason not in WHOLE:
        raise StreamFault(f"finish {answer.finish_reason}", "the server gave the answer up")


def _take(data: str, answer: Answer) -> None:
    """One event. Raises StreamFault."""
    now = time.perf_counter()
    try:
        chunk = json.loads(data)
        if chunk.get("error") is not None:
            raise StreamFault("stream error", str(chunk["error"]))
        for choice in chunk.get("choices") or ():
            if any(choice["delta"].get(name) for name in TEXTS):
                answer.texts.append(now)
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        answer.usage = chunk.get("usage") or answer.usage
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StreamFault("stream error", f"no chunk of a chat completion: {error!r}") from None
