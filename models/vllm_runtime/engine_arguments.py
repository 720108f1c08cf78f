"""What the operator passes through to vLLM: `--engine-args KEY=VALUE`, without what this runtime decides itself."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from strategies.errors import ModelLoadError

TAKEN = {
    "model": "MODEL",
    "served_model_name": "--served-model-name",
    "dtype": "--dtype",
    "max_model_len": "--max-model-len",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "kv_cache_memory_bytes": "--kv-cache-memory",
    "enable_prefix_caching": "--prefix-cache",
    "generation_config": "--generation-config",
    "max_num_queued_reqs": "--max-waiting",
}
"""Arguments with a flag of our own, which says the same on every runtime."""

FIXED = {
    "tokenizer": "the model's own tokenizer is used",
    "tokenizer_mode": "the model's own tokenizer is used",
    "skip_tokenizer_init": "texts are made outside of vLLM",
    "logits_processors": "the sampling pipeline is one",
    "logprobs_mode": "both kinds of log-probabilities are there, per request",
    "max_logprobs": "--max-logprobs says how many a request may ask for",
    "scheduling_policy": "requests have priorities",
    "worker_extension_cls": "value heads need it",
    "runner": "this server generates",
    "convert": "this server generates",
    "return_sampling_mask": "the sampling pipeline is not vLLM's",
    "watermark_config": "the sampling pipeline is not vLLM's",
    "watermark": "the sampling pipeline is not vLLM's",
    "spec_method": "use speculative_config",
    "spec_model": "use speculative_config",
    "spec_tokens": "use speculative_config",
    "kv_sharing_fast_prefill": "log-probabilities of prompts would be wrong",
}
"""Arguments that can't be passed, and why."""


def parse(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE texts, whose values are YAML (numbers, true, {"a": 1}), by key. Raises ModelLoadError."""
    arguments: dict[str, Any] = {}
    for text in given:
        key, found, value = text.partition("=")
        key = key.strip().removeprefix("--").replace("-", "_")
        if not found or not key:
            raise ModelLoadError(f"--engine-args {text}: must be KEY=VALUE")
        try:
            arguments[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ModelLoadError(f"--engine-args {key}: not valid YAML: {' '.join(str(error).split())}") from error
    return arguments


def check(arguments: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises ModelLoadError for what this runtime sets itself, and for what vLLM doesn't know."""
    names = set(known)
    for key in arguments:
        if key in TAKEN:
            raise ModelLoadError(f"--engine-args {key}: use {TAKEN[key]} instead")
        if key in FIXED:
            raise ModelLoadError(f"--engine-args {key}: can't be set here: {FIXED[key]}")
        if key not in names or key.startswith("_"):
            raise ModelLoadError(f"--engine-args {key}: vLLM has no such argument")
