"""The interface between the engine and a model: one forward pass over a packed batch of token trees."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.torch_runtime.batch import PackedBatch
from models.torch_runtime.kv_pool import SlotPool


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the engine must know to size pools and count operations.

    max_positions: tokens the model was made for. matmul_parameters: weights that multiply each token (output head
    included, embedding look-up excluded). kv_dtype: of the pools. kernels: what runs the linears and the small
    operations, for logs and the fingerprint.
    """

    architecture: str
    vocab_size: int
    max_positions: int
    num_layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    matmul_parameters: int
    kv_dtype: torch.dtype
    device: torch.device
    dtype: str
    kernels: str


class ForwardModel(Protocol):
    """Anything that turns a packed batch into logits; implemented by real models and by the scripted one."""

    shape: ModelShape

    def forward(self, batch: PackedBatch, pool: SlotPool) -> Tensor:
        """Writes the new tokens' keys and values to their slots; returns states after the last norm [T, hidden]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> float32 [R, vocab], freshly allocated (the pipeline overwrites it)."""
