"""Bregman decoding against the specification's vectors (brute force, 40 digits) and its worked example."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bregman_oracle import run, settings_of

from strategies.sampling.bregman.decode import write_log_q
from strategies.sampling.bregman.generator import Family, family
from strategies.sampling.bregman.plan import plan
from strategies.sampling.bregman.select import closed_form_gains, gain

VECTORS = json.loads((Path(__file__).parent / "bregman.json").read_text())
P = np.array([0.5, 0.25, 0.15, 0.07, 0.03])

WORKED = [
    ("primal", 1.0, (0.405465, 0.182322, 0.074901, 0.030459), 0.1, (0.555556, 0.277778, 0.166667)),
    ("primal", 1.5, (0.213584, 0.060224, 0.015183, 0.003705), 0.05, (0.544042, 0.281415, 0.174543)),
    ("primal", 2.0, (0.140625, 0.025208, 0.004004, 0.000563), 0.02, (0.533333, 0.283333, 0.183333)),
    ("dual", 2.0, (0.140625, 0.025208, 0.004004, 0.000563), 0.02, (0.533333, 0.283333, 0.183333)),
    ("dual", 1.5, (0.281347, 0.097830, 0.027474, 0.007168), 0.05, (0.543736, 0.281467, 0.174798)),
    ("primal", 0.5, (1.186579, 0.821848, 0.537164, 0.347208), 0.6, (0.566622, 0.272896, 0.160481)),
]


def cases() -> list[Any]:
    adaptive = [pytest.param(v, {"lam": float(v["lambda"])}, id=v["name"]) for v in VECTORS["vectors"]]
    fixed = [
        pytest.param(v, {"k": v["k"]}, id=f"{v['mode']}-{v['alpha']}-k{v['k']}") for v in VECTORS["renorm_fixed_k"]
    ]
    return adaptive + fixed


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("vector", "limits"), cases())
def test_vector(vector: dict[str, Any], limits: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    alpha = vector["alpha"] if isinstance(vector["alpha"], str) else float(vector["alpha"])
    parameters = settings_of(vector["mode"], alpha, **limits)
    p = np.array(vector["p"])
    k, q = run(p, parameters, dtype=dtype)
    assert k[0] == vector["k"]
    np.testing.assert_allclose(q[0], vector["q"], rtol=0, atol=tolerance)
    logits = torch.from_numpy(p).log()[None].to(dtype)
    written = write_log_q(logits, plan([parameters], len(p)))
    np.testing.assert_allclose(written[0].exp(), vector["q"], rtol=0, atol=max(tolerance, 1e-12))
    assert torch.isfinite(written).sum() == vector["k"]


@pytest.mark.parametrize(("mode", "alpha", "deltas", "lam", "q"), WORKED)
def test_worked_example(mode: Any, alpha: float, deltas: tuple[float, ...], lam: float, q: tuple[float, ...]) -> None:
    k, found = run(P, settings_of(mode, alpha, lam=lam))
    assert k[0] == 3
    np.testing.assert_allclose(found[0], (*q, 0, 0), atol=6e-7)
    p = torch.from_numpy(P)[None]
    kind: Family = family(mode, alpha)
    if kind.needs_root_finding:
        a = torch.full((4, 1), alpha, dtype=torch.float64)
        gains = gain(kind, p.repeat(4, 1), p.log().repeat(4, 1), torch.arange(1, 5), a)
    else:
        gains = closed_form_gains(kind, p)[0]
    np.testing.assert_allclose(gains, deltas, atol=6e-7)
