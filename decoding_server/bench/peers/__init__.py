"""The engines that can be measured, one file each. To add one: a subclass of `Engine` and a line in `ENGINES`."""

from collections.abc import Callable

from decoding_server.bench.peers.engine import Engine, Settings
from decoding_server.bench.peers.llama_cpp import LlamaCpp
from decoding_server.bench.peers.ours import DecodingServer
from decoding_server.bench.peers.transformers_generate import TransformersGenerate
from decoding_server.bench.peers.vllm import Vllm
from decoding_server.bench.peers.vllm_runtime import VllmRuntime

OURS = "decoding-server"

ENGINES: dict[str, Callable[[Settings], Engine]] = {
    OURS: DecodingServer,
    "transformers-fp32": lambda settings: TransformersGenerate(settings, "float32"),
    "transformers-bf16": lambda settings: TransformersGenerate(settings, "bfloat16"),
    "vllm": Vllm,
    "vllm-runtime": VllmRuntime,
    "llama-cpp": LlamaCpp,
}

__all__ = ["ENGINES", "OURS", "Engine", "Settings"]
