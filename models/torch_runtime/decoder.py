"""The fused decoder: Llama-shaped models (Llama, Mistral, Qwen2, Qwen3) read straight from safetensors.

Same function as transformers' own modelling code, which the tests compare it with, but with the query, key and value
projections as one matrix, gate and up as one, one call per norm, and no framework between the layers. It needs no
import of transformers, which alone takes longer than the rest of a warm start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from models.torch_runtime.attention import KernelAttention
from models.torch_runtime.batch import PackedBatch
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.linear import Linear, LinearKernel, pack_linear
from models.torch_runtime.model import ModelShape
from models.torch_runtime.native import Kernels
from models.torch_runtime.rotary import rotary_tables

FUSED_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The numbers of a Llama-shaped model, read from a Hugging Face config.json."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    window: int
    tied: bool
    rotary: Mapping[str, Any]

    @staticmethod
    def parse(config: Mapping[str, Any]) -> "DecoderConfig | None":
        """The configuration, or None if the model is not Llama-shaped in every respect."""
        if config.get("model_type") not in FUSED_TYPES or config.get("hidden_act", "silu") != "silu":
            return None
        if "quantization_config" in config or not {"hidden_size", "num_attention_heads"} <= config.keys():
            return None
        rotary = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        rotary.setdefault("rope_theta", config.get("rope_theta", 10000.0))
        rotary.setdefault("rope_type", rotary.get("type", "default"))
        if (
            rotary["rope_type"] not in {"default", "linear", "llama3"}
            or rotary.get("partial_rotary_factor", 1.0) != 1.0
        ):
            return None
        windowed = config["model_type"] == "mistral" or config.get("use_sliding_window", False)
        window = int(config.get("sliding_window") or 0) if windowed else 0
        if window and config["model_type"] != "mistral":
            return None  # Qwen uses the window in some layers only
        heads = int(config["num_attention_heads"])
        return DecoderConfig(
            model_type=config["model_type"],
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            max_positions=int(config["max_position_embeddings"]),
            window=window,
            tied=bool(config.get("tie_word_embeddings", False)),
            rotary=rotary,
        )


@dataclass(slots=True)
class Layer:
    """Weights of one decoder layer. qkv: rows of all query heads, then key heads, then value heads."""

    input_norm: Tensor
    qkv: Linear
    output: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None


class FusedDecoder:
    """A Llama-shaped model. Implements `ForwardModel`."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Mapping[str, Tensor],
        *,
        kernel: LinearKernel,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """weights: tensors by their Hugging Face names, read one at a time. dtype: of the weights; on CPU activations
        are float32 whatever the weights are. Raises KeyError for a missing tensor, ValueError for a wrong shape."""
        self.config, self.kernels = config, kernels
        self._weights = weights
        self._kernel = kernel
        self._device = device
        self._weight_dtype = dtype
        self._dtype = torch.float32 if device.type == "cpu" else dtype
        self._embedding = self._tensor("model.embed_tokens.weight", (config.vocab_size, config.hidden_size)).to(
            dtype, copy=True
        )
        self.layers = [self._load_layer(i) for i in range(config.num_layers)]
        self._norm = self._vector("model.norm.weight", config.hidden_size)
        head = (
            self._embedding if config.tied else self._tensor("lm_head.weight", (config.vocab_size, config.hidden_size))
        )
        self._head = pack_linear(head.to(dtype), None, kernel)
        self._cos, self._sin = rotary_tables(config.rotary, config.head_dim, config.max_positions, device, self._dtype)
        per_layer = (config.heads + 2 * config.kv_heads) * config.head_dim * config.hidden_size
        per_layer += config.heads * config.head_dim * config.hidden_size
        per_layer += 3 * config.hidden_size * config.intermediate_size
        self.shape = ModelShape(
            architecture=config.model_type,
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            num_layers=config.num_layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            hidden_size=config.hidden_size,
            matmul_parameters=config.num_layers * per_layer + config.vocab_size * config.hidden_size,
            kv_dtype=self._dtype,
            device=device,
            dtype=str(dtype).removeprefix("torch."),
            kernels=f"fused decoder, {kernel} linears, {kernels.name} kernels",
        )
        del self._weights

    def forward(self, batch: PackedBatch, pool: SlotPool, layers: int | None = None) -> Tensor:
        """See `ForwardModel.forward`. [T] tokens -> [T, hidden_size]. layers: only so many of them (early exit)."""
        config, kernels = self.config, self.kernels
        count = batch.num_tokens
        x = embedding(batch.token_ids, self._embedding).to(self._dtype)
        normed = torch.empty_like(x)
        query = x.new_empty((count, config.heads, config.head_dim))
        activated = x.new_empty((count, config.intermediate_size))
        attention = KernelAttention(batch, kernels)
        scale = config.head_dim**-0.5
        kernels.rms_norm(x, self.layers[0].input_norm, config.norm_eps, normed)
        used = self.layers[:layers]
        for i, layer in enumerate(used):
            keys, values = pool.keys[i], pool.values[i]
            kernels.rope_store(
                layer.qkv(normed), self._cos, self._sin, batch.positions, batch.slots, keys, values, query,
                layer.q_norm, layer.k_norm, config.norm_eps,
            )  # fmt: skip
            attended = attention.attend(query, keys, values, scale=scale, window=config.window)
            delta = layer.output(attended.view(count, -1))
            kernels.add_rms_norm(x, delta, layer.post_norm, config.norm_eps, normed)
            kernels.silu_mul(layer.gate_up(normed), activated)
            following = used[i + 1].input_norm if i + 1 < len(used) else self._norm
            kernels.add_rms_norm(x, layer.down(activated), following, config.norm_eps, normed)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """See `ForwardModel.logits`. [R, hidden_size] -> float32 [R, vocab_size]."""
        return self._head(hidden).float()

    def _load_layer(self, i: int) -> Layer:
        config, prefix = self.config, f"model.layers.{i}."
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        attention = [(f"self_attn.{name}_proj", size) for name, size in (("q", queries), ("k", keys), ("v", keys))]
        return Layer(
            input_norm=self._vector(prefix + "input_layernorm.weight", hidden),
            qkv=self._linear(prefix, attention, hidden),
            output=self._linear(prefix, [("self_attn.o_proj", hidden)], queries),
            post_norm=self._vector(prefix + "post_attention_layernorm.weight", hidden),
            gate_up=self._linear(prefix, [("mlp.gate_proj", inner), ("mlp.up_proj", inner)], hidden),
            down=self._linear(prefix, [("mlp.down_proj", hidden)], inner),
            q_norm=self._optional_vector(prefix + "self_attn.q_norm.weight", config.head_dim),
            k_norm=self._optional_vector(prefix + "self_attn.k_norm.weight", config.head_dim),
        )

    def _linear(self, prefix: str, parts: list[tuple[str, int]], inputs: int) -> Linear:
        """Several projections of the same input as one matrix; if some have a bias, the others get zeros."""
        weight = torch.cat([self._tensor(f"{prefix}{name}.weight", (size, inputs)) for name, size in parts])
        biases = [self._optional_vector(f"{prefix}{name}.bias", size) for name, size in parts]
        bias = None
        if any(b is not None for b in biases):
            zeros = [torch.zeros(size, dtype=self._dtype, device=self._device) for _, size in parts]
            bias = torch.cat([z if b is None else b for b, z in zip(biases, zeros, strict=True)])
        return pack_linear(weight.to(self._weight_dtype), bias, self._kernel)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A weight as it lies in its file: what is kept must be a copy, or the whole file stays mapped."""
        tensor = self._weights[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the configuration says {shape}")
        return tensor.to(self._device)

    def _vector(self, name: str, size: int) -> Tensor:
        return self._tensor(name, (size,)).to(self._dtype, copy=True)

    def _optional_vector(self, name: str, size: int) -> Tensor | None:
        return self._vector(name, size) if name in self._weights else None
