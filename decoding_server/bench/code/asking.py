"""One question under one search, as a chat completion: what came back, and what it cost."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from decoding_server.bench.endpoint import Endpoint, Record, persistent
from strategies.errors import RequestFailed

SPENT = ("target_tokens", "cached_tokens", "output_tokens", "flops")


@dataclass(frozen=True, slots=True)
class Asked:
    """prompt: the user's turn. search: `decoding.search`, None for plain decoding."""

    prompt: str
    search: Mapping[str, Any] | None
    seed: int
    max_tokens: int
    temperature: float


@dataclass(frozen=True, slots=True)
class Reply:
    """text: the answer. spent: by the names of `SPENT`. trace: as the reply of the server has it."""

    text: str
    finish_reason: str | None
    spent: Record
    seconds: float
    trace: Record = field(default_factory=dict)


async def ask(endpoint: Endpoint, asked: Asked) -> Reply:
    """The reply, at most tried three times. Raises DecodingError: ContextLengthExceeded where the task does not fit,
    Unusable for a bad search."""
    body: Record = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": asked.prompt}],
        "max_tokens": asked.max_tokens,
        "temperature": asked.temperature,
        "seed": asked.seed,
    }
    if asked.search is not None:
        body["decoding"] = {"search": dict(asked.search)}

    async def once() -> Record:
        began = time.perf_counter()
        reply = await endpoint.post("/v1/chat/completions", body)
        return {**reply, "seconds": time.perf_counter() - began}

    found = await persistent(once)
    try:
        (choice,) = found["choices"]
        usage, spent = found["usage"], found["usage"].get("decoding", {})
        return Reply(
            choice["message"]["content"] or "",
            choice["finish_reason"],
            {name: spent.get(name, 0) for name in SPENT}
            | ({} if spent else {"output_tokens": usage["completion_tokens"]}),
            found["seconds"],
            (found.get("trace") or [{}])[0],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RequestFailed(f"not the reply of a chat completion: {error!r}") from None
