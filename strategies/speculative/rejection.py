"""Recursive rejection sampling: draft tokens are tried in turn, each against the residual of the ones before.

Jeon et al. 2024 (arXiv 2402.14160). With q_1 = q and p_k the law of the k-th draw given the draws before it,

    accept X_k with probability min(1, q_k(X_k) / p_k(X_k));  else  q_{k+1} = norm([q_k - p_k]_+)

and after the last rejection emit a token of q_{K+1}. The emitted token has law q, whatever p is. Without replacement
p_k is p restricted to the tokens not drawn yet; with replacement p_k = p (multi-round verification of i.i.d. drafts,
Miao et al. 2023, SpecInfer); a token proposed by rule, not by chance, has p_k = 1 there (target matching).

Everything is float64: the residual of two close distributions is a difference that lower precision would ruin.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# A residual of less mass than this is rounding noise: the rejection that leads to it has at most this probability.
NEGLIGIBLE_MASS = 1e-12


@dataclass(frozen=True, slots=True)
class Trials:
    """What the tries at R nodes lead to.

    accept: float64 [R, K], probability that try k is accepted given that those before it were rejected; 0 for padding.
    residual: float64 [R, V], law of the token to emit when all tries were rejected.
    Tries after the one that is accepted, and the residual then, are unspecified where a rule was given uniforms.
    """

    accept: Tensor
    residual: Tensor


class AcceptanceRule(Protocol):
    """How the children of a node are accepted."""

    def __call__(
        self, draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
    ) -> Trials:
        """The tries at R nodes.

        draft_logprobs: [R, V], up to a constant per row, -inf outside the support; None if the draft has none.
        target_probs: float64 [R, V], normalised. tokens: int64 [R, K] in the order drawn, -1 padding at the end.
        uniforms: float64 [R, K]; when given, try k is accepted iff uniforms[k] < accept[k], and the rule may stop
        computing when every row has accepted. Nothing is written in place.
        Raises ValueError if the rule needs draft_logprobs and has none.
        """


def probabilities(logprobs: Tensor) -> Tensor:
    """Normalised float64 probabilities [..., V] of log-probabilities up to a constant; zeros for a row of -inf."""
    rows = torch.softmax(logprobs, -1, dtype=torch.float64)
    empty = logprobs.amax(-1, keepdim=True) == -torch.inf
    return rows.masked_fill_(empty, 0.0) if bool(empty.any()) else rows


def acceptance_probability(draft_probs: Tensor, target_probs: Tensor, token: Tensor) -> Tensor:
    """min(1, q(x) / p(x)), float64 [R]; 0 where token is -1. p, q: float64 [R, V]. token: int64 [R], p(token) > 0."""
    index = token.clamp(min=0)[:, None]
    p, q = draft_probs.gather(-1, index)[:, 0], target_probs.gather(-1, index)[:, 0]
    # q > 0 is tested apart: 0/0 would be NaN, and a token outside the target's support must never pass.
    return torch.where((token >= 0) & (q > 0), (q / p).clamp(max=1.0), 0.0)


def residual_distribution(draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """norm([q - p]_+), float64 [R, V]; q itself where nothing but rounding noise is left."""
    excess = (target_probs - draft_probs).clamp_(min=0.0)
    mass = excess.sum(-1, keepdim=True)
    return torch.where(mass > NEGLIGIBLE_MASS, excess / mass, target_probs)


def _recursive_rejection(
    draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None, replacement: bool
) -> Trials:
    if draft_logprobs is None:
        raise ValueError("rejection sampling needs the draft's log-probabilities")
    accept = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    undecided = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    q = target_probs
    remaining = draft_logprobs.to(torch.float64, copy=not replacement)
    p = probabilities(remaining)
    for k in range(tokens.shape[1]):
        token = tokens[:, k]
        accept[:, k] = acceptance_probability(p, q, token)
        if uniforms is not None:
            undecided &= uniforms[:, k] >= accept[:, k]
            if not bool(undecided.any()):
                break
        tried = (token >= 0)[:, None]
        q = torch.where(tried, residual_distribution(p, q), q)
        if not replacement and k + 1 < tokens.shape[1]:
            # Renormalised over what remains: p / (1 - sum) would cancel for a peaked p.
            index = token.clamp(min=0)[:, None]
            remaining.scatter_(-1, index, torch.where(tried, -torch.inf, remaining.gather(-1, index)))
            p = probabilities(remaining)
    return Trials(accept, q)


def without_replacement(
    draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
) -> Trials:
    """Rule for children drawn without replacement (RSD-C and RSD-S); tokens of a row are distinct."""
    return _recursive_rejection(draft_logprobs, target_probs, tokens, uniforms, replacement=False)


def with_replacement(
    draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
) -> Trials:
    """Rule for i.i.d. children; a repeated token is a try of its own (it fails for certain, and moves the residual)."""
    return _recursive_rejection(draft_logprobs, target_probs, tokens, uniforms, replacement=True)


def target_matching(
    draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
) -> Trials:
    """Rule for children chosen without chance (n-gram look-up, arg-max): p_k is a point mass, draft_logprobs unused.

    Tokens of a row are distinct. Same law as sampling from q and following the child that was hit.
    """
    accept = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    q = target_probs
    for k in range(tokens.shape[1]):
        token = tokens[:, k]
        point = torch.zeros_like(q).scatter_(-1, token.clamp(min=0)[:, None], (token >= 0).to(q.dtype)[:, None])
        accept[:, k] = acceptance_probability(point, q, token)
        q = torch.where((token >= 0)[:, None], residual_distribution(point, q), q)
    return Trials(accept, q)
