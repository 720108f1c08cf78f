"""Our server with vLLM's engine: what it adds to `vllm serve` is the difference between the two."""

from decoding_server.bench.peers.engine import EngineError
from decoding_server.bench.peers.vllm import ENGINE, Vllm


class VllmRuntime(Vllm):
    name = "vllm-runtime"
    description = "decoding-server serve --runtime vllm, float32, compiled, prefix caching, over HTTP"
    has_strategies = True

    def command(self, port: int) -> list[str]:
        if self.settings.vllm_python is None:
            raise EngineError("vllm-runtime needs --vllm-python")
        return [
            *(self.settings.vllm_python, "-m", "decoding_server", "serve", str(self.settings.model_folder)),
            *("--runtime", "vllm", *ENGINE, "--prefix-cache", "--no-log-requests"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]
