"""Batches of logits: selection and ties, independence of rows, degenerate rows, and log q written into logits."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bregman_oracle import CASES, least, penalty_of, prefixes, settings_of
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.sampling.bregman.candidates import chunked, top_candidates, top_logprob
from strategies.sampling.bregman.decode import Decoded, decode, write_log_q
from strategies.sampling.bregman.plan import Plan, plan

INF, NAN = math.inf, math.nan
MIXED = [
    *(settings_of(mode, alpha, tau=(0.2, 0.01)[i % 2]) for i, (mode, alpha) in enumerate(CASES)),
    *(settings_of(mode, alpha, k=k) for mode, alpha, k in (("primal", "inf", 7), ("primal", "-inf", 3))),  # type: ignore[arg-type]
    settings_of("primal", 1.5, lam=0.0),
    settings_of("dual", 1.5, lam=0.0, k_max=40),
    settings_of("primal", 3.0, tau=0.001, k_min=33, k_max=100),
    settings_of("primal", -2.0, k=5),
    settings_of("primal", 1.0, lam=INF),
]


def random_logits(seed: int, R: int, V: int, ties: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(R, V, generator=generator) * 4
    return logits.round() if ties else logits


def dense(found: Decoded, V: int) -> torch.Tensor:
    return torch.zeros(len(found.k), V, dtype=torch.float64).scatter_add_(-1, found.ids, found.q)


def everything(batch: Plan) -> Plan:
    """The same with all tokens as candidates, at once."""
    return Plan(tuple(replace(g, K=batch.V, start=batch.V) for g in batch.groups), batch.R, batch.V, batch.V)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.integers(1, 5000),
    st.integers(1, 300),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_candidates_are_the_head_of_a_stable_sort(seed: int, V: int, K: int, ties: bool, dtype: torch.dtype) -> None:
    K = min(K, V)
    logits = random_logits(seed, 4, V, ties).to(dtype)
    logits[0] = torch.tensor([0.0, -0.0]).repeat(V)[:V]  # equal, though their bits differ
    logits[1, V // 2 :] = -INF
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    for expected in (K, max(1, K // 8)):  # chunks for fewer candidates than then asked for
        source = chunked(logits, expected)
        found, ids = top_candidates(source, K)
        assert torch.equal(found, values[:, :K].to(found.dtype))
        assert torch.equal(ids, order[:, :K])
        rows = torch.tensor([3, 1])
        found, ids = top_candidates(source, K, rows)
        assert torch.equal(found, values[rows, :K].to(found.dtype))
        assert torch.equal(ids, order[rows, :K])
    assert source.valid.tolist() == [True, V > 1, True, True]


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 20000), st.integers(1, 9), st.floats(-100, 100))
def test_log_probability_of_the_best_token(seed: int, V: int, R: int, shift: float) -> None:
    logits = random_logits(seed, R, V) + shift
    exact = torch.log_softmax(logits.double(), -1).amax(-1)
    np.testing.assert_allclose(top_logprob(logits, logits.argmax(-1)), exact, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_affect_one_another(dtype: torch.dtype) -> None:
    logits = random_logits(1, len(MIXED), 700).to(dtype)
    logits[3, 5], logits[4, 6], logits[5] = NAN, INF, -INF
    together = decode(logits, plan(MIXED, 700))
    written = write_log_q(logits.clone(), plan(MIXED, 700))
    for i, parameters in enumerate(MIXED):
        alone = decode(logits[i : i + 1], plan([parameters], 700))
        assert together.k[i] == alone.k[0] == (0 if i in (3, 4, 5) else together.k[i])
        k = int(alone.k[0])
        assert torch.equal(together.ids[i, :k], alone.ids[0, :k])
        np.testing.assert_allclose(together.q[i, :k], alone.q[0, :k], rtol=1e-6 if dtype == torch.float32 else 1e-14)
        line = write_log_q(logits[i : i + 1].clone(), plan([parameters], 700))[0]
        np.testing.assert_allclose(written[i], line, rtol=1e-5, atol=1e-6)
        assert torch.isfinite(written[i].amax()) == (i not in (3, 4, 5))


def test_order_of_rows_does_not_matter() -> None:
    logits = random_logits(2, len(MIXED), 300).double()
    shuffled = torch.randperm(len(MIXED), generator=torch.Generator().manual_seed(3))
    straight = dense(decode(logits, plan(MIXED, 300)), 300)
    mixed = dense(decode(logits[shuffled], plan([MIXED[i] for i in shuffled.tolist()], 300)), 300)
    np.testing.assert_allclose(mixed, straight[shuffled], atol=1e-14)


@settings(deadline=None, max_examples=4, derandomize=True)
@given(st.integers(0, 10**6), st.integers(5, 400), st.integers(1, 300))
def test_permuting_and_padding_the_vocabulary(seed: int, V: int, padding: int) -> None:
    logits = random_logits(seed, len(MIXED), V).double()
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(V, generator=generator)
    q = dense(decode(logits, plan(MIXED, V)), V)
    np.testing.assert_allclose(dense(decode(logits[:, shuffled], plan(MIXED, V)), V), q[:, shuffled], atol=1e-12)
    padded = torch.cat([logits, torch.full((len(MIXED), padding), -INF)], -1)
    wide = dense(decode(padded, plan(MIXED, V + padding)), V + padding)
    np.testing.assert_allclose(wide[:, :V], q, atol=1e-12)
    assert (wide[:, V:] == 0).all()


@pytest.mark.parametrize("spread", [0.05, 1.0, 4.0])
def test_candidates_suffice(spread: float) -> None:
    """Few candidates, then more where needed, give what the whole vocabulary gives; flat rows need many."""
    V = 1500
    logits = random_logits(5, len(MIXED), V) / 4 * spread
    few, all_ = decode(logits, plan(MIXED, V)), decode(logits, everything(plan(MIXED, V)))
    assert torch.equal(few.k, all_.k)
    np.testing.assert_allclose(dense(few, V), dense(all_, V), atol=1e-6)


def test_float32_agrees_with_float64() -> None:
    logits = random_logits(6, len(MIXED), 3000)
    single, double = decode(logits, plan(MIXED, 3000)), decode(logits.double(), plan(MIXED, 3000))
    assert torch.equal(single.k, double.k)
    np.testing.assert_allclose(dense(single, 3000), dense(double, 3000), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("mode", "alpha"), CASES)
def test_degenerate_rows(mode: Any, alpha: float, dtype: torch.dtype) -> None:
    V = 100
    one_hot, sparse = torch.full((V,), -INF), torch.full((V,), -INF)
    one_hot[41] = 3.0
    sparse[torch.tensor([70, 20])] = torch.tensor([2.0, 1.0])
    rows = torch.stack([one_hot, torch.zeros(V), sparse, sparse]).to(dtype)
    wanted = [settings_of(mode, alpha, tau=0.1)] * 3 + [settings_of(mode, alpha, tau=0.1, k_min=4)]
    found = decode(rows, plan(wanted, V))
    assert found.k[0] == 1
    assert found.ids[0, 0] == 41
    assert found.q[0, 0] == 1
    k = int(found.k[1])
    uniform = np.full(V, 1 / V)
    cost = least(uniform, prefixes(uniform)[:40], mode, alpha) + penalty_of(mode, alpha, 0.1) * np.arange(1, 41)
    assert k == cost.argmin() + 1
    assert found.ids[1, :k].tolist() == list(range(k))
    np.testing.assert_allclose(found.q[1, :k], 1 / k, rtol=1e-6 if dtype == torch.float32 else 1e-12)
    for row in (2, 3):  # no more than the tokens there are, whatever k_min says
        assert found.ids[row, :2].tolist() == [70, 20]
        assert found.k[row] == 2
        np.testing.assert_allclose(found.q[row, :2], [1 / (1 + math.exp(-1)), 1 / (1 + math.e)], rtol=1e-6)
    assert (found.q[:, 32:] == 0).all()


@pytest.mark.parametrize("limits", [{"tau": 0.05}, {"k": 3}, {"lam": 0.0}, {"lam": 0.0, "k_max": 3}], ids=str)
@pytest.mark.parametrize(("mode", "alpha"), [("primal", 1.0), ("primal", 1.5), ("primal", 0.5), ("dual", 3.0)])
def test_faulty_rows_fail_alone(mode: Any, alpha: float, limits: dict[str, Any]) -> None:
    V = 200
    logits = random_logits(7, 6, V)
    logits[0, 9], logits[1, 9], logits[2] = NAN, INF, -INF
    logits[3] = torch.tensor([-NAN]).copysign(torch.tensor(-1.0))
    batch = plan([settings_of(mode, alpha, **limits)] * 6, V)
    good = decode(logits[4:], plan([settings_of(mode, alpha, **limits)] * 2, V))
    found = decode(logits, batch)
    assert found.k.tolist() == [0, 0, 0, 0, *good.k.tolist()]
    assert found.q[:4, 0].isnan().all()
    np.testing.assert_allclose(found.q[4:], good.q, atol=1e-7)
    written = write_log_q(logits.clone(), batch)
    assert torch.isfinite(written.amax(-1)).tolist() == [False] * 4 + [True] * 2
    np.testing.assert_allclose(written[4:].double().exp(), dense(good, V), atol=1e-6)


def test_written_in_place_and_minus_infinity_is_never_revived() -> None:
    logits = random_logits(8, len(MIXED), 250)
    logits[:, ::3] = -INF
    before = logits.clone()
    written = write_log_q(logits, plan(MIXED, 250))
    assert written.data_ptr() == logits.data_ptr()
    assert torch.isneginf(logits[torch.isneginf(before)]).all()
    found = decode(before, plan(MIXED, 250))
    np.testing.assert_allclose(logits.double().exp(), dense(found, 250), atol=1e-6)
    np.testing.assert_allclose(logits.double().logsumexp(-1), 0, atol=2e-6)
    assert torch.equal(torch.isfinite(logits).sum(-1), found.k)


def test_decode_only_reads() -> None:
    logits = random_logits(9, 1, 64)
    before = logits.clone()
    decode(logits, plan([settings_of("primal", 1.5, tau=0.05)], 64))
    assert torch.equal(logits, before)


def test_lambda_zero_is_the_model_itself() -> None:
    logits = random_logits(10, 1, 500).double()
    batch = plan([settings_of("dual", 3.0, lam=0.0)], 500)
    p = torch.softmax(logits, -1)
    np.testing.assert_allclose(dense(decode(logits, batch), 500), p, rtol=1e-12)
    np.testing.assert_allclose(write_log_q(logits.clone(), batch).exp(), p, rtol=1e-12)


def test_a_plan_is_for_one_shape() -> None:
    batch = plan([settings_of("primal", 1.5, tau=0.05)], 64)
    for shape in ((2, 64), (1, 65)):
        with pytest.raises(ValueError, match="the plan is for"):
            decode(torch.zeros(shape), batch)
        with pytest.raises(ValueError, match="the plan is for"):
            write_log_q(torch.zeros(shape), batch)


@pytest.mark.parametrize("probability", [1e-20, 1e-60, 1e-150, 1e-290, 1e-310])
def test_tiny_probabilities_do_no_harm(probability: float) -> None:
    """Few likely tokens and many next to impossible ones: ratios up to 1e300 in the root finders."""
    tail = math.log(probability) + torch.arange(60, 0, -1).double() / 10
    logits = torch.cat([torch.tensor([0.6, 0.4], dtype=torch.float64).log(), tail])[None].repeat(len(MIXED), 1)
    found = decode(logits, plan(MIXED, 62))
    assert torch.isfinite(found.q).all()
    np.testing.assert_allclose(found.q.sum(-1), 1, atol=1e-12)
    for i, parameters in enumerate(MIXED):
        if parameters.adaptive and parameters.k_min == 1 and parameters.penalty != INF and parameters.tau == 0.01:
            assert found.k[i] == 2
            np.testing.assert_allclose(found.q[i, :2], [0.6, 0.4], atol=1e-12)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_the_same() -> None:
    logits = random_logits(11, len(MIXED), 5000)
    cpu, gpu = decode(logits, plan(MIXED, 5000)), decode(logits.cuda(), plan(MIXED, 5000, "cuda"))
    assert torch.equal(cpu.k, gpu.k.cpu())
    for i, k in enumerate(cpu.k.tolist()):
        assert torch.equal(cpu.ids[i, :k], gpu.ids[i, :k].cpu())
        np.testing.assert_allclose(cpu.q[i, :k], gpu.q[i, :k].cpu(), atol=1e-6)
