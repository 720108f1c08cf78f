"""The profile of a step sees every part of it."""

import json

import pytest
import torch

from models.loading import resolve
from models.torch_runtime import step_profile
from models.torch_runtime.decoder import FusedDecoder
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.weights import load_model


def test_every_part_of_a_step_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_profile, "STEPS", 3)
    monkeypatch.setattr(step_profile, "WARM_UP", 1)
    folder = resolve(None).folder
    config = json.loads((folder / "config.json").read_text())
    model = load_model(folder, config, dtype=torch.float16, device=torch.device("cpu"))
    assert isinstance(model, FusedDecoder)
    shape = model.shape
    pool = SlotPool(
        num_layers=shape.num_layers, num_slots=64, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
        dtype=shape.kv_dtype, device=shape.device,
    )  # fmt: skip
    clock = step_profile.Clock()
    step_profile.instrument(model, clock)
    found = step_profile.measure(model, pool, clock, 2, 20)
    assert set(found) == {"step", *step_profile.PARTS}
    assert all(value > 0 for value in found.values())
    assert pool.num_free == 64
