"""Rotary position embeddings (Su et al. 2021, RoFormer) as cosine and sine tables."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def rotary_tables(
    rotary: Mapping[str, Any], head_dim: int, positions: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin, each [positions, head_dim / 2]. rotary: a config's rope_parameters; default, linear or llama3."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    frequency = 1.0 / (float(rotary["rope_theta"]) ** exponent)
    if rotary["rope_type"] == "linear":
        frequency = frequency / float(rotary["factor"])
    elif rotary["rope_type"] == "llama3":
        frequency = _llama3(frequency, rotary)
    angle = torch.arange(positions, device=device).float()[:, None] * frequency[None, :]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _llama3(frequency: Tensor, rotary: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's scaling: long wavelengths are divided by `factor`, short ones kept, with a linear ramp between."""
    factor = float(rotary["factor"])
    low, high = float(rotary["low_freq_factor"]), float(rotary["high_freq_factor"])
    original = float(rotary["original_max_position_embeddings"])
    wavelength = 2 * math.pi / frequency
    ramp = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return frequency * (ramp + (1 - ramp) / factor)
