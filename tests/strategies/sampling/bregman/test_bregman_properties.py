"""Properties of the optimum and of the renormalisation, against definitions and brute force."""

from typing import Any

import numpy as np
import pytest
import torch
from bregman_oracle import (
    CASES,
    Array,
    all_supports,
    divergence,
    entmax,
    least,
    prefixes,
    project,
    random_p,
    run,
    settings_of,
    slope,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.sampling.bregman.generator import Family, family, most_kept, penalty_of_floor
from strategies.sampling.bregman.renormalise import increments
from strategies.sampling.bregman.select import closed_form_gains, gain

CASE = st.sampled_from(CASES)
FIXED_CASE = st.sampled_from(
    [*CASES, ("primal", -4.0), ("primal", -2.0), ("primal", 0.0), ("primal", 8.0), ("dual", 8.0)]
)
SEED = st.integers(0, 10**6)
TAU = st.sampled_from([0.3, 0.1, 0.05, 0.02, 0.01])
quick = settings(deadline=None, max_examples=25, derandomize=True)


def descending(p: Array) -> Array:
    return np.sort(p)[::-1].copy()


def tensors(p: Array, rows: int, alpha: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.from_numpy(p).repeat(rows, 1)
    return x, x.log(), torch.full((rows, 1), alpha, dtype=torch.float64)


@quick
@given(SEED, st.integers(5, 2000), CASE, TAU)
def test_invariants_of_the_adaptive_result(seed: int, V: int, case: tuple[Any, float], tau: float) -> None:
    mode, alpha = case
    p = random_p(seed, V)
    lam = penalty_of_floor(mode, alpha, tau)
    (k, *_), (q, *_) = run(p, settings_of(mode, alpha, lam=lam))
    order = np.argsort(-p, kind="stable")
    assert abs(q.sum() - 1) <= 1e-12
    assert (q >= 0).all()
    assert np.count_nonzero(q) == k
    assert (q[order[k:]] == 0).all()
    kept_p, kept_q = p[order[:k]], q[order[:k]]
    assert (np.diff(kept_q) <= 1e-15).all()
    assert (kept_q >= kept_p * (1 - 1e-12)).all()
    assert k <= most_kept(mode, alpha, lam)
    assert k >= (p > tau * (1 + 1e-9)).sum()
    assert k <= np.ceil((alpha - 1 if mode == "dual" and alpha > 2 else 1) ** (2 / alpha) / tau)


@quick
@given(SEED, st.integers(5, 300), CASE)
def test_k_falls_as_lambda_grows(seed: int, V: int, case: tuple[Any, float]) -> None:
    mode, alpha = case
    p = random_p(seed, V)
    lambdas = np.geomspace(penalty_of_floor(mode, alpha, 0.005), penalty_of_floor(mode, alpha, 0.9), 12)
    k, _ = run(p, *(settings_of(mode, alpha, lam=float(lam)) for lam in lambdas), settings_of(mode, alpha, lam=np.inf))
    assert (np.diff(k) <= 0).all()
    assert k[-1] == 1


@quick
@given(SEED, st.integers(4, 40), CASE, TAU, st.integers(1, 5), st.integers(0, 10))
def test_no_k_costs_less(seed: int, V: int, case: tuple[Any, float], tau: float, k_min: int, width: int) -> None:
    """Also: the optimum in a window of k is the unconstrained one clamped to it."""
    mode, alpha = case
    p = random_p(seed, V)
    lam = penalty_of_floor(mode, alpha, tau)
    k_max = k_min + width
    k, q = run(p, settings_of(mode, alpha, lam=lam), settings_of(mode, alpha, lam=lam, k_min=k_min, k_max=k_max))
    cost = least(descending(p), prefixes(descending(p)), mode, alpha) + lam * np.arange(1, V + 1)
    window = slice(min(k_min, V) - 1, k_max)
    for found_k, found_q, best in ((k[0], q[0], cost.min()), (k[1], q[1], cost[window].min())):
        own = divergence(found_q, p, alpha) if mode == "primal" else divergence(p, found_q, alpha)
        assert own + lam * found_k <= best + 1e-11
        assert cost[found_k - 1] <= best + 1e-11
    assert min(k_min, V) <= k[1] <= k_max
    assert k[1] == np.clip(k[0], min(k_min, V), k_max)


@settings(deadline=None, max_examples=2, derandomize=True)
@given(SEED, st.integers(3, 8), TAU)
@pytest.mark.parametrize(("mode", "alpha"), CASES)
def test_no_support_costs_less(mode: Any, alpha: float, seed: int, V: int, tau: float) -> None:
    p = random_p(seed, V)
    lam = penalty_of_floor(mode, alpha, tau)
    k, q = run(p, settings_of(mode, alpha, lam=lam))
    supports = all_supports(p)
    cost = least(p, supports, mode, alpha) + lam * supports.sum(-1)
    found = np.flatnonzero((supports == (q[0] > 0)).all(-1))[0]
    assert cost[found] <= cost.min() + 1e-11
    assert supports[found].sum() == k[0]
    np.testing.assert_allclose(q[0], project(p, supports[found][None], mode, alpha)[0], atol=1e-10)


@quick
@given(SEED, st.integers(3, 60), CASE)
def test_gains_are_the_differences_of_least_divergences_and_fall(seed: int, V: int, case: tuple[Any, float]) -> None:
    mode, alpha = case
    p = descending(random_p(seed, V))
    kind = family(mode, alpha)
    if kind.needs_root_finding:
        found = gain(kind, *tensors(p, V - 1, alpha)[:2], torch.arange(1, V), tensors(p, V - 1, alpha)[2]).numpy()
    else:
        found = closed_form_gains(kind, torch.from_numpy(p)[None])[0].numpy()
    f = least(p, prefixes(p), mode, alpha)
    np.testing.assert_allclose(found, f[:-1] - f[1:], rtol=0, atol=1e-11)
    assert (np.diff(found) <= 1e-12).all()


@quick
@given(SEED, st.integers(3, 200), st.sampled_from([("primal", 1.5), ("primal", 2.0), ("dual", 2.0)]))
def test_closed_forms_agree_with_root_finding(seed: int, V: int, case: tuple[Any, float]) -> None:
    mode, alpha = case
    p = descending(random_p(seed, V))
    general = Family.DUAL if mode == "dual" else Family.PRIMAL_ABOVE_ONE
    x, log_x, a = tensors(p, V - 1, alpha)
    k = torch.arange(1, V)
    closed = closed_form_gains(family(mode, alpha), x[:1])[0]
    np.testing.assert_allclose(gain(general, x, log_x, k, a), closed, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        increments(general, x, log_x, k, a), increments(family(mode, alpha), x, log_x, k, a), rtol=1e-9, atol=1e-15
    )


@quick
@given(SEED, st.integers(5, 600), FIXED_CASE, st.integers(2, 400))
def test_stationarity_and_shape_at_fixed_k(seed: int, V: int, case: tuple[Any, float], k: int) -> None:
    mode, alpha = case
    k = min(k, V)
    p = descending(random_p(seed, V))
    _, (q, *_) = run(p, settings_of(mode, alpha, k=k))
    assert abs(q.sum() - 1) <= 1e-12
    p, q = p[:k], q[:k]
    if mode == "primal":
        residual = slope(q, alpha) - slope(p, alpha) if alpha != 0 else 1 / p - 1 / q
        scale = np.abs(slope(q, alpha)).max() if alpha != 0 else (1 / p).max()
    else:
        residual = q ** (alpha - 2) * (q - p)
        scale = (q ** (alpha - 1)).max()
    nu = np.median(residual)
    assert np.abs(residual - nu).max() <= 1e-9 * abs(nu) + 1e-13 * scale
    rising = q / p if mode == "primal" and alpha < 1 else p / q  # nondecreasing in p
    assert (np.diff(rising) <= 1e-9 * rising[1:]).all()
    grown = (q - p) * (1 if alpha <= 2 else -1)
    assert (np.diff(grown) <= 1e-12).all()


@pytest.mark.parametrize(
    ("mode", "alpha"), [*CASES, ("primal", -4.0), ("primal", -1.0), ("primal", 0.0), ("primal", 8.0), ("dual", 8.0)]
)
def test_tokens_that_grow_manyfold(mode: Any, alpha: float) -> None:
    """A few of very many, nearly equally likely tokens: q is thousands of times p, so q_i/q_j bounds are wide."""
    p = descending(np.exp(np.random.default_rng(4).normal(0, 0.01, 50_000)))
    p[:3] = p[0] * np.array([1.0, 1.0, 0.999])  # a tie at the top
    p /= p.sum()
    _, (q, *_) = run(p, settings_of(mode, alpha, k=5))
    assert abs(q.sum() - 1) <= 1e-12
    p, q = p[:5], q[:5]
    assert q[0] == q[1]
    m = alpha - 1
    if mode == "dual":
        nu = q ** (m - 1) * (q - p)
    elif alpha == 1:
        nu = np.log(q / p)
    else:
        nu = (q**m - p**m) / m
    assert np.ptp(nu) <= 1e-9 * nu.mean()


@quick
@given(SEED, st.integers(3, 300), st.integers(1, 300), TAU)
def test_kl_scales_and_euclidean_modes_agree(seed: int, V: int, k: int, tau: float) -> None:
    p = random_p(seed, V)
    k = min(k, V)
    _, q = run(p, settings_of("primal", 1.0, k=k), settings_of("dual", 1.0, k=k))
    top = np.where(np.isin(np.arange(V), np.argsort(-p, kind="stable")[:k]), p, 0)
    np.testing.assert_allclose(q, np.stack([top / top.sum()] * 2), rtol=1e-12)
    both_k, both_q = run(p, settings_of("primal", 2.0, tau=tau), settings_of("dual", 2.0, tau=tau))
    assert both_k[0] == both_k[1]
    np.testing.assert_array_equal(both_q[0], both_q[1])


@quick
@given(SEED, st.integers(3, 200), st.integers(2, 60))
def test_continuous_at_one_and_at_the_limits(seed: int, V: int, k: int) -> None:
    p = random_p(seed, V)
    k = min(k, V)
    _, q = run(
        p,
        settings_of("primal", 1.0, k=k),
        settings_of("primal", 1 + 1e-5, k=k),
        settings_of("primal", 1 - 1e-5, k=k),
        settings_of("dual", 1 + 1e-5, k=k),
    )
    assert np.abs(q[1:] - q[0]).max() < 1e-5


@quick
@given(SEED, st.integers(3, 200), st.integers(1, 60))
def test_limits_of_alpha(seed: int, V: int, k: int) -> None:
    """+inf fills the smallest to a common level; -inf gives the largest everything; large |alpha| comes close."""
    p = descending(random_p(seed, V))
    k = min(k, V)
    _, (water, dual, top) = run(
        p, settings_of("primal", "inf", k=k), settings_of("dual", "inf", k=k), settings_of("primal", "-inf", k=k)
    )  # type: ignore[arg-type]
    low, high = 0.0, 1.0
    for _ in range(100):
        level = (low + high) / 2
        low, high = (level, high) if np.maximum(p[:k], level).sum() < 1 else (low, level)
    np.testing.assert_allclose(water[:k], np.maximum(p[:k], level), atol=1e-14)
    np.testing.assert_array_equal(water, dual)
    np.testing.assert_allclose(top[:k], p[:k] + np.eye(V)[0, :k] * (1 - p[:k].sum()), atol=1e-14)
    x, log_x, _ = tensors(p, 1, 0)
    size = torch.tensor([k])
    for kind, alpha, limit in ((Family.PRIMAL_ABOVE_ONE, 300.0, water), (Family.PRIMAL_BELOW_ONE, -60.0, top)):
        added = increments(kind, x, log_x, size, torch.tensor([[alpha]], dtype=torch.float64))[0, :k].numpy()
        assert abs(added.sum() - (1 - p[:k].sum())) < 1e-12
        if alpha > 0 or (p[0] > p[1] * 1.2):
            np.testing.assert_allclose(p[:k] + added, limit[:k], atol=0.01)


@quick
@given(SEED, st.integers(2, 100), st.integers(1, 60), st.sampled_from([1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0]))
def test_primal_renormalisation_is_entmax_of_the_support(seed: int, V: int, k: int, alpha: float) -> None:
    p = descending(random_p(seed, V))
    k = min(k, V)
    _, (q, *_) = run(p, settings_of("primal", alpha, k=k))
    np.testing.assert_allclose(q[:k], entmax(p[:k] ** (alpha - 1) / (alpha - 1), alpha), atol=1e-10)
