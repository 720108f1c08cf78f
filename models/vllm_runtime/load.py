"""From a model's files to a running vLLM runtime."""

import dataclasses
import hashlib
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.gguf.cache import file_hash
from models.loading import ModelFiles
from models.model_folder import matmul_parameters, sampling_defaults, weights_hash
from models.tokenizer import HuggingFaceTokenizer, load_tokenizer
from models.vllm_runtime import engine_arguments, orphan, version
from models.vllm_runtime import notes as notes_module
from models.vllm_runtime.notes import NoteReader
from models.vllm_runtime.runtime import EngineThread, VllmRuntime
from models.vllm_runtime.totals import StatLogger, Totals
from strategies.errors import ModelLoadError
from strategies.runtime import ModelInfo

log = logging.getLogger(__name__)

CPU_KV_MEMORY = 1 << 30
KV_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
"""vLLM's own setting for CPUs, in GiB; it goes over its engine arguments."""
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""vLLM's engine arguments whose product is the number of its workers."""
PROCESSOR_V1 = "models.vllm_runtime.processor_v1:PipelineLogitsProcessor"
PROCESSOR_V2 = "models.vllm_runtime.processor_v2:PipelineLogitsProcessor"
WORKER_EXTENSION = "models.vllm_runtime.worker.WorkerExtension"


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How to run a model; see `models.torch_runtime.load.EngineOptions` for what both runtimes have.

    engine_arguments: KEY=VALUE for vLLM itself.
    """

    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    kv_cache_memory: int | None = None
    max_waiting: int = 1024
    prefix_cache: bool = True
    chat_template: str | None = None
    threads: int | None = None
    engine_arguments: Sequence[str] = ()


def load_runtime(files: ModelFiles, options: VllmOptions) -> VllmRuntime:
    """Starts vLLM's engine on the model. Raises ModelLoadError with one line that says what to do."""
    started = time.monotonic()
    found = version.require(version.installed())
    given = engine_arguments.parse(options.engine_arguments)
    _prepare_environment(options, given)
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
    except Exception as error:  # a build that doesn't fit this machine fails in many ways
        raise ModelLoadError(f"vLLM {found} can't be imported: {error}") from error
    engine_arguments.check(given, (field.name for field in dataclasses.fields(AsyncEngineArgs)))
    device = str(current_platform.device_type)
    if options.device not in ("auto", device):
        raise ModelLoadError(f"device {options.device} was asked for, but this build of vLLM runs on {device}")
    tokenizer = load_tokenizer(files.folder, chat_template=options.chat_template)
    native = given.get("speculative_config") is not None
    arguments = _arguments(files, options, device, native=native) | given
    notes, totals, thread = NoteReader(), Totals(), EngineThread()
    llm: Any = None
    os.environ |= {notes_module.VARIABLE: str(notes.path), orphan.VARIABLE: str(os.getpid())}
    try:
        llm = thread.call(_start(AsyncEngineArgs, arguments, totals))
        thread.call(llm.collective_rpc("end_with_the_server"))
        if not native:
            thread.call(llm.collective_rpc("keep_hidden_states"))
    except Exception as error:
        if llm is not None:
            llm.shutdown()
        thread.stop()
        notes.close()
        raise ModelLoadError(f"vLLM {found} can't serve {files.name}: {_one_line(error)}") from error
    config = llm.vllm_config
    block_size = int(config.cache_config.block_size)
    info = _info(files, config, device, found, tokenizer)
    log.info(
        "loaded %s in %.1f s: vLLM %s on %s, %s weights; context %d, %d KV slots",
        files.name, time.monotonic() - started, found, device, info.dtype, info.max_model_len,
        block_size * (config.cache_config.num_gpu_blocks or 0),
    )  # fmt: skip
    return VllmRuntime(
        thread,
        llm,
        info,
        tokenizer,
        notes,
        totals,
        kv_slots=block_size * (config.cache_config.num_gpu_blocks or 0),
        block_size=block_size if config.cache_config.enable_prefix_caching else 0,
        max_num_seqs=options.max_num_seqs,
        max_waiting=options.max_waiting,
        native=native,
    )


def _prepare_environment(options: VllmOptions, given: Mapping[str, Any]) -> None:
    """What vLLM reads from the environment, unless the operator has set it: processes of its own that don't inherit our
    threads half-way, all cores that we may use, no reports to anyone. A flag of ours goes over their variable."""
    if options.kv_cache_memory is not None and KV_VARIABLE in os.environ:
        log.warning("%s is ignored: --kv-cache-memory is given", KV_VARIABLE)
        del os.environ[KV_VARIABLE]
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    sizes = [given.get(name) for name in PARALLEL]
    workers = math.prod(size for size in sizes if isinstance(size, int) and size > 0)  # vLLM refuses what is no size
    defaults = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_CPU_OMP_THREADS_BIND": core_lists(cores, workers),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def core_lists(cores: Sequence[int], workers: int) -> str:
    """Cores of each of vLLM's workers on CPU, in its format; workers share them where there are more workers."""
    share = max(1, len(cores) // workers)
    starts = [worker * share % len(cores) for worker in range(workers)]
    return "|".join(",".join(map(str, cores[start : start + share])) for start in starts)


async def _start(arguments_type: Any, arguments: Mapping[str, Any], totals: Totals) -> Any:
    """An AsyncLLM, made on the loop that it will run on."""
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor import Executor

    context = UsageContext.OPENAI_API_SERVER  # what is not given gets the defaults of vLLM's own server
    config = arguments_type(**arguments).create_engine_config(context)
    if config.use_v2_model_runner and config.model_config.logits_processors:
        config.model_config.logits_processors = [PROCESSOR_V2]
    return AsyncLLM(
        vllm_config=config,
        executor_class=Executor.get_class(config),
        log_stats=False,
        log_requests=False,
        usage_context=context,
        stat_loggers=[lambda config, engine: StatLogger(totals)],
    )


def _arguments(files: ModelFiles, options: VllmOptions, device: str, *, native: bool) -> dict[str, Any]:
    """vLLM's engine arguments. Its own sampling is neutral: the processor leaves one token; but see `native`."""
    memory = options.kv_cache_memory
    if memory is None and device == "cpu" and KV_VARIABLE not in os.environ:
        memory = CPU_KV_MEMORY
    chosen: dict[str, Any] = {
        "max_model_len": options.max_model_len,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "kv_cache_memory_bytes": memory,
    }
    return {
        "model": str(files.folder),
        "served_model_name": files.name,
        "dtype": options.dtype,
        "max_num_seqs": options.max_num_seqs,
        "enable_prefix_caching": options.prefix_cache,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "scheduling_policy": "priority",
        "logprobs_mode": "raw_logprobs",
        "max_logprobs": -1,
        "logits_processors": None if native else [PROCESSOR_V1],
        "worker_extension_cls": WORKER_EXTENSION,
        "disable_log_stats": True,
        **{key: value for key, value in chosen.items() if value is not None},
    }


def _info(files: ModelFiles, config: Any, device: str, found: str, tokenizer: HuggingFaceTokenizer) -> ModelInfo:
    model = config.model_config
    vocab_size = int(model.get_vocab_size())
    dtype = str(model.dtype).removeprefix("torch.")
    told = f"vllm {found} {device} {dtype} {file_hash(files.folder / 'config.json')} {weights_hash(files.folder)}"
    return ModelInfo(
        name=files.name,
        source=files.source,
        architecture=str(model.architectures[0]),
        max_model_len=int(model.max_model_len),
        vocab_size=vocab_size,
        eos_token_ids=frozenset(token for token in tokenizer.eos_token_ids if token < vocab_size),
        dtype=dtype,
        device=device,
        num_layers=int(model.hf_text_config.num_hidden_layers),
        hidden_size=int(model.get_hidden_size()),
        matmul_parameters=matmul_parameters(files.folder),
        fingerprint=f"fp_{hashlib.sha256(told.encode()).hexdigest()[:16]}",
        sampling_defaults=sampling_defaults(files.folder),
        config_sha256=file_hash(files.folder / "config.json"),
        weights_index_sha256=weights_hash(files.folder),
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
