"""Working on the draft's support only: a draft of few tokens costs little, however large the vocabulary is."""

import torch
from torch import Tensor

from strategies.speculative.rejection import AcceptanceRule, Trials


def support_columns(logprobs: Tensor) -> Tensor:
    """Tokens inside the support of some row, int64 [C], ascending. logprobs: [R, V]."""
    return (logprobs.amax(0) > -torch.inf).nonzero()[:, 0]


def on_support(logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of some row's support, int64 [C], and the rows there, normalised, float64 [R, C].

    logprobs: [R, V], up to a constant per row; a row without support stays -inf. C is at least 1.
    """
    columns = support_columns(logprobs)
    if len(columns) == 0:
        columns = torch.zeros(1, dtype=torch.int64, device=logprobs.device)
    rows = logprobs[:, columns].to(torch.float64)
    empty = rows.amax(-1, keepdim=True) == -torch.inf
    return columns, rows.log_softmax(-1).masked_fill_(empty, -torch.inf)


def most_likely(logprobs: Tensor, count: int) -> Tensor:
    """Rows [R, V] restricted to their `count` most likely tokens, the rest -inf.

    For drafts: they are exact whatever distribution they are drawn from, as long as it is the one verified against. A
    draft that keeps a few hundred tokens accepts next to as much, and noise is computed for those only.
    """
    if count >= logprobs.shape[-1]:
        return logprobs
    values, tokens = logprobs.topk(count, dim=-1, sorted=False)
    return torch.full_like(logprobs, -torch.inf).scatter_(-1, tokens, values)


def first(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of the last dimension, decreasing, and their indices; the lowest index first among equals,
    as the arg-max has it. `topk` leaves that open, and half-precision logits are often equal."""
    values, index = scores.sort(dim=-1, descending=True, stable=True)
    return values[..., :count], index[..., :count]


def tries_on_support(
    rule: AcceptanceRule,
    draft_logprobs: Tensor,
    target_probs: Tensor,
    tokens: Tensor,
    uniforms: Tensor | None = None,
) -> Trials:
    """The same trials as `rule` gives, computed on the tokens that the draft can propose, and one that stands for all
    others.

    Outside the draft's support every residual is the target times one factor, so that their sum is all a rule needs.
    """
    columns = support_columns(draft_logprobs)
    inside = target_probs[:, columns]
    others = target_probs.clone()
    others[:, columns] = 0.0
    rest = others.sum(-1, keepdim=True)
    trials = rule(
        torch.nn.functional.pad(draft_logprobs[:, columns], (0, 1), value=-torch.inf),
        torch.cat([inside, rest], -1),
        torch.where(tokens >= 0, torch.searchsorted(columns, tokens.clamp(min=0)), -1),
        uniforms,
    )
    if uniforms is not None and bool((uniforms < trials.accept).any(-1).all()):
        return Trials(trials.accept, target_probs)
    factor = torch.where(rest > 0, trials.residual[:, -1:] / rest, 0.0)
    residual = others.mul_(factor)
    residual[:, columns] = trials.residual[:, :-1]
    return Trials(trials.accept, residual)
