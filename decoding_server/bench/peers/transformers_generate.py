"""transformers' `generate`: one batch of all prompts, left padding, greedy, in a process of its own."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from decoding_server.bench.load import LoadError
from decoding_server.bench.peers.engine import Engine, EngineError, Settings
from decoding_server.bench.process import ProcessTree
from decoding_server.bench.workloads import Prompt
from decoding_server.openmp import configure_openmp


class TransformersGenerate(Engine):
    """No HTTP between it and the benchmark, no prefix cache, and the batch starts and ends as one: its best case."""

    has_prefix_cache = False

    def __init__(self, settings: Settings, dtype: Literal["float32", "bfloat16"]) -> None:
        self.settings = settings
        self.dtype = dtype
        self.name = {"float32": "transformers-fp32", "bfloat16": "transformers-bf16"}[dtype]
        self.description = f"transformers generate, {dtype}, sdpa, one left-padded batch, in process"

    async def start(self, prompt: Prompt, limit: float) -> float:
        worker = "decoding_server.bench.peers.transformers_worker"
        command = [sys.executable, "-m", worker, str(self.settings.model_folder), self.dtype]
        command += ["--threads", str(self.settings.threads)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        configure_openmp(environment)  # as our own server does; spinning threads would only slow it down
        started = time.perf_counter()
        self.process = ProcessTree(command, environment, self.settings.work / "logs" / f"{self.name}.log", pipes=True)
        async with asyncio.timeout(limit):
            await self.generate([prompt], 1)
        return time.perf_counter() - started

    async def generate(self, prompts: Sequence[Prompt], max_tokens: int, strategy: str = "") -> tuple[int, float]:
        if self.process is None:
            raise EngineError(f"{self.name} is not running")
        process = self.process
        job = json.dumps({"prompts": list(prompts), "max_tokens": max_tokens}) + "\n"

        def exchange() -> bytes:
            process.stdin.write(job.encode())
            process.stdin.flush()
            return process.stdout.readline()

        try:
            line = await asyncio.to_thread(exchange)
        except (OSError, ValueError) as error:
            raise EngineError(f"{self.name} died: {process.last_log_line()}") from error
        if not line:
            raise EngineError(f"{self.name} died: {process.last_log_line()}")
        answer = json.loads(line)
        if answer["tokens"] != len(prompts) * max_tokens:
            raise LoadError(f"{answer['tokens']} tokens came back, {len(prompts) * max_tokens} were asked for")
        return int(answer["tokens"]), float(answer["seconds"])

    async def first_token(self, prompt: Prompt) -> float:
        return (await self.generate([prompt], 1))[1]

    def versions(self) -> dict[str, str]:
        versions = {}
        for package in ("transformers", "torch"):
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                continue
        return versions
