"""How many tokens to keep: the smallest k whose successor is not worth the penalty.

With f(k) the least divergence on a support of k tokens, delta_k = f(k) - f(k + 1) is nonincreasing (discrete
convexity, Noarov et al.), so that k* = min {k : delta_k <= lambda}, and the optimum in a window [k_min, k_max] is k*
clamped to it. delta_k needs the prefix of k + 1 tokens and the mass missing from it, never the tail.
"""

import torch
from torch import Tensor

from strategies.sampling.bregman.generator import Family, Mode, distortion
from strategies.sampling.bregman.renormalise import increments


def optimal_k(family: Family, p: Tensor, log_p: Tensor, n: Tensor, alpha: Tensor, penalty: Tensor) -> Tensor:
    """k* among the first n <= K candidates, int64 [B]; n itself where each of them but the last is worth keeping.

    p, log_p: float64 [B, K], largest first, as for `renormalise`. n: int64 [B], >= 1. alpha, penalty (lambda): [B, 1].
    """
    if family.needs_root_finding:
        return _binary_search(family, p, log_p, n, alpha, penalty)
    index = torch.arange(1, p.shape[-1], device=p.device)
    worth = (closed_form_gains(family, p) > penalty) & (index < n[:, None])
    # The leading run, not the count: rounding can put a stray "worth" behind it.
    return 1 + worth.cumprod(-1).sum(-1)


def closed_form_gains(family: Family, p: Tensor) -> Tensor:
    """delta_1 .. delta_{K-1}, [B, K - 1], for PROPORTIONAL, SQUARE_ROOT and EUCLIDEAN; free of cancellation."""
    mass = p.cumsum(-1)
    added = p[:, 1:]  # of token k + 1
    if family is Family.PROPORTIONAL:
        return torch.log1p(added / mass[:, :-1])
    missing = (1 - mass).clamp_min(0)
    k = torch.arange(1, p.shape[-1] + 1, device=p.device, dtype=p.dtype)
    if family is Family.EUCLIDEAN:
        k = k[:-1]
        return (missing[:, :-1] + k * added) ** 2 / (2 * k * (k + 1))
    if family is not Family.SQUARE_ROOT:
        raise ValueError(f"no closed form: {family.value}")
    root = p.sqrt()
    total = root.cumsum(-1)
    d = torch.sqrt(total * total + k * missing)
    c = missing / (total + d)
    h = c[:, :-1] - c[:, 1:]
    return 2 / 3 * (root[:, 1:] + c[:, 1:]) ** 3 + 2 * h * h * (d[:, :-1] - k[:-1] * h / 3)


def gain(family: Family, p: Tensor, log_p: Tensor, k: Tensor, alpha: Tensor) -> Tensor:
    """delta_k by its definition, E(k) - E(k + 1) + drop(p_{k+1}), for families that need root finding.

    k: int64 [B], 1 <= k < K, token k + 1 positive. Returns [B].
    """
    B, K = p.shape
    mode: Mode = "dual" if family is Family.DUAL else "primal"
    sizes = torch.cat([k, k + 1])  # both solutions at once
    p2, log_p2, alpha2 = p.repeat(2, 1), log_p.repeat(2, 1), alpha.repeat(2, 1)
    kept = torch.arange(K, device=p.device) < sizes[:, None]
    p2, log_p2 = torch.where(kept, p2, 1.0), torch.where(kept, log_p2, 0.0)
    added = increments(family, p2, log_p2, sizes, alpha2)
    lost = torch.where(kept, distortion(p2, log_p2, added, alpha2, mode), 0.0).sum(-1)
    dropped = torch.exp(alpha * log_p.gather(-1, k[:, None])) / alpha
    if mode == "dual":
        dropped = dropped / (alpha - 1)
    return lost[:B] - lost[B:] + dropped[:, 0]


def _binary_search(family: Family, p: Tensor, log_p: Tensor, n: Tensor, alpha: Tensor, penalty: Tensor) -> Tensor:
    K = p.shape[-1]
    low, high = torch.ones_like(n), n
    for _ in range((K - 1).bit_length()):
        middle = (low + high) // 2
        open_ = low < high
        k = torch.where(open_, middle, 1).clamp_max(K - 1)
        worth = gain(family, p, log_p, k, alpha) > penalty[:, 0]
        low, high = torch.where(open_ & worth, middle + 1, low), torch.where(open_ & ~worth, middle, high)
    return low
