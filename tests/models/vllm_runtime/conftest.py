"""Both runtimes on the embedded model, in float32: what one gives, the other must give.

Without vLLM these tests are skipped, or fail where DECODING_SERVER_TEST_VLLM=required (`make test-vllm`): there a
missing package must not look like success. With the path of an interpreter instead, see `test_vllm_elsewhere`.
"""

from collections.abc import Iterator

import pytest
from requirement import do_without, missing

from models.loading import resolve
from models.torch_runtime.load import EngineOptions
from models.torch_runtime.load import load_runtime as load_torch
from models.torch_runtime.runtime import TorchRuntime
from models.vllm_runtime.load import VllmOptions
from models.vllm_runtime.load import load_runtime as load_vllm
from models.vllm_runtime.runtime import VllmRuntime

CONTEXT = 512
KV_MEMORY = 256 << 20
SMALL_KV_MEMORY = 64 << 20
"""Room for 1,440 tokens: a few long answers are more than that."""


if not missing():
    collect_ignore = ["test_vllm_elsewhere.py"]


@pytest.fixture(scope="session")
def vllm_is_here() -> None:
    if reason := missing():
        do_without(reason)


@pytest.fixture(scope="session", autouse=True)
def environment() -> Iterator[None]:
    """The same for all engines, whatever is set where the tests run. vLLM's variable for the size of its cache (GiB)
    goes over its engine arguments; here it says something else than every flag."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
        patch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
        yield


@pytest.fixture(scope="session")
def vllm(vllm_is_here: None) -> Iterator[VllmRuntime]:
    """Chunks of 64 tokens, so that longer prompts are computed in several steps; small blocks, so that prompts share
    some; a small cache, so that requests are preempted."""
    options = VllmOptions(
        dtype="float32",
        max_model_len=CONTEXT,
        max_num_seqs=32,
        max_num_batched_tokens=64,
        kv_cache_memory=SMALL_KV_MEMORY,
        max_waiting=64,
        engine_arguments=("enforce_eager=true", "block_size=32"),
    )
    runtime = load_vllm(resolve(None), options)
    try:
        yield runtime
    finally:
        runtime.close()


@pytest.fixture(scope="session")
def torch_runtime() -> Iterator[TorchRuntime]:
    options = EngineOptions(dtype="float32", max_model_len=CONTEXT, max_num_seqs=32, kv_cache_memory=KV_MEMORY)
    runtime = load_torch(resolve(None), options)
    try:
        yield runtime
    finally:
        runtime.close()
