"""A model spread over several workers by vLLM: tokens, log-probabilities and hidden states are those of one worker."""

from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from asking import answers, asking

from models.loading import resolve
from models.torch_runtime.runtime import TorchRuntime
from models.vllm_runtime.load import VllmOptions, core_lists, load_runtime
from models.vllm_runtime.runtime import VllmRuntime
from strategies.runtime import SamplingParameters
from strategies.sampling.bregman.transform import Bregman
from strategies.sampling.penalties import CountPenalty

PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "Once upon a time there was a little")


@pytest.mark.parametrize(
    ("cores", "workers", "expected"),
    [
        ([0, 1], 1, "0,1"),
        ([0, 1], 2, "0|1"),
        ([2, 3, 5, 7], 2, "2,3|5,7"),
        ([4], 2, "4|4"),
        ([0, 1, 2], 2, "0|1"),
        ([0, 1], 3, "0|1|0"),
    ],
)
def test_each_worker_has_cores_of_its_own_where_there_are_enough(cores: list[int], workers: int, expected: str) -> None:
    assert core_lists(cores, workers) == expected


SPREADS = {"tensor_parallel_size": 3, "data_parallel_size": 2}
"""The model's three key-value heads can be dealt out to three workers. Not here: pipeline stages, with which vLLM 0.32
itself dies on CPU, without this project too."""


@pytest.fixture(scope="module", params=SPREADS)
def spread(vllm_is_here: None, request: pytest.FixtureRequest) -> Iterator[VllmRuntime]:
    size = SPREADS[request.param]
    options = VllmOptions(
        dtype="float32",
        max_model_len=256,
        max_num_seqs=8,
        kv_cache_memory=64 << 20,
        engine_arguments=("enforce_eager=true", "block_size=32", f"{request.param}={size}"),
    )
    before = set(psutil.Process().children(recursive=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
        runtime = load_runtime(resolve(None), options)
        started = set(psutil.Process().children(recursive=True)) - before
        workers = [one for one in started if "Worker" in " ".join(one.cmdline()) or "Worker" in one.name()]
        try:
            assert len(workers) >= size
            yield runtime
        finally:
            runtime.close()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert alive == []


async def test_what_several_workers_compute_is_what_one_does(spread: VllmRuntime, torch_runtime: TorchRuntime) -> None:
    """More requests than one step takes from either copy of a model, so that data parallelism uses both."""
    sampled = SamplingParameters(0.9, (CountPenalty(presence=0.5), Bregman(alpha=1.5, tau=0.05)))
    generations = [asking(spread, prompt, 12) for prompt in PROMPTS]
    generations += [
        asking(spread, prompt, 12, sampling=sampled, seed=3, branch=(i,), logprobs=2, logprobs_mode="processed")
        for i, prompt in enumerate(PROMPTS)
    ]
    generations += [asking(spread, prompt, 0, pooling="last") for prompt in PROMPTS]
    ours, theirs = await answers(spread, generations), await answers(torch_runtime, generations)
    assert [one.tokens for one in ours] == [one.tokens for one in theirs]
    for one, other in zip(ours[3:6], theirs[3:6], strict=True):
        assert [entry.logprob for entry in one.logprobs] == pytest.approx(
            [entry.logprob for entry in other.logprobs], abs=2e-3
        )
    for one, other in zip(ours[6:], theirs[6:], strict=True):
        assert one.embedding is not None
        assert other.embedding is not None
        scale = float(np.abs(other.embedding).max())
        assert np.abs(np.array(one.embedding) - np.array(other.embedding)).max() < 1e-3 * scale
    assert spread.status().state == "ready"
