"""llama.cpp: its own server on a Q8_0 file, which is quantised from the same GGUF that our weights come from."""

import asyncio
import re
import subprocess
from pathlib import Path

from decoding_server.bench.peers.engine import EngineError, HttpEngine
from decoding_server.openmp import configure_openmp

SLOTS = 32
"""Parallel sequences; the largest concurrency of the workloads."""
SLOT_TOKENS = 768
"""Context of each slot: 512 + 16 prompt tokens and 64 new ones fit."""


class LlamaCpp(HttpEngine):
    name = "llama-cpp"
    description = "llama-server, Q8_0 (quantised from the same GGUF), over HTTP"

    @property
    def model_file(self) -> Path:
        return self.settings.work / "llama-cpp-q8_0.gguf"

    async def prepare(self) -> None:
        """Runs llama-quantize once. Raises EngineError."""
        if self.model_file.exists():
            return
        server, source = self.settings.llama_server, self.settings.gguf
        if server is None or source is None:
            raise EngineError("llama-cpp needs --llama-server and --gguf")
        partial = self.model_file.with_suffix(".partial")
        command = [str(server.with_name("llama-quantize")), "--allow-requantize", str(source), str(partial), "Q8_0"]
        try:
            run = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            raise EngineError(f"llama-quantize failed: {error}") from error
        if run.returncode != 0:
            raise EngineError(f"llama-quantize failed: {run.stderr.strip()[-300:]}")
        partial.rename(self.model_file)

    def command(self, port: int) -> list[str]:
        return [
            *(str(self.settings.llama_server), "--model", str(self.model_file)),
            *("--ctx-size", str(SLOTS * SLOT_TOKENS), "--parallel", str(SLOTS)),
            *("--threads", str(self.settings.threads), "--threads-batch", str(self.settings.threads)),
            *("--host", "127.0.0.1", "--port", str(port), "--no-webui"),
        ]

    def environment(self) -> dict[str, str]:
        """The OpenMP wait policy that our own server gives itself: its threads spin otherwise."""
        environment = super().environment()
        configure_openmp(environment)
        return environment

    def versions(self) -> dict[str, str]:
        if self.settings.llama_server is None:
            return {}
        command = [str(self.settings.llama_server), "--version"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return {}
        match = re.search(r"version: (.+)", run.stdout + run.stderr)
        return {"llama.cpp": match[1].strip()} if match else {}
