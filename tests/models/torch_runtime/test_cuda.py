"""The engine on an NVIDIA GPU. Skipped where there is none; nothing else in the suite needs one."""

import asyncio

import pytest
import torch

from models.loading import resolve
from models.torch_runtime.load import EngineOptions, load_runtime
from strategies.runtime import Generation, StopConditions
from strategies.sampling.standard import sampling

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def outputs(device: str, dtype: str, temperature: float) -> list[list[int]]:
    runtime = load_runtime(resolve(None), EngineOptions(device=device, dtype=dtype, kv_cache_memory=256 << 20))
    try:
        tokenizer = runtime.tokenizer
        prompts = [
            tokenizer.encode(tokenizer.render_chat([{"role": "user", "content": f"Say something about {topic}."}]))
            for topic in ("rivers", "trains", "bread", "the moon")
        ]

        async def run() -> list[list[int]]:
            parameters, stopping = sampling(temperature=temperature), StopConditions(max_tokens=32)
            streams = runtime.submit([Generation(p, parameters, stopping, seed=i) for i, p in enumerate(prompts)])
            return [[token async for delta in stream for token in delta.tokens] for stream in streams]

        return asyncio.run(run())
    finally:
        runtime.close()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_float32_gives_the_cpus_tokens(temperature: float) -> None:
    assert outputs("cuda", "float32", temperature) == outputs("cpu", "float32", temperature)


def test_bfloat16_runs_and_repeats_itself() -> None:
    first = outputs("cuda", "bfloat16", 0.8)
    assert all(first)
    assert outputs("cuda", "bfloat16", 0.8) == first
