"""One question under one search: to a runtime in this process, or to a server over HTTP. Both give the same reply."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from decoding_server.bench.code.contenders import validated
from strategies.budget import Meter
from strategies.errors import ContextLengthExceeded, DecodingError, QueueFull, RequestFailed
from strategies.runtime import Delta, Generation, GenerationStream, Runtime, StopConditions
from strategies.sampling.standard import sampling
from strategies.sandbox.sandbox import Sandbox
from strategies.scoring.value import ValueFunction
from strategies.search.program_prompts import Prompts
from strategies.search.run import SearchRun

Record = dict[str, Any]
SPENT = ("target_tokens", "cached_tokens", "output_tokens", "flops")
HTTP_SECONDS = 3600.0


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


class Asker(Protocol):
    """model: its name, for the report."""

    model: str

    async def ask(self, asked: Asked) -> Reply:
        """Raises DecodingError: ContextLengthExceeded where the task does not fit, InvalidRequest for a bad search."""
        ...


class InProcess:
    """A runtime of this process, as the server would use it."""

    def __init__(
        self, runtime: Runtime, scorers: Mapping[str, ValueFunction], sandbox: Sandbox, prompts: Prompts
    ) -> None:
        self.runtime, self.scorers, self.sandbox, self.prompts = runtime, scorers, sandbox, prompts
        self.model = runtime.info.name

    async def ask(self, asked: Asked) -> Reply:
        tokenizer = self.runtime.tokenizer
        text = tokenizer.render_chat([{"role": "user", "content": asked.prompt}])
        request = Generation(
            tokenizer.encode(text, add_special_tokens=False),
            sampling=sampling(temperature=asked.temperature),
            stopping=StopConditions(max_tokens=asked.max_tokens),
            seed=asked.seed,
            meter=Meter(),
        )
        began = time.perf_counter()
        stream: GenerationStream
        run = None
        if asked.search is None:
            (stream,) = self.runtime.submit([request])
        else:
            search = validated(asked.search)
            if search.trace == "none":
                search = search.model_copy(update={"trace": "summary"})
            sandbox = self.sandbox if search.runs_programs else None
            run = SearchRun(
                search,
                self.runtime,
                request,
                scorers=self.scorers,
                sandbox=sandbox,
                prompts=self.prompts,
                prompt_text=asked.prompt,
                question=asked.prompt,
            )
            stream = run.streams[0]
        try:
            deltas: list[Delta] = [delta async for delta in stream]
        finally:
            stream.cancel()
        seconds = time.perf_counter() - began
        spend = request.meter.spend
        return Reply(
            "".join(delta.text for delta in deltas),
            deltas[-1].finish_reason,
            {
                "target_tokens": spend.target_tokens,
                "cached_tokens": spend.cached_tokens,
                "output_tokens": spend.output_tokens,
                "flops": spend.flops + spend.scorer_flops,
            },
            seconds,
            (run.trace.report() or {}) if run is not None else {},
        )


class OverHttp:
    """A server that speaks this project's extensions of chat completions."""

    def __init__(self, client: httpx.AsyncClient, model: str) -> None:
        self._client = client
        self.model = model

    @classmethod
    async def connected(cls, base_url: str, model: str | None, api_key: str | None) -> "OverHttp":
        """base_url: with or without `/v1`. model: a served name, None for the server's first. Raises RequestFailed."""
        root = base_url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        client = httpx.AsyncClient(base_url=root, headers=headers, timeout=httpx.Timeout(HTTP_SECONDS, connect=10.0))
        try:
            reply = await client.get("/v1/models")
            reply.raise_for_status()
            served = [one["id"] for one in reply.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            await client.aclose()
            raise RequestFailed(f"{root} does not answer as a server: {error}") from None
        if model is not None and model not in served:
            await client.aclose()
            raise RequestFailed(f"{root} does not serve {model!r}, but {served}")
        return cls(client, model or served[0])

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, asked: Asked) -> Reply:
        body: Record = {
            "model": self.model,
            "messages": [{"role": "user", "content": asked.prompt}],
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "seed": asked.seed,
        }
        if asked.search is not None:
            body["decoding"] = {"search": dict(asked.search)}
        began = time.perf_counter()
        try:
            reply = await self._client.post("/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            raise RequestFailed(f"{type(error).__name__}: {error}") from None
        seconds = time.perf_counter() - began
        if reply.status_code != 200:
            raise refused(reply)
        try:
            found = reply.json()
            (choice,) = found["choices"]
            usage, spent = found["usage"], found["usage"].get("decoding", {})
            return Reply(
                choice["message"]["content"] or "",
                choice["finish_reason"],
                {name: spent.get(name, 0) for name in SPENT}
                | ({} if spent else {"output_tokens": usage["completion_tokens"]}),
                seconds,
                (found.get("trace") or [{}])[0],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RequestFailed(f"not the reply of a chat completion: {error!r}") from None


def refused(reply: httpx.Response) -> DecodingError:
    """What a status says, as the exception that the runtime in this process would have raised."""
    try:
        error = reply.json()["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = reply.text[:300], None
    if code == "context_length_exceeded":
        return ContextLengthExceeded(message)
    if reply.status_code == 429:
        return QueueFull(message)
    if reply.status_code < 500:
        return Unusable(f"status {reply.status_code}: {message}")
    return RequestFailed(f"status {reply.status_code}: {message}")


class Unusable(DecodingError):
    """No task can be asked like this: the search, the key or the model is wrong."""


TRIES = 3
PAUSES = (2.0, 10.0)
"""Seconds before the second and the third try."""


async def persistent(asker: Asker, asked: Asked) -> Reply:
    """The reply, at most tried three times. Raises as `Asker.ask`."""
    for pause in PAUSES:
        try:
            return await asker.ask(asked)
        except (QueueFull, RequestFailed):
            await asyncio.sleep(pause)
    return await asker.ask(asked)
