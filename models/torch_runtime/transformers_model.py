"""Any decoder-only transformers model whose attention is pluggable, driven over our KV slots.

The model's own code runs unchanged, but for two things: its attention function is ours (registered with transformers'
`AttentionInterface`), and on CPU its linears run through the packed kernels. A probe at load time compares what comes
out with the untouched model's own forward pass, so that an architecture which computes something else is refused
instead of served wrongly.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from models.torch_runtime.attention import SlotAttention
from models.torch_runtime.batch import PackedBatch, Segment
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.linear import LinearKernel, pack_linear
from models.torch_runtime.model import ModelShape
from strategies.errors import ModelLoadError

ATTENTION = "decoding_server"
PROBE_LENGTH = 12
PROBE_TOLERANCE = 5e-2
"""Relative difference of the probe's logits above which a model is refused; wrong attention or a missed scaling is
far beyond it, 16-bit arithmetic far below."""


class _Step:
    """What the attention function needs of the forward pass it is called in; travels through the model's **kwargs."""

    def __init__(self, batch: PackedBatch, pool: SlotPool) -> None:
        self.slots = batch.slots
        self.pool = pool
        self.attention = SlotAttention(batch)


def _slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    slot_step: _Step | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query [1, heads, T, head_dim]; returns [1, T, heads, head_dim]."""
    if slot_step is None:
        raise RuntimeError("the model does not pass keyword arguments on to its attention")
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # nn.Module's attributes are Tensor or Module to mypy
    keys, values = slot_step.pool.keys[layer], slot_step.pool.values[layer]
    keys[slot_step.slots] = key[0].transpose(0, 1).to(keys.dtype)
    values[slot_step.slots] = value[0].transpose(0, 1).to(values.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended = slot_step.attention.attend(
        query[0].transpose(0, 1), keys, values, scale=scale, window=sliding_window or 0, softcap=softcap or 0.0
    )
    return attended[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """Visibility is a matter of slots; the model's own mask is never built."""


class PackedLinear(nn.Module):
    """Stands in for an nn.Linear, running `pack_linear`'s kernel on [..., in_features]."""

    def __init__(self, linear: nn.Linear, kernel: LinearKernel) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._run = pack_linear(linear.weight.detach(), None if linear.bias is None else linear.bias.detach(), kernel)

    def forward(self, x: Tensor) -> Tensor:
        rows = self._run(x.reshape(-1, self.in_features))
        return rows.view(*x.shape[:-1], self.out_features)


class TransformersModel:
    """Implements `ForwardModel` over an AutoModelForCausalLM."""

    def __init__(self, folder: Path, *, kernel: LinearKernel, dtype: torch.dtype, device: torch.device) -> None:
        """Raises ModelLoadError for a model that can't be loaded or can't be driven this way."""
        AttentionInterface.register(ATTENTION, _slot_attention)
        AttentionMaskInterface.register(ATTENTION, _no_mask)
        # The reference is eager: transformers' sdpa path leaves out Gemma 2's soft cap.
        # On CPU activations are float32 whatever precision the packed weights have.
        self._dtype = torch.float32 if device.type == "cpu" else dtype
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=self._dtype, attn_implementation="eager", local_files_only=True
            )
        except Exception as error:  # transformers raises many kinds for one cause: it can't load this folder
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelLoadError(f"transformers can't load {folder}: {first}") from error
        if not getattr(model, "_supports_attention_backend", False):
            raise ModelLoadError(
                f"{type(model).__name__} has no pluggable attention in transformers; it is not supported"
            )
        self._model: Any = model.to(device).eval().requires_grad_(False)
        self._device = device
        self._text: Any = config.get_text_config(decoder=True)
        expected = self._reference_logits()
        self._model.set_attn_implementation(ATTENTION)
        packed = _pack_linears(self._model, kernel) if device.type == "cpu" else None
        self._head = self._model.get_output_embeddings()
        self.shape = self._shape(packed, "torch" if packed is None else kernel, dtype)
        self._verify(expected)

    def forward(self, batch: PackedBatch, pool: SlotPool) -> Tensor:
        """See `ForwardModel.forward`."""
        output = self._model.base_model(
            input_ids=batch.token_ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            slot_step=_Step(batch, pool),
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """See `ForwardModel.logits`."""
        return _after_head(self._head(hidden), self._text).float()

    def _reference_logits(self) -> Tensor:
        tokens = torch.arange(1, PROBE_LENGTH + 1, device=self._device) % int(self._text.vocab_size)
        with torch.inference_mode():
            logits: Tensor = self._model(input_ids=tokens[None], use_cache=False).logits[0].float()
        return logits

    def _verify(self, expected: Tensor) -> None:
        """Compares logits over the slots with the untouched model's; in two chunks, so that slots are read back."""
        shape, name = self.shape, type(self._model).__name__
        pool = SlotPool(
            num_layers=shape.num_layers,
            num_slots=PROBE_LENGTH,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.kv_dtype,
            device=self._device,
        )
        slots = pool.allocate(PROBE_LENGTH)
        tokens = [t % int(self._text.vocab_size) for t in range(1, PROBE_LENGTH + 1)]
        half = PROBE_LENGTH // 2
        try:
            with torch.inference_mode():
                parts = [
                    self.logits(
                        self.forward(
                            PackedBatch([Segment.chain(tokens[a:b], slots[a:b], slots[:a])], self._device), pool
                        )
                    )
                    for a, b in ((0, half), (half, PROBE_LENGTH))
                ]
        except (RuntimeError, TypeError, IndexError, AttributeError) as error:
            raise ModelLoadError(f"{name} can't be driven over KV slots ({error}); it is not supported") from error
        difference = float((torch.cat(parts) - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
        if not difference <= PROBE_TOLERANCE:
            raise ModelLoadError(
                f"{name} gives other logits over KV slots than alone (relative difference {difference:.2g}); "
                "it is not supported"
            )

    def _shape(self, packed: int | None, kernel: str, dtype: torch.dtype) -> ModelShape:
        text = self._text
        heads = int(text.num_attention_heads)
        body = [module for module in self._model.base_model.modules() if not isinstance(module, nn.Embedding)]
        matmul = sum(p.numel() for module in body for p in module.parameters(recurse=False) if p.dim() == 2)
        return ModelShape(
            architecture=str(text.model_type),
            vocab_size=int(text.vocab_size),
            max_positions=int(getattr(text, "max_position_embeddings", 2048)),
            num_layers=int(text.num_hidden_layers),
            kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
            hidden_size=int(text.hidden_size),
            matmul_parameters=matmul + (packed or 0) + int(text.vocab_size) * int(text.hidden_size),
            kv_dtype=self._dtype,
            device=self._device,
            dtype=str(dtype).removeprefix("torch."),
            kernels=f"transformers' {type(self._model).__name__}, {kernel} linears",
        )


def _pack_linears(model: nn.Module, kernel: LinearKernel) -> int:
    """Replaces every nn.Linear; returns the number of their weights below the head."""
    weights = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                weights += 0 if name == "lm_head" else child.weight.numel()
                setattr(parent, name, PackedLinear(child, kernel))
    return weights


def _after_head(logits: Tensor, config: Mapping[str, Any] | Any) -> Tensor:
    """What some architectures do to logits after the output head, by their configuration."""
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scale
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    return logits
