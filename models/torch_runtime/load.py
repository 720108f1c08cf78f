"""From a model's files to a running torch runtime."""

import contextlib
import ctypes
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from models.gguf.cache import file_hash
from models.loading import ModelFiles
from models.model_folder import read_json, sampling_defaults, weights_hash
from models.tokenizer import HuggingFaceTokenizer, load_tokenizer
from models.torch_runtime.decoder import FusedDecoder
from models.torch_runtime.drafters import Drafter, EarlyExitDrafter, ModelDrafter, check_vocabularies
from models.torch_runtime.engine import Engine
from models.torch_runtime.kv_pool import SlotPool, slot_bytes
from models.torch_runtime.model import ForwardModel, ModelShape
from models.torch_runtime.runtime import TorchRuntime
from models.torch_runtime.weights import draw_with, kernels_for, load_model
from strategies.errors import ModelLoadError
from strategies.registry import registered
from strategies.runtime import ModelInfo

log = logging.getLogger(__name__)

CPU_KV_MEMORY = 768 << 20


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to run a model. None (or "auto") leaves the choice to us; what was chosen is logged.

    dtype: auto, float32, float16 or bfloat16, of the weights. device: auto, cpu or cuda. kv_cache_memory: bytes.
    draft_models: files of models that may draft, the default one first; draft_dtype: of their weights.
    early_exit_layers: the target's first layers draft too (the way to have a draft without another model). max_waiting:
    length of the queue. chat_template: text or path, instead of the model's own. threads: CPU threads.
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
    step_timeout: float = 300.0
    draft_models: Sequence[ModelFiles] = ()
    draft_dtype: str = "auto"
    early_exit_layers: int | None = None


def load_runtime(files: ModelFiles, options: EngineOptions) -> TorchRuntime:
    """Loads the model and starts its engine. Raises ModelLoadError with one line that says what to do."""
    started = time.monotonic()
    device = _device(options.device)
    dtype = _dtype(options.dtype, device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    config = read_json(files.folder / "config.json")
    tokenizer = load_tokenizer(files.folder, chat_template=options.chat_template)
    model = load_model(files.folder, config, dtype=dtype, device=device)
    shape = model.shape
    drafts = [_load_draft(draft, options.draft_dtype, device) for draft in options.draft_models]
    num_slots = _num_slots(shape, [draft.model.shape for draft in drafts], options, device)
    max_model_len = _max_model_len(shape, options, num_slots)
    batched = options.max_num_batched_tokens or (256 if device.type == "cpu" else 4096)
    if batched <= options.max_num_seqs:
        raise ModelLoadError(
            f"max_num_batched_tokens ({batched}) must exceed max_num_seqs ({options.max_num_seqs}): no prompt would run"
        )
    info = _info(files, shape, device, tokenizer, max_model_len)
    for transform in registered("transform").values():
        transform.prepare(tokenizer, device)
    _return_freed_memory()
    engine = Engine(
        model,
        info,
        num_slots=num_slots,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=batched,
        prefix_cache=options.prefix_cache,
        draw=draw_with(kernels_for(device)),
        drafters=lambda pool: _drafters(model, info, tokenizer, drafts, pool, options.early_exit_layers),
    )
    log.info(
        "loaded %s in %.1f s: %s weights on %s, %s, %d threads; context %d, %d KV slots (%.0f MiB)",
        files.name, time.monotonic() - started, shape.dtype, device, shape.kernels, torch.get_num_threads(),
        max_model_len, num_slots, num_slots * _slot_bytes(shape) / (1 << 20),
    )  # fmt: skip
    return TorchRuntime(engine, info, tokenizer, max_waiting=options.max_waiting, step_timeout=options.step_timeout)


class Draft(NamedTuple):
    """A draft model that has been read."""

    model: ForwardModel
    info: ModelInfo
    tokenizer: HuggingFaceTokenizer


def _load_draft(files: ModelFiles, dtype_name: str, device: torch.device) -> Draft:
    tokenizer = load_tokenizer(files.folder)
    config = read_json(files.folder / "config.json")
    model = load_model(files.folder, config, dtype=_dtype(dtype_name, device), device=device)
    log.info("draft model %s: %s weights, %s", files.name, model.shape.dtype, model.shape.kernels)
    return Draft(model, _info(files, model.shape, device, tokenizer, model.shape.max_positions), tokenizer)


def _drafters(
    model: ForwardModel,
    info: ModelInfo,
    tokenizer: HuggingFaceTokenizer,
    drafts: Sequence[Draft],
    pool: SlotPool,
    early_exit_layers: int | None,
) -> list[Drafter]:
    """All who can draft. Raises ModelLoadError for one that can't draft for this target."""
    drafters: list[Drafter] = []
    for draft in drafts:
        check_vocabularies(draft.info, info, draft.tokenizer.table(), tokenizer.table())
        if draft.info.max_model_len < info.max_model_len:
            raise ModelLoadError(
                f"the draft model {draft.info.name} has {draft.info.max_model_len} positions, the target is served "
                f"with {info.max_model_len}; lower --max-model-len"
            )
        if any(drafter.name == draft.info.name for drafter in drafters):
            raise ModelLoadError(f"two draft models are called {draft.info.name}; requests could not tell them apart")
        drafters.append(ModelDrafter(draft.info.name, draft.model, draft.info, pool, info.vocab_size))
    if early_exit_layers is not None:
        if not isinstance(model, FusedDecoder):
            raise ModelLoadError(f"early exit is not possible with {info.architecture}: only with Llama-like models")
        drafters.append(EarlyExitDrafter(model, info, pool, early_exit_layers))
    return drafters


def _info(
    files: ModelFiles, shape: ModelShape, device: torch.device, tokenizer: HuggingFaceTokenizer, max_model_len: int
) -> ModelInfo:
    return ModelInfo(
        name=files.name,
        source=files.source,
        architecture=shape.architecture,
        max_model_len=max_model_len,
        vocab_size=shape.vocab_size,
        eos_token_ids=frozenset(token for token in tokenizer.eos_token_ids if token < shape.vocab_size),
        dtype=shape.dtype,
        device=str(device),
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        matmul_parameters=shape.matmul_parameters,
        fingerprint=_fingerprint(files.folder, shape),
        sampling_defaults=sampling_defaults(files.folder),
        config_sha256=file_hash(files.folder / "config.json"),
        weights_index_sha256=weights_hash(files.folder),
    )


def _return_freed_memory() -> None:
    """Packing weights frees as much as it keeps; glibc holds on to that unless it is told not to."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in {"cpu", "cuda"}:
        raise ModelLoadError(f"device {name!r} is unknown; choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError("device cuda was asked for, but torch finds no CUDA GPU")
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.type == "cpu" else torch.bfloat16
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise ModelLoadError(f"dtype {name!r} is unknown; choose auto, float32, float16 or bfloat16")
    if name == "bfloat16" and device.type == "cpu":
        raise ModelLoadError("bfloat16 has no fast kernel on CPU; use float16 (fp32 activations) or float32")
    return dtypes[name]


def _num_slots(shape: ModelShape, drafts: Sequence[ModelShape], options: EngineOptions, device: torch.device) -> int:
    """A slot of the target has one in every draft's pools."""
    size = sum(map(_slot_bytes, (shape, *drafts)))
    memory = options.kv_cache_memory
    if memory is None:
        free = torch.cuda.mem_get_info(device)[0] * 0.85 if device.type == "cuda" else CPU_KV_MEMORY
        memory = int(free)
    slots = memory // size
    useful = options.max_num_seqs * (options.max_model_len or shape.max_positions)
    if slots < 16:
        raise ModelLoadError(f"kv_cache_memory of {memory} bytes holds {slots} tokens only; give more")
    return min(slots, useful)


def _slot_bytes(shape: ModelShape) -> int:
    return slot_bytes(
        num_layers=shape.num_layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype=shape.kv_dtype
    )


def _max_model_len(shape: ModelShape, options: EngineOptions, num_slots: int) -> int:
    asked = options.max_model_len
    if asked is not None and asked > shape.max_positions:
        raise ModelLoadError(f"max_model_len {asked} exceeds the {shape.max_positions} positions that the model has")
    if asked is not None and asked > num_slots:
        raise ModelLoadError(f"max_model_len {asked} needs more than the {num_slots} KV slots; raise kv_cache_memory")
    return asked or min(shape.max_positions, num_slots)


def _fingerprint(folder: Path, shape: ModelShape) -> str:
    """Identifies weights, precision and kernels."""
    told = f"{shape.dtype} {shape.kernels} {file_hash(folder / 'config.json')} {weights_hash(folder)}"
    return f"fp_{hashlib.sha256(told.encode()).hexdigest()[:16]}"
