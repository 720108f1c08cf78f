"""Converts a GGUF file to a folder in Hugging Face's layout, which transformers can load too.

Matrices become float16, vectors float32. Tensors are dequantised a slab of rows at a time and written straight to
model.safetensors, so memory stays far below the size of the model.
"""

import json
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from models.gguf.configuration import (
    Shape,
    architecture_of,
    generation_configuration,
    model_configuration,
    shape_of,
)
from models.gguf.reader import GGUFFile, TensorInfo
from models.gguf.tokenizer import build_tokenizer, tokenizer_configuration
from strategies.errors import ModelLoadError

SLAB_VALUES = 1 << 22
ROPE_DIVISORS = "rope_freqs.weight"

OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WEIGHTS = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def convert(source: Path, folder: Path) -> None:
    """Writes config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.

    folder: exists. Raises ModelLoadError when the file is corrupt or holds something that can't be converted exactly.
    """
    file = GGUFFile(source)
    shape = shape_of(file)
    divisors = None
    if ROPE_DIVISORS in file.tensors:
        divisors = dequantised(file, file.tensors[ROPE_DIVISORS])
    config = model_configuration(file, divisors)
    names = tensor_names(file, shape)
    build_tokenizer(file).save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation_configuration(file.metadata))
    _write_json(folder / "tokenizer_config.json", tokenizer_configuration(file, config["max_position_embeddings"]))
    write_safetensors(file, shape, names, folder / "model.safetensors")


def tensor_names(file: GGUFFile, shape: Shape) -> dict[str, str]:
    """GGUF tensor name -> Hugging Face name, for every tensor that is converted.

    Raises ModelLoadError for a tensor that is missing, or one this architecture is not known to have.
    """
    required = ["token_embd.weight", "output_norm.weight"]
    optional: list[str] = ["output.weight"]
    for i in range(shape.layers):
        required += [f"blk.{i}.{part}.weight" for part in WEIGHTS]
        biases = [f"blk.{i}.{part}.bias" for part in ("attn_q", "attn_k", "attn_v")]
        if shape.architecture == "qwen2":
            required += biases
        elif shape.architecture == "qwen3":
            required += [f"blk.{i}.attn_q_norm.weight", f"blk.{i}.attn_k_norm.weight"]
        elif "blk.0.attn_q.bias" in file.tensors:
            required += [*biases, f"blk.{i}.attn_output.bias"]
    missing = [name for name in required if name not in file.tensors]
    if missing:
        raise file.corrupt(f"tensor {missing[0]} is missing, {len(missing)} in all")
    known = {*required, *optional}
    unknown = [name for name in file.tensors if name not in known and name != ROPE_DIVISORS]
    if unknown:
        raise ModelLoadError(f"{file.path}: tensor {unknown[0]} is not supported for {architecture_of(file)}")
    return {name: _huggingface_name(name) for name in file.tensors if name in known}


def _huggingface_name(name: str) -> str:
    if name in OUTER:
        return OUTER[name]
    match = BLOCK.fullmatch(name)
    assert match is not None, name
    layer, part, kind = match.groups()
    return f"model.layers.{layer}.{LAYER[part]}.{kind}"


def write_safetensors(file: GGUFFile, shape: Shape, names: dict[str, str], target: Path) -> None:
    """Dequantises the tensors of `names` into one safetensors file (8-byte header length, JSON header, data).

    float32 tensors come first, so that every tensor is aligned to its own element size.
    """
    order = sorted(names, key=lambda name: len(file.tensors[name].shape))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        dimensions = file.tensors[name].shape
        start, end = end, end + prod(dimensions) * _output_type(dimensions).itemsize
        kind = "F32" if len(dimensions) == 1 else "F16"
        header[names[name]] = {"dtype": kind, "shape": list(dimensions), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with target.open("wb") as sink:
        sink.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in order:
            _write_tensor(file, shape, file.tensors[name], sink)


def _write_tensor(file: GGUFFile, shape: Shape, info: TensorInfo, sink: BinaryIO) -> None:
    dtype = _output_type(info.shape)
    heads = _rotary_heads(shape, info.name)
    slabs = _slabs(file, info) if heads is None else iter([half_split(dequantised(file, info), heads)])
    for slab in slabs:
        if not np.isfinite(slab).all() or np.abs(slab).max(initial=0.0) > np.finfo(dtype).max:
            raise file.corrupt(f"tensor {info.name} holds values that are no {dtype} numbers")
        sink.write(np.ascontiguousarray(slab, dtype).data)


def _rotary_heads(shape: Shape, name: str) -> int | None:
    """Heads of a tensor whose rows must be put back into Hugging Face's rotary layout; None for any other tensor."""
    if shape.architecture != "llama" or not (match := BLOCK.fullmatch(name)):
        return None
    return {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(match[2])


def half_split(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undoes GGUF's rotary layout for Llama: rows (2i, 2i + 1) of a head rotate together there, rows
    (i, i + head_dim / 2) in Hugging Face's. weight: [heads * head_dim, ...], same shape out."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def dequantised(file: GGUFFile, info: TensorInfo) -> NDArray[np.float32]:
    """A whole tensor as float32, in row-major shape. Raises ModelLoadError for an element type without a decoder."""
    return np.concatenate(list(_slabs(file, info))).reshape(info.shape)


def _slabs(file: GGUFFile, info: TensorInfo) -> Iterator[NDArray[np.float32]]:
    """The rows of a tensor, float32 [rows, length], in slabs of at most about SLAB_VALUES values."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # a slow import that warm starts don't need
    from gguf.quants import dequantize

    try:
        kind = GGMLQuantizationType(info.type)
        values_per_block, bytes_per_block = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as fault:
        raise file.corrupt(f"tensor {info.name} has the unknown type {info.type}") from fault
    length = info.shape[-1]
    if length % values_per_block or length == 0:
        raise file.corrupt(f"tensor {info.name} has rows of {length} values in blocks of {values_per_block}")
    rows = file.raw(info, length // values_per_block * bytes_per_block)
    step = max(1, SLAB_VALUES // length)
    for start in range(0, len(rows), step):
        try:
            slab = dequantize(rows[start : start + step], kind)
        except NotImplementedError as fault:
            raise ModelLoadError(
                f"{file.path}: tensor type {kind.name} is not supported; use another quantisation"
            ) from fault
        yield np.asarray(slab, np.float32)


def _output_type(dimensions: tuple[int, ...]) -> np.dtype[Any]:
    return np.dtype(np.float32 if len(dimensions) == 1 else np.float16)


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    present = {key: value for key, value in contents.items() if value is not None}
    path.write_text(json.dumps(present, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
