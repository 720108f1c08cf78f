"""Bregman decoding of a batch of logits: l0-penalised projection of each row's distribution.

Per row: the K candidates that decide the result, k among them (`select`), and the k tokens' new probabilities
(`renormalise`). The candidates' probabilities are those in the whole vocabulary, in float64. It is the last step before
the draw: nothing may rescale probabilities after it, and masking logits instead would be right for alpha = 1 only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.sampling.bregman.candidates import chunked, top_candidates, top_logprob
from strategies.sampling.bregman.generator import Family
from strategies.sampling.bregman.plan import Group, Plan
from strategies.sampling.bregman.renormalise import renormalise
from strategies.sampling.bregman.select import optimal_k

GROWTH = 8  # of the number of candidates between attempts
SMALLEST = 1e-300  # probabilities below it, whose reciprocals overflow, count as zero where roots are found


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """The kept tokens of R rows.

    ids: int64 [R, K], most likely first, lower id first among equals. q: float64 [R, K], their probabilities. k: int64
    [R]; behind it, q is 0 and ids repeat the first. A row that can't be decoded (NaN or +inf among its logits, or
    nothing but -inf) has k = 0 and q[0] = NaN.
    """

    ids: Tensor
    q: Tensor
    k: Tensor


def decode(logits: Tensor, plan: Plan) -> Decoded:
    """Projects each row of logits [R, V] (float64, float32 or 16-bit; only read) as its entry of the plan says.

    Raises ValueError where the plan is for another shape. Only on a CPU do data steer the control flow.
    """
    _check(logits, plan)
    if plan.groups[0].rows is None:
        return _decode_group(logits, plan.groups[0])
    ids = torch.zeros(plan.R, plan.K, dtype=torch.int64, device=logits.device)
    q = torch.zeros(plan.R, plan.K, dtype=torch.float64, device=logits.device)
    k = torch.zeros(plan.R, dtype=torch.int64, device=logits.device)
    for group in plan.groups:
        found = _decode_group(logits[group.rows], group)
        ids[group.rows] = found.ids[:, :1]
        ids[group.rows, : group.K], q[group.rows, : group.K], k[group.rows] = found.ids, found.q, found.k
    return Decoded(ids, q, k)


def write_log_q(logits: Tensor, plan: Plan) -> Tensor:
    """Overwrites logits [R, V] with log q, -inf where a token is not kept, and returns them.

    A row that can't be decoded gets a NaN, for the pipeline's check of faulty rows to find. Raises as `decode`.
    """
    _check(logits, plan)
    for group in plan.groups:
        picked = logits if group.rows is None else logits[group.rows]
        if group.unchanged:
            logits[slice(None) if group.rows is None else group.rows] = torch.log_softmax(picked, -1)
            continue
        found = _decode_group(picked, group)
        behind = torch.arange(group.K, device=logits.device) >= found.k[:, None]
        log_q = found.q.log()
        log_q = torch.where(behind, log_q[:, :1], log_q).to(logits.dtype)  # ids there repeat the first
        if group.rows is None:
            logits.fill_(-torch.inf).scatter_(-1, found.ids, log_q)
        else:
            logits.index_fill_(0, group.rows, -torch.inf)
            logits[group.rows[:, None], found.ids] = log_q
    return logits


def _check(logits: Tensor, plan: Plan) -> None:
    if logits.shape != (plan.R, plan.V):
        raise ValueError(f"the plan is for logits [{plan.R}, {plan.V}], got {list(logits.shape)}")


def _decode_group(logits: Tensor, group: Group) -> Decoded:
    """Rows [B, V] of one group.

    On a CPU, few candidates are tried first: where the stop test fires among them the result is exact, and a row that
    needs more of them tries again. A device would have to wait for the answer, so it takes all candidates at once.
    """
    K = group.start if group.adaptive and logits.device.type == "cpu" else group.K
    source = chunked(logits, K)
    values, ids = top_candidates(source, K)
    # PROPORTIONAL is free of scale: it is spared the normaliser, which costs a pass over the vocabulary.
    scaled = group.family is not Family.PROPORTIONAL
    top = top_logprob(source.logits, ids[:, 0]) if scaled else torch.zeros(len(ids), device=logits.device)
    found, settled = _attempt(values, ids, source.valid, top, group)
    found = _widen(found, group.K)
    while K < group.K and not bool(settled.all()):
        K = min(K * GROWTH, group.K)
        rows = (~settled).nonzero()[:, 0]
        values, ids = top_candidates(source, K, rows)
        more, settled[rows] = _attempt(values, ids, source.valid[rows], top[rows], group.select(rows))
        found.ids[rows, :K], found.q[rows, :K], found.k[rows] = more.ids, more.q, more.k
    return found


def _widen(found: Decoded, K: int) -> Decoded:
    """The same with K columns."""
    R, narrow = found.ids.shape
    if narrow == K:
        return found
    ids = found.ids[:, :1].repeat(1, K)
    ids[:, :narrow] = found.ids
    q = found.q.new_zeros(R, K)
    q[:, :narrow] = found.q
    return Decoded(ids, q, found.k)


def _attempt(values: Tensor, ids: Tensor, valid: Tensor, top: Tensor, group: Group) -> tuple[Decoded, Tensor]:
    """Decodes with K candidates, values and ids [B, K]; top: [B], log-probability of the first (0: up to scale).

    Returns also which rows are settled, bool [B]: more candidates would change nothing.
    """
    K = values.shape[-1]
    position = torch.arange(K, device=values.device)
    log_p = (values - values[:, :1]).double() + top[:, None]
    # An invalid row is decoded as if its first candidate were certain, so that nothing misbehaves.
    log_p = torch.where(valid[:, None], log_p, torch.where(position == 0, 0.0, -torch.inf))
    p = log_p.exp()
    n = (p > (SMALLEST if group.family.needs_root_finding else 0.0)).sum(-1)
    if group.adaptive:
        best = optimal_k(group.family, p, log_p, n, group.alpha, group.penalty)
        k, settled = torch.maximum(best, group.k_min), best < K
    else:
        k, settled = group.k_min, torch.ones_like(valid)
    k = torch.minimum(k, torch.minimum(group.k_max, n))
    q = renormalise(group.family, p, log_p, k, group.alpha)
    q = torch.where(valid[:, None] | (position > 0), q, torch.nan)
    ids = torch.where(position < k[:, None], ids, ids[:, :1])
    return Decoded(ids, q, torch.where(valid, k, 0)), settled
