"""Renormalisation T on a given support: where the missing mass goes.

The k kept tokens have probabilities p_i that sum to 1 - r; T adds increments that sum to r and minimise the divergence:
phi'(q_i) = phi'(p_i) + nu (primal), phi''(q_i) (q_i - p_i) = nu (dual). Mass is only added, order is preserved.
alpha in {1, 1.5 primal, 2, +inf, -inf} has closed forms; any other is solved for one token's increment, which lies
within a factor k of r: solving for the multiplier instead loses everything to rounding at large alpha.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from strategies.sampling.bregman.generator import Family

OUTER_STEPS = 12
INNER_STEPS = 8
CONVERGED = 2e-15

Evaluation = tuple[Tensor, Tensor]
"""The increments [B, K], and d(their sum)/dy [B, 1], y the logarithm of the anchor's increment."""


def renormalise(family: Family, p: Tensor, log_p: Tensor, k: Tensor, alpha: Tensor) -> Tensor:
    """q of the k largest tokens, float64 [B, K]: 0 beyond k, each row sums to 1.

    p, log_p: float64 [B, K], largest first, probabilities in the whole vocabulary (for PROPORTIONAL any multiple of
    them). k: int64 [B], >= 1, every one of the k tokens positive. alpha: float64 [B, 1].
    """
    kept = _prefix(p, k)
    q = torch.where(kept, p, 0.0) + increments(family, p, log_p, k, alpha)
    return q / q.sum(-1, keepdim=True)


def increments(family: Family, p: Tensor, log_p: Tensor, k: Tensor, alpha: Tensor) -> Tensor:
    """What T adds to each token, float64 [B, K]; arguments as for `renormalise`. PROPORTIONAL: 0, up to the scale."""
    kept = _prefix(p, k)
    mass = p.cumsum(-1)
    last = (k - 1)[:, None]
    missing = (1 - mass.gather(-1, last)).clamp_min(0)  # [B, 1]
    size = k[:, None].to(p.dtype)
    if family is Family.PROPORTIONAL:
        return torch.zeros_like(p)
    if family is Family.EUCLIDEAN:
        added = missing / size
    elif family is Family.SQUARE_ROOT:
        root = p.sqrt()
        total = root.cumsum(-1).gather(-1, last)
        c = missing / (total + torch.sqrt(total * total + size * missing))
        added = c * (2 * root + c)
    elif family is Family.WATER_FILLING:
        # sum max(p_i, t) is the largest, over j, of S_j + (k - j) t; it reaches 1 first at the smallest solution.
        before = mass - p
        above = torch.arange(p.shape[-1], device=p.device, dtype=p.dtype)
        level = torch.where(kept, (1 - before) / (size - above), torch.inf).amin(-1, keepdim=True)
        added = (level - p).clamp_min(0)
    elif family is Family.ALL_TO_TOP:
        top = kept & (log_p == log_p[:, :1])
        added = torch.where(top, missing / top.sum(-1, keepdim=True), 0.0)
    else:
        return _solve(family, p, log_p, k, alpha, missing)
    return torch.where(kept, added, 0.0)


def _prefix(p: Tensor, k: Tensor) -> Tensor:
    return torch.arange(p.shape[-1], device=p.device) < k[:, None]


def _solve(family: Family, p: Tensor, log_p: Tensor, k: Tensor, alpha: Tensor, missing: Tensor) -> Tensor:
    """Safeguarded Newton for y = log increment of the anchor, the token that receives the most.

    The anchor is the first token for alpha <= 2 and the last one above, whence log(r / k) <= y <= log r.
    """
    kept = _prefix(p, k)
    p = torch.where(kept, p, 1.0)
    log_p = torch.where(kept, log_p, 0.0)
    size = k[:, None].to(p.dtype)
    anchor = torch.where(alpha <= 2, 0, k[:, None] - 1)
    trivial = (missing <= 0) | (size == 1)
    log_missing = torch.where(trivial, 1.0, missing).log()
    low, high = log_missing - size.log(), log_missing.clone()
    evaluate = _EVALUATIONS[family](p, log_p, kept, alpha, anchor)
    y = (low + high) / 2
    done = trivial
    for _ in range(OUTER_STEPS):
        added, slope = evaluate(y)
        total = added.sum(-1, keepdim=True)
        excess = total.log() - log_missing
        low, high = torch.where(excess < 0, y, low), torch.where(excess < 0, high, y)
        step = y - excess * total / slope
        step = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
        # A finished row stands still, so that its result does not depend on its neighbours' number of steps.
        converged = (step - y).abs() <= CONVERGED * y.abs().clamp_min(1)
        y = torch.where(done, y, step)
        done = done | converged
        if _all(done):
            break
    added, _ = evaluate(y)
    added = torch.where(kept, added, 0.0)
    added = added * (missing / added.sum(-1, keepdim=True))
    return torch.where(trivial, torch.where(kept, missing / size, 0.0), added)


def _all(done: Tensor) -> bool:
    """Whether to stop early: only where asking does not stall a device."""
    return done.device.type == "cpu" and bool(done.all())


def _primal_above_one(
    p: Tensor, log_p: Tensor, kept: Tensor, alpha: Tensor, anchor: Tensor
) -> Callable[[Tensor], Evaluation]:
    """q^m = p^m + c, c > 0, with c relative to the anchor's p^m in logarithms."""
    m = alpha - 1
    p_anchor = p.gather(-1, anchor)
    distance = m * (log_p.gather(-1, anchor) - log_p)
    zero = torch.zeros((), dtype=p.dtype, device=p.device)

    def evaluate(y: Tensor) -> Evaluation:
        e = y.exp()
        z = m * torch.log1p(e / p_anchor)
        log_c = z + torch.log(-torch.expm1(-z))
        rise = torch.logaddexp(zero, distance + log_c) / m
        log_q = log_p + rise
        slope = torch.exp((1 - m) * (log_q - log_q.gather(-1, anchor)))
        return (
            torch.where(kept, p * torch.expm1(rise), 0.0),
            e * torch.where(kept, slope, 0.0).sum(-1, keepdim=True),
        )

    return evaluate


def _primal_below_one(
    p: Tensor, log_p: Tensor, kept: Tensor, alpha: Tensor, anchor: Tensor
) -> Callable[[Tensor], Evaluation]:
    """q^m = p^m - c, 0 < c < p_1^m; the anchor is the first token."""
    m = alpha - 1
    log_power = -m * (log_p - log_p[:, :1])
    power, rest = log_power.exp(), -torch.expm1(log_power)

    def evaluate(y: Tensor) -> Evaluation:
        e = y.exp()
        log_u = m * torch.log1p(e / p[:, :1])
        b = power * torch.expm1(log_u)
        # b rounds to -1 where a token grows manyfold; 1 + b is the sum of two nonnegative parts.
        rise = torch.where(b < -0.5, torch.log(rest + power * log_u.exp()), torch.log1p(b)) / m
        log_q = log_p + rise
        slope = torch.exp((1 - m) * (log_q - log_q[:, :1]))
        return (
            torch.where(kept, p * torch.expm1(rise), 0.0),
            e * torch.where(kept, slope, 0.0).sum(-1, keepdim=True),
        )

    return evaluate


def _dual(p: Tensor, log_p: Tensor, kept: Tensor, alpha: Tensor, anchor: Tensor) -> Callable[[Tensor], Evaluation]:
    """(m - 1) log(p + e^t) + t = eta per token, t = log increment: Newton from any start, slope between 1 and m."""
    m = alpha - 1
    p_anchor = p.gather(-1, anchor)
    t = torch.empty(0)

    def evaluate(y: Tensor) -> Evaluation:
        nonlocal t
        eta = y + (m - 1) * torch.log(p_anchor + y.exp())
        if not t.numel():
            t = y.expand_as(p)
        for _ in range(INNER_STEPS):
            added = t.exp()
            q = p + added
            step = (t + (m - 1) * q.log() - eta) * q / (p + m * added)
            converged = step.abs() <= CONVERGED * t.abs().clamp_min(1)
            t = torch.where(converged, t, t - step)
            if _all(converged):
                break
        added = t.exp()
        w = added * (p + added) / (p + m * added)
        slope = torch.where(kept, w / w.gather(-1, anchor), 0.0).sum(-1, keepdim=True) * y.exp()
        return torch.where(kept, added, 0.0), slope

    return evaluate


_EVALUATIONS = {
    Family.PRIMAL_ABOVE_ONE: _primal_above_one,
    Family.PRIMAL_BELOW_ONE: _primal_below_one,
    Family.DUAL: _dual,
}
