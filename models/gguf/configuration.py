"""config.json and generation_config.json of a GGUF file, from its metadata. Keys are those of ggml's docs/gguf.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.gguf.reader import GGUFFile
from strategies.errors import ModelLoadError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Control tokens that end a turn or a document in the supported families, whatever `eos_token_id` says.
END_MARKS = frozenset({"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"})
CONTROL = 3

# Llama 3's rope scaling is stored as a tensor of per-frequency divisors; these are its constants in every release.
LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_ORIGINAL = 1.0, 4.0, 8192


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that the tensor conversion needs."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


def architecture_of(file: GGUFFile) -> str:
    """The architecture's name. Raises ModelLoadError for one that can't be converted."""
    name = str(file.metadata.get("general.architecture", "(none)"))
    supported = ", ".join(ARCHITECTURES)
    if int(file.metadata.get("split.count", 1)) > 1:
        raise ModelLoadError(f"{file.path}: one part of a split GGUF; merge the parts into one file first")
    if name not in ARCHITECTURES:
        raise ModelLoadError(
            f"{file.path}: GGUF architecture {name!r} is not supported (supported: {supported}); "
            "use the model's safetensors folder or hub id instead"
        )
    if int(file.metadata.get(f"{name}.expert_count", 0)) > 0:
        raise ModelLoadError(
            f"{file.path}: GGUF architecture {name!r} with experts is not supported (supported: dense {supported}); "
            "use the model's safetensors folder or hub id instead"
        )
    return name


def shape_of(file: GGUFFile) -> Shape:
    """Layer, head and head-size counts. Raises ModelLoadError when the metadata lacks or contradicts them."""
    name = architecture_of(file)
    heads = _integer(file, f"{name}.attention.head_count")
    hidden = _integer(file, f"{name}.embedding_length")
    if heads < 1 or hidden < 1:
        raise file.corrupt(f"{heads} heads, hidden size {hidden}")
    head_dim = _integer(file, f"{name}.attention.key_length", hidden // heads)
    if _integer(file, f"{name}.rope.dimension_count", head_dim) != head_dim:
        raise ModelLoadError(f"{file.path}: rotary embedding over a part of the head is not supported for {name}")
    return Shape(
        architecture=name,
        layers=_integer(file, f"{name}.block_count"),
        heads=heads,
        kv_heads=_integer(file, f"{name}.attention.head_count_kv", heads),
        head_dim=head_dim,
    )


def model_configuration(file: GGUFFile, rope_divisors: NDArray[np.float32] | None) -> dict[str, Any]:
    """The contents of config.json. rope_divisors: the values of the tensor `rope_freqs.weight`, where there is one."""
    shape = shape_of(file)
    name = shape.architecture
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise file.corrupt("tensor token_embd.weight is missing")
    window = file.metadata.get(f"{name}.attention.sliding_window") if name == "llama" else None
    theta = float(file.metadata.get(f"{name}.rope.freq_base", 10000.0))
    eos = end_of_sequence_ids(file.metadata)
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM" if window else ARCHITECTURES[name]],
        "model_type": "mistral" if window else name,
        "vocab_size": embedding.shape[0],
        "hidden_size": _integer(file, f"{name}.embedding_length"),
        "intermediate_size": _integer(file, f"{name}.feed_forward_length"),
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _short_float(file.metadata.get(f"{name}.attention.layer_norm_rms_epsilon", 1e-6)),
        "max_position_embeddings": _integer(file, f"{name}.context_length"),
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, **_rope_scaling(file, shape, theta, rope_divisors)},
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
        "dtype": "float16",
        "transformers_version": "5.0.0",  # the layout of this file: rope_parameters, dtype
    }
    if window:
        config["sliding_window"] = int(window)
    if name != "qwen2":  # Qwen2's biases are part of the architecture
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if config["rope_parameters"]["rope_type"] == "yarn":
        config["max_position_embeddings"] = max(
            config["max_position_embeddings"],
            round(config["rope_parameters"]["original_max_position_embeddings"] * config["rope_parameters"]["factor"]),
        )
    return config


def generation_configuration(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of generation_config.json: the special ids, all that end a sequence included."""
    return {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": end_of_sequence_ids(metadata),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }


def end_of_sequence_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Ids that end a sequence: the end-of-sequence, -turn and -message ids, then other control tokens known as such."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = [int(metadata[f"tokenizer.ggml.{key}"]) for key in keys if f"tokenizer.ggml.{key}" in metadata]
    types = metadata.get("tokenizer.ggml.token_type")
    if types is not None:
        tokens = metadata.get("tokenizer.ggml.tokens", [])
        ids += [int(i) for i in np.flatnonzero(types == CONTROL) if i < len(tokens) and tokens[i] in END_MARKS]
    return list(dict.fromkeys(ids))


def _rope_scaling(
    file: GGUFFile, shape: Shape, theta: float, divisors: NDArray[np.float32] | None
) -> dict[str, float | int | str]:
    """rope_type and its parameters, in transformers' terms."""
    if divisors is not None:
        factor = float(divisors.max())
        if not np.allclose(divisors, _llama3_divisors(factor, theta, shape.head_dim), rtol=1e-3):
            raise ModelLoadError(
                f"{file.path}: rope_freqs.weight is not Llama 3's rope scaling, the only one supported"
            )
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LLAMA3_LOW,
            "high_freq_factor": LLAMA3_HIGH,
            "original_max_position_embeddings": LLAMA3_ORIGINAL,
        }
    prefix = f"{shape.architecture}.rope.scaling"
    kind = str(file.metadata.get(f"{prefix}.type", "none"))
    if kind == "none":
        return {"rope_type": "default"}
    factor = float(file.metadata.get(f"{prefix}.factor", 1.0))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = _integer(file, f"{prefix}.original_context_length")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise ModelLoadError(f"{file.path}: rope scaling {kind!r} is not supported (supported: linear, yarn, Llama 3's)")


def _llama3_divisors(factor: float, theta: float, head_dim: int) -> NDArray[np.float64]:
    """Divisor of each rotary frequency, float64 [head_dim / 2]: 1 for short wavelengths, `factor` for long ones, and an
    interpolation of the frequency between (The Llama 3 Herd of Models, long-context scaling as released)."""
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = LLAMA3_ORIGINAL * frequencies / (2 * np.pi)  # full turns within the original context
    blend = np.clip((turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW), 0.0, 1.0)
    return np.asarray(1.0 / ((1 - blend) / factor + blend))


def _integer(file: GGUFFile, key: str, default: int | None = None) -> int:
    value = file.metadata.get(key, default)
    if value is None:
        raise file.corrupt(f"metadata {key} is missing")
    if not isinstance(value, int | float):
        raise ModelLoadError(f"{file.path}: {key} differs between layers, which is not supported")
    return int(value)


def _short_float(value: float) -> float:
    """The shortest decimal that rounds to this float32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))
