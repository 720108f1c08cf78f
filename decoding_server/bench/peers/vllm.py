"""vLLM on CPU: its own OpenAI server, fp32, compiled, prefix caching on, all cores bound."""

import os
import subprocess

from decoding_server.bench.peers.engine import EngineError, HttpEngine
from decoding_server.openmp import configure_openmp

ENGINE = (
    *("--dtype", "float32", "--max-model-len", "2048"),
    *("--max-num-seqs", "64", "--max-num-batched-tokens", "2048"),
)
"""Arguments that vLLM's own server and ours have in common, by the same names."""


class Vllm(HttpEngine):
    name = "vllm"
    description = "vLLM CPU server, float32, compiled, prefix caching, over HTTP"

    def command(self, port: int) -> list[str]:
        if self.settings.vllm_python is None:
            raise EngineError("vllm needs --vllm-python")
        return [
            *(self.settings.vllm_python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(self.settings.model_folder), *ENGINE, "--enable-prefix-caching"),
            *("--disable-uvicorn-access-log", "--host", "127.0.0.1", "--port", str(port)),
        ]

    def environment(self) -> dict[str, str]:
        """2 GiB of KV cache, one thread per core (its default leaves a core to the server and is slower on few cores),
        the OpenMP wait policy that our own server gives itself, the engine's configuration in the log, no access to any
        hub, no usage reports."""
        cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[: self.settings.threads])
        environment = super().environment()
        configure_openmp(environment)
        return {
            **environment,
            "VLLM_LOGGING_LEVEL": "INFO",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def versions(self) -> dict[str, str]:
        if self.settings.vllm_python is None:
            return {}
        program = (
            "from importlib.metadata import distributions as d\n"
            "print('\\n'.join(f'{x.name} {x.version}' for x in d() if x.name in ('vllm', 'vllm-cpu', 'torch')))"
        )
        command = [self.settings.vllm_python, "-c", program]
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError):
            return {}
        return dict(sorted(line.split() for line in output.splitlines()))
