"""What the benchmark needs of an engine, and the kind that is reached over HTTP."""

import asyncio
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from decoding_server.bench.load import PLAIN, closed_loop, time_to_first_token
from decoding_server.bench.process import ProcessTree, free_port
from decoding_server.bench.workloads import STRATEGIES, Prompt


class EngineError(Exception):
    """The engine did not start, or died."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the engines are started with.

    model_folder: safetensors, config and tokenizer. gguf: the file that llama.cpp's is quantised from. model: the
    argument of our own `serve`, None for its default. temperature: of what is generated over HTTP, 0 is greedy. work: a
    folder for logs and derived files. threads: cores that an engine may use. The commands are None where the engine
    isn't installed.
    """

    model_folder: Path
    work: Path
    threads: int
    server_command: tuple[str, ...] | None = None
    url: str | None = None
    vllm_python: str | None = None
    llama_server: Path | None = None
    gguf: Path | None = None
    model: str | None = None
    temperature: float = 0.0


class Engine(ABC):
    """One engine under test. After `start`, it is alternately paused and resumed until `stop`."""

    name: str
    description: str = ""
    has_prefix_cache: bool = True
    has_strategies: bool = False
    restarts_are_measured: bool = False

    @abstractmethod
    async def start(self, prompt: Prompt, limit: float) -> float:
        """Starts it and gets one token for `prompt`; returns the seconds that took.

        Raises EngineError when it fails or is not there after `limit` seconds.
        """

    @abstractmethod
    async def generate(self, prompts: Sequence[Prompt], max_tokens: int, strategy: str = "") -> tuple[int, float]:
        """All prompts at once, exactly `max_tokens` each: (tokens generated, seconds). strategy: one of `STRATEGIES`,
        for engines that have them."""

    @abstractmethod
    async def first_token(self, prompt: Prompt) -> float:
        """Seconds to the first token of an answer to `prompt`, with nothing else running."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Package versions, read from the engine's own environment."""

    process: ProcessTree | None = None

    async def pause(self) -> None:
        if self.process is not None:
            self.process.pause()

    async def resume(self) -> None:
        if self.process is not None:
            self.process.resume()

    async def stop(self) -> None:
        if self.process is not None:
            await asyncio.to_thread(self.process.stop)
            self.process = None

    def peak_memory(self) -> int | None:
        """Bytes so far, or None where the process isn't ours."""
        return self.process.peak_memory() if self.process is not None else None


class HttpEngine(Engine):
    """A server that speaks OpenAI's completions API with token-id prompts and `ignore_eos`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = ""
        self.model = ""

    @abstractmethod
    def command(self, port: int) -> list[str]:
        """The command line of the server."""

    def environment(self) -> dict[str, str]:
        """Ours, unless an engine needs more."""
        return dict(os.environ)

    async def prepare(self) -> None:
        """Whatever has to be done once before the first start, and is no part of the start time."""

    def _client(self, limit: float | None = None) -> httpx.AsyncClient:
        """A client without proxies and without a limit on connections; the session bounds the time of each cell."""
        return httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(limit),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )

    async def start(self, prompt: Prompt, limit: float) -> float:
        await self.prepare()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        log = self.settings.work / "logs" / f"{self.name}.log"
        started = time.perf_counter()
        try:
            self.process = ProcessTree(self.command(port), self.environment(), log)
        except OSError as error:
            raise EngineError(f"{self.name} can't be started: {error}") from error
        await self._wait_until_healthy(limit)
        async with self._client(limit) as client:
            self.model = (await client.get("/v1/models")).json()["data"][0]["id"]
            await closed_loop(client, self.model, [prompt], 1, 1)
        return time.perf_counter() - started

    async def _wait_until_healthy(self, limit: float) -> None:
        started = time.perf_counter()
        async with self._client(5.0) as client:
            while (elapsed := time.perf_counter() - started) < limit:
                if self.process is not None and not self.process.running:
                    raise EngineError(f"{self.name} exited while starting: {self.process.last_log_line()}")
                try:
                    if (await client.get("/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(min(0.5, 0.02 + 0.01 * elapsed))  # a slow start is not slowed down by questions
        raise EngineError(f"{self.name} was not healthy after {limit:.0f} s")

    async def resume(self) -> None:
        await super().resume()
        await self._wait_until_healthy(30.0)

    async def generate(self, prompts: Sequence[Prompt], max_tokens: int, strategy: str = "") -> tuple[int, float]:
        fields = STRATEGIES[strategy] if strategy else PLAIN
        temperature = self.settings.temperature
        async with self._client() as client:
            result = await closed_loop(client, self.model, prompts, max_tokens, len(prompts), temperature, fields)
        return result.tokens, result.seconds

    async def first_token(self, prompt: Prompt) -> float:
        async with self._client() as client:
            await client.get("/health")  # opens the connection
            return await time_to_first_token(client, self.model, prompt)
