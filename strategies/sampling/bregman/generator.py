"""The alpha family of generators, and what its constants say about the number of tokens kept.

    phi_alpha(x) = x^alpha / (alpha (alpha - 1)),    phi_1(x) = x log x

so that phi'' = x^(alpha - 2): alpha = 1 is the Kullback-Leibler divergence, alpha = 2 half the squared Euclidean
distance. The paper's own scale of phi is unconfirmed; a source that uses s * phi_alpha has lambda s times ours.

    primal:  min over q of  D(q, p) + lambda ||q||_0        dual:  min over q of  D(p, q) + lambda ||q||_0
"""

import math
from enum import Enum
from typing import Literal

import torch
from torch import Tensor

Mode = Literal["primal", "dual"]

SERIES_BELOW = 1e-4  # of |rho|: there the closed form of the distortion cancels, three terms are exact to 1e-12


class Family(Enum):
    """Rows that share formulas: closed forms, the two limits, and three kinds that need root finding."""

    PROPORTIONAL = "alpha = 1, either mode"
    SQUARE_ROOT = "alpha = 1.5, primal"
    EUCLIDEAN = "alpha = 2, either mode"
    WATER_FILLING = "alpha = +inf, either mode"
    ALL_TO_TOP = "alpha = -inf, primal"
    PRIMAL_ABOVE_ONE = "alpha > 1, primal"
    PRIMAL_BELOW_ONE = "alpha < 1, primal"
    DUAL = "alpha > 1, dual"

    @property
    def needs_root_finding(self) -> bool:
        """Whether renormalisation has no closed form."""
        return self in (Family.PRIMAL_ABOVE_ONE, Family.PRIMAL_BELOW_ONE, Family.DUAL)


def family(mode: Mode, alpha: float) -> Family:
    """The family of one row. Raises ValueError for a dual with alpha < 1, which is not convex."""
    if mode == "dual" and alpha < 1:
        raise ValueError(f"the dual needs alpha >= 1, got {alpha}")
    if alpha == 1:
        return Family.PROPORTIONAL
    if alpha == 2:
        return Family.EUCLIDEAN
    if alpha == math.inf:
        return Family.WATER_FILLING
    if mode == "dual":
        return Family.DUAL
    if alpha == -math.inf:
        return Family.ALL_TO_TOP
    if alpha == 1.5:
        return Family.SQUARE_ROOT
    return Family.PRIMAL_ABOVE_ONE if alpha > 1 else Family.PRIMAL_BELOW_ONE


def drop_factor(mode: Mode, alpha: float) -> float:
    """c in the cost c p^alpha of dropping a token: d(0, p) has c = 1 / alpha, d(p, 0) has 1 / (alpha (alpha - 1)).

    Raises ValueError where dropping costs infinity (primal alpha <= 0, dual alpha <= 1).
    """
    if not (0 if mode == "primal" else 1) < alpha < math.inf:
        raise ValueError(f"dropping a token has no finite cost at alpha = {alpha} ({mode})")
    return 1 / alpha if mode == "primal" else 1 / (alpha * (alpha - 1))


def penalty_of_floor(mode: Mode, alpha: float, tau: float) -> float:
    """lambda such that dropping a token of probability tau costs just lambda; a likelier one is always kept.

    No more than ceil(1 / tau) tokens are kept, whatever the distribution (primal, and dual with alpha <= 2).
    """
    return drop_factor(mode, alpha) * math.pow(tau, alpha)


def floor_of_penalty(mode: Mode, alpha: float, penalty: float) -> float:
    """tau, the inverse of `penalty_of_floor`; may be +inf."""
    return _root(penalty / drop_factor(mode, alpha), alpha)


def most_kept(mode: Mode, alpha: float, penalty: float) -> float:
    """The largest number of tokens that can be optimal, whatever the distribution: whole, >= 1, +inf for penalty 0.

    The smallest of k weights that sum to 1 is at most 1/k; a token is kept only if its keeping, at that weight, is
    worth the penalty.
    """
    constant = (alpha - 1) / alpha if mode == "dual" and alpha >= 2 else drop_factor(mode, alpha)
    bound = math.inf if penalty == 0 else _root(constant / penalty, alpha)
    return bound if bound == math.inf else float(max(1, math.ceil(bound)))


def _root(x: float, alpha: float) -> float:
    """x^(1 / alpha), +inf where that overflows."""
    try:
        return math.pow(x, 1 / alpha)
    except OverflowError:
        return math.inf


def distortion(p: Tensor, log_p: Tensor, increment: Tensor, alpha: Tensor, mode: Mode) -> Tensor:
    """d(p + increment, p) (primal) or d(p, p + increment) (dual) per token, without cancellation or overflow.

    p, log_p, increment: float64 [B, K], p > 0, increment >= 0. alpha: [B, 1], not 0 and not 1. Returns [B, K].
    """
    m = alpha - 1
    rise = torch.log1p(increment / p)  # log q / p
    q = p + increment
    if mode == "primal":
        rho = increment / p
        base = torch.exp(alpha * log_p)
        middle = ((1 + rho) * torch.expm1(m * rise) / m - rho) / alpha * base
        # For q far above p the powers of rho overflow; the same with q's power factored out does not.
        share = p / q
        far = (-torch.expm1(-m * rise) / m * (alpha - m * share) - (1 - share)) / alpha
        middle = torch.where(rho > 1, far * torch.exp(alpha * (log_p + rise)), middle)
    else:
        rho = -increment / q
        base = torch.exp(alpha * (log_p + rise))
        middle = (p / q * torch.expm1(-m * rise) / m - rho) / alpha * base
    series = rho * rho / 2 * (1 + (alpha - 2) * rho / 3 * (1 + (alpha - 3) * rho / 4)) * base
    return torch.where(rho.abs() < SERIES_BELOW, series, middle)
