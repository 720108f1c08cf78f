"""Independent references for Bregman decoding: definitions, bisection and enumeration; no formula of the code's own."""

import itertools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.sampling.bregman.decode import decode
from strategies.sampling.bregman.parameters import BregmanParameters
from strategies.sampling.bregman.plan import plan

Array = NDArray[np.float64]

PRIMAL = (0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
DUAL = (1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
CASES = [("primal", alpha) for alpha in PRIMAL] + [("dual", alpha) for alpha in DUAL]


def phi(x: Array, alpha: float) -> Array:
    if alpha == 1:
        return np.where(x > 0, x * np.log(np.where(x > 0, x, 1)), 0)
    return x**alpha / (alpha * (alpha - 1))


def slope(x: Array, alpha: float) -> Array:
    """phi'."""
    return 1 + np.log(x) if alpha == 1 else x ** (alpha - 1) / (alpha - 1)


def divergence(x: Array, y: Array, alpha: float) -> Array:
    """D(x, y) over the last axis; a term with y = 0 needs x = 0, or alpha > 1."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        terms = phi(x, alpha) - phi(y, alpha) - slope(y, alpha) * (x - y)
    return np.where((x == 0) & (y == 0), 0, terms).sum(-1)


def project(p: Array, support: NDArray[np.bool_], mode: str, alpha: float) -> Array:
    """The best q with each row's support: p [V], support bool [N, V], p > 0 there. Bisection on the multiplier."""
    p = np.broadcast_to(p, support.shape)
    top = np.where(support, p, 0).max(-1, keepdims=True)
    safe = np.where(support, p, 1.0)
    high = slope(np.ones_like(top), alpha) - slope(top, alpha) if mode == "primal" else 1 - top
    low = np.zeros_like(high)

    def weights(nu: Array) -> Array:
        if mode == "primal":
            if alpha == 1:
                return safe * np.exp(nu)
            with np.errstate(invalid="ignore"):  # alpha < 1, nu too large by rounding: NaN, which is not short of 1
                return np.asarray((safe ** (alpha - 1) + (alpha - 1) * nu) ** (1 / (alpha - 1)))
        below, above = safe, np.ones_like(safe)
        for _ in range(60):
            middle = (below + above) / 2
            short = middle ** (alpha - 2) * (middle - safe) < nu
            below, above = np.where(short, middle, below), np.where(short, above, middle)
        return (below + above) / 2

    for _ in range(100):
        nu = (low + high) / 2
        short = np.where(support, weights(nu), 0).sum(-1, keepdims=True) < 1
        low, high = np.where(short, nu, low), np.where(short, high, nu)
    return np.where(support, weights((low + high) / 2), 0)


def least(p: Array, support: NDArray[np.bool_], mode: str, alpha: float) -> Array:
    """f of each support, [N]: the least divergence, over the whole vocabulary."""
    q = project(p, support, mode, alpha)
    return divergence(q, p, alpha) if mode == "primal" else divergence(p, q, alpha)


def all_supports(p: Array) -> NDArray[np.bool_]:
    """Every nonempty set of tokens with positive probability, bool [N, V]."""
    choices = [(False, True) if x > 0 else (False,) for x in p]
    return np.array(list(itertools.product(*choices)))[1:]


def prefixes(p: Array) -> NDArray[np.bool_]:
    """Supports of the k largest tokens, k = 1 .. number of positive ones; p sorted, largest first."""
    n = int((p > 0).sum())
    return np.tril(np.ones((n, len(p)), dtype=bool))


def entmax(z: Array, alpha: float) -> Array:
    """alpha-entmax of scores z [V], alpha > 1, by bisection on its threshold (Peters et al. 2019, eq. 10-12)."""
    m = alpha - 1
    low, high = m * z.max() - 1, m * z.max()
    for _ in range(200):
        t = (low + high) / 2
        total = (np.maximum(m * z - t, 0) ** (1 / m)).sum()
        low, high = (t, high) if total >= 1 else (low, t)
    return np.asarray(np.maximum(m * z - (low + high) / 2, 0) ** (1 / m))


def settings_of(mode: str, alpha: float, **limits: Any) -> BregmanParameters:
    """Parameters; `lam` stands for lambda."""
    if "lam" in limits:
        limits["lambda"] = limits.pop("lam")
    return BregmanParameters.model_validate({"mode": mode, "alpha": alpha, **limits})


def run(
    p: Array, *parameters: BregmanParameters, dtype: torch.dtype = torch.float64
) -> tuple[NDArray[np.int64], Array]:
    """k [R] and dense q [R, V] of one distribution decoded with each of the parameters, in one batch."""
    with np.errstate(divide="ignore"):
        logits = torch.from_numpy(np.log(p)).to(dtype).repeat(len(parameters), 1)
    found = decode(logits, plan(parameters, len(p)))
    q = torch.zeros(logits.shape, dtype=torch.float64).scatter_add_(-1, found.ids, found.q)  # behind k, q is 0
    return found.k.numpy(), q.numpy()


def random_p(seed: int, V: int) -> Array:
    """A distribution in random order: Dirichlet 0.2 or 1, Zipf, or softmax of Gaussian logits."""
    rng = np.random.default_rng(seed)
    kind = seed % 4
    if kind < 2:
        p = rng.dirichlet(np.full(V, (0.2, 1.0)[kind])) + 1e-12
    elif kind == 2:
        p = rng.permutation(1 / np.arange(1, V + 1) ** rng.uniform(0.8, 2)) * rng.uniform(0.9, 1.1, V)
    else:
        p = np.exp(rng.normal(0, 3, V))
    return np.asarray(p / p.sum())


def penalty_of(mode: str, alpha: float, tau: float) -> float:
    """lambda = the cost of dropping a token of probability tau, from the definition of the divergence."""
    x, zero = np.array([tau]), np.array([1e-300 if alpha <= 1 else 0.0])
    value = divergence(zero, x, alpha) if mode == "primal" else divergence(x, zero, alpha)
    assert math.isfinite(float(value))
    return float(value)
