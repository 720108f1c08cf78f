import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from models.gguf.convert import convert, half_split
from models.loading import check_folder
from strategies.errors import ModelLoadError

GGUF_NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "lm_head.": "output.",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF's layout of Llama's rotary rows: first-half and second-half rows of each head alternate."""
    out = np.empty_like(weight)
    size = len(weight) // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = weight[head * size + i]
            out[head * size + 2 * i + 1] = weight[head * size + size // 2 + i]
    return out


def test_half_split_undoes_ggufs_layout() -> None:
    weight = np.arange(4 * 8 * 3, dtype=np.float32).reshape(32, 3)
    assert np.array_equal(half_split(interleaved(weight, 4), 4), weight)
    assert np.array_equal(half_split(interleaved(weight[:, 0], 4), 4), weight[:, 0])


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"tie_word_embeddings": False, "head_dim": 24}),
    ],
)
def test_the_converted_model_computes_what_the_original_does(
    architecture: str, options: dict[str, Any], write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 340}
    config = AutoConfig.for_model(
        architecture, **sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, initializer_range=0.3,
        **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, so that a swapped pair shows
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half())
    tensors = {}
    for name, parameter in model.named_parameters():
        array, gguf_name = parameter.detach().numpy(), name
        for theirs, ours in GGUF_NAMES.items():
            gguf_name = gguf_name.replace(theirs, ours)
        if architecture == "llama" and ("attn_q." in gguf_name or "attn_k." in gguf_name):
            array = interleaved(array, 4 if "attn_q." in gguf_name else 2)
        tensors[gguf_name] = array.astype(np.float16) if array.ndim == 2 else array
    numbers: dict[str, Any] = {
        "block_count": 2, "embedding_length": 64, "feed_forward_length": 96, "attention.head_count": 4,
        "attention.head_count_kv": 2,
    }  # fmt: skip
    if "head_dim" in options:
        numbers |= {"attention.key_length": 24, "attention.value_length": 24}
    source = write_gguf(architecture=architecture, numbers=numbers, tensors=tensors)
    folder = tmp_path / "converted"
    folder.mkdir()

    convert(source, folder)

    check_folder(folder)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, 340, (1, 40))
    with torch.no_grad():
        difference = (model(ids).logits - again(ids).logits).abs().max()
    assert difference < 1e-4
    assert again.generation_config.eos_token_id == [2, 0]


def test_quantised_tensors_are_dequantised_to_half_precision(
    write_tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    weight = np.random.default_rng(1).normal(0, 1, (64, 32)).astype(np.float32)
    source = write_tiny_llama(tensors={"blk.0.ffn_up.weight": weight}, quantised=frozenset({"blk.0.ffn_up.weight"}))
    convert(source, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    found = stored["model.layers.0.mlp.up_proj.weight"]
    assert found.dtype == np.float16
    assert stored["model.norm.weight"].dtype == np.float32
    step = np.abs(weight).max(axis=1, keepdims=True) / 127  # Q8_0 has 255 levels a block of 32, here a row
    assert (np.abs(found - weight) <= step * 0.51 + 2e-3).all()


def llama3_divisors(factor: float, theta: float, head_dim: int) -> np.ndarray:
    """The published piecewise rule: wavelengths above 8192 tokens are divided, those below 2048 are not."""
    values = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        if wavelength < 8192 / 4:
            values.append(1.0)
        elif wavelength > 8192:
            values.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            values.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(values, np.float32)


def test_rope_scaling_is_carried_over(write_tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    def rope(**overrides: Any) -> dict[str, Any]:
        convert(write_tiny_llama(**overrides), tmp_path)
        parameters: dict[str, Any] = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
        return parameters

    assert rope() == {"rope_theta": 5000.0, "rope_type": "default"}
    linear = rope(numbers={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert (linear["rope_type"], linear["factor"]) == ("linear", 4.0)
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}
    assert rope(numbers=yarn)["original_max_position_embeddings"] == 128
    with pytest.raises(ModelLoadError, match="rope scaling 'longrope'"):
        rope(numbers={"rope.scaling.type": "longrope"})
    with pytest.raises(ModelLoadError, match=r"rope_freqs\.weight"):
        rope(tensors={"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)})


def test_llama3_scaling_is_recognised_by_its_divisors(write_tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    divisors = llama3_divisors(32.0, 500000.0, 16)
    source = write_tiny_llama(numbers={"rope.freq_base": 500000.0}, tensors={"rope_freqs.weight": divisors})
    convert(source, tmp_path)
    rope = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    assert rope == {
        "rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


def test_what_cannot_be_converted_is_named(write_tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    def message(**overrides: Any) -> str:
        with pytest.raises(ModelLoadError) as error:
            convert(write_tiny_llama(**overrides), tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    unsupported = message(architecture="falcon")
    assert "'falcon'" in unsupported
    assert "llama, qwen2, qwen3" in unsupported
    assert "experts" in message(numbers={"expert_count": 8})
    assert "blk.0.ffn_up.weight is missing" in message(without=["blk.0.ffn_up.weight"])
    assert "blk.0.strange.weight" in message(tensors={"blk.0.strange.weight": np.ones((2, 2), np.float16)})
    assert "split" in message(numbers={"split.count": 2})
    assert "output_norm.weight" in message(tensors={"output_norm.weight": np.full(32, np.nan, np.float32)})
    assert "token_embd.weight" in message(tensors={"token_embd.weight": np.full((340, 32), 1e6, np.float32)})


def test_truncated_tensor_data_is_reported(write_tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    source = write_tiny_llama()
    source.write_bytes(source.read_bytes()[:-2000])
    with pytest.raises(ModelLoadError, match=r"corrupt or truncated.*download it again"):
        convert(source, tmp_path)
