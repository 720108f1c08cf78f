"""Small GGUF files, written with the gguf package, for the tests of this folder."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

Writer = Callable[..., Path]
CORPUS = ["the cat sat on the mat, 12 345 times; don't stop", "ünïcödé 你好 def f(x):\n\treturn x ** 2\n"] * 20


@pytest.fixture(scope="session")
def byte_level_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens (three control tokens first) and merges of a small byte-level BPE."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [" ".join(merge) for merge in model["merges"]]


@pytest.fixture
def write_gguf(tmp_path: Path, byte_level_vocabulary: tuple[list[str], list[str]]) -> Writer:
    """write(name, architecture, numbers, tensors, tokenizer) -> path of a GGUF file.

    numbers: metadata without the architecture's prefix. tensors: name -> array; float16 and float32 are stored as they
    are, names in `quantised` as Q8_0. tokenizer: metadata that replaces or extends that of the byte-level vocabulary.
    """
    tokens, merges = byte_level_vocabulary

    def write(
        name: str = "tiny.gguf",
        architecture: str = "llama",
        numbers: Mapping[str, Any] | None = None,
        tensors: Mapping[str, np.ndarray] | None = None,
        tokenizer: Mapping[str, Any] | None = None,
        quantised: frozenset[str] = frozenset(),
    ) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, architecture)
        sized = {"context_length": 128, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 5000.0}
        for key, value in {**sized, **(numbers or {})}.items():
            full = key if key.startswith("split.") else f"{architecture}.{key}"
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(full, value)
        types = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3)
        entries = {
            "model": "gpt2", "pre": "smollm", "tokens": tokens, "token_type": [int(t) for t in types], "merges": merges,
            "bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 2, **(tokenizer or {}),
        }  # fmt: skip
        for key, value in entries.items():
            if value is None:
                continue
            if isinstance(value, bool):
                writer.add_bool(f"tokenizer.ggml.{key}", value)
            elif isinstance(value, int):
                writer.add_uint32(f"tokenizer.ggml.{key}", value)
            elif isinstance(value, str):
                writer.add_string(f"tokenizer.ggml.{key}", value)
            else:
                writer.add_array(f"tokenizer.ggml.{key}", value)
        for key, array in (tensors or {}).items():
            if key in quantised:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(key, gguf.quants.quantize(array.astype(np.float32), kind), raw_dtype=kind)
            else:
                writer.add_tensor(key, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def write_tiny_llama(write_gguf: Writer, byte_level_vocabulary: tuple[list[str], list[str]]) -> Callable[..., Path]:
    """A complete one-layer Llama of 2 heads of 16, random weights."""
    rng = np.random.default_rng(0)
    rows = len(byte_level_vocabulary[0])

    def write(name: str = "tiny.gguf", **overrides: Any) -> Path:
        def matrix(*shape: int) -> np.ndarray:
            return rng.normal(0, 0.1, shape).astype(np.float16)

        tensors = {
            "token_embd.weight": matrix(rows, 32),
            "output_norm.weight": np.ones(32, np.float32),
            "blk.0.attn_norm.weight": np.ones(32, np.float32),
            "blk.0.ffn_norm.weight": np.ones(32, np.float32),
            "blk.0.attn_q.weight": matrix(32, 32),
            "blk.0.attn_k.weight": matrix(32, 32),
            "blk.0.attn_v.weight": matrix(32, 32),
            "blk.0.attn_output.weight": matrix(32, 32),
            "blk.0.ffn_gate.weight": matrix(64, 32),
            "blk.0.ffn_up.weight": matrix(64, 32),
            "blk.0.ffn_down.weight": matrix(32, 64),
        }
        numbers = {"block_count": 1, "embedding_length": 32, "feed_forward_length": 64, "attention.head_count": 2}
        numbers |= overrides.pop("numbers", {})
        tensors |= overrides.pop("tensors", {})
        for key in overrides.pop("without", ()):
            del tensors[key]
        return write_gguf(name, overrides.pop("architecture", "llama"), numbers, tensors, **overrides)

    return write
