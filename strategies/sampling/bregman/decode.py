"""Bregman decoding of a batch of logits: l0-penalised projection of each row's distribution.

Per row: the K candidates that decide the result, k among them (`select`), and the k tokens' new probabilities
(`renormalise`). The candidates' probabilities are those in the whole vocabulary, in float64. It is the last step before
the draw: nothing may rescale probabilities after it, and masking logits instead would be right for alpha = 1 only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.sampling.bregman.candidates import chunked, top_candidates, top_logprob
from strategies.sampling.bregman.generator import Family
from strategies.sampling.bregman.native import BregmanKernel, closed_form, closed_rows, kernel
from strategies.sampling.bregman.plan import Group, Plan
from strategies.sampling.bregman.renormalise import renormalise
from strategies.sampling.bregman.select import optimal_k
from strategies.sampling.support import Support

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


def decode(logits: Tensor, plan: Plan, native: bool = True) -> Decoded:
    """Projects each row of logits [R, V] (float64, float32 or 16-bit; only read) as its entry of the plan says.

    native: whether the compiled kernel may do it, where there is one (float32 on a CPU); else torch operations do.
    Raises ValueError where the plan is for another shape. Only on a CPU do data steer the control flow.
    """
    parts = list(_parts(logits, plan, plan.groups, native))
    if parts[0][0] is None:
        return _widen(parts[0][1], plan.K)
    ids = torch.zeros(plan.R, plan.K, dtype=torch.int64, device=logits.device)
    q = torch.zeros(plan.R, plan.K, dtype=torch.float64, device=logits.device)
    k = torch.zeros(plan.R, dtype=torch.int64, device=logits.device)
    for rows, part in parts:
        found = _widen(part, plan.K)
        ids[rows], q[rows], k[rows] = found.ids, found.q, found.k
    return Decoded(ids, q, k)


def kept(logits: Tensor, plan: Plan, native: bool = True) -> Support:
    """The same as a support: with no more columns than are needed, where that takes no waiting for a device."""
    parts = [(rows, _support(found)) for rows, found in _parts(logits, plan, plan.groups, native)]
    if parts[0][0] is None:
        return parts[0][1]
    K = max(part.ids.shape[-1] for _, part in parts)
    ids = torch.empty(plan.R, K, dtype=torch.int64, device=logits.device)
    log_q = torch.empty(plan.R, K, device=logits.device)
    for rows, part in parts:
        ids[rows], log_q[rows] = part.ids[:, :1], part.log_q[:, :1]
        width = part.ids.shape[-1]
        ids[rows, :width], log_q[rows, :width] = part.ids, part.log_q
    return Support(ids, log_q)


def write_log_q(logits: Tensor, plan: Plan, native: bool = True) -> Tensor:
    """Overwrites logits [R, V] with log q, -inf where a token is not kept, and returns them.

    A row that can't be decoded gets a NaN, for the pipeline's check of faulty rows to find. Arguments as for `decode`.
    """
    for rows, found in _parts(logits, plan, [group for group in plan.groups if not group.unchanged], native):
        _support(found, logits.dtype).write(logits, rows)
    for group in plan.groups:
        if group.unchanged:
            picked = logits if group.rows is None else logits[group.rows]
            logits[slice(None) if group.rows is None else group.rows] = torch.log_softmax(picked, -1)
    return logits


def _support(found: Decoded, dtype: torch.dtype = torch.float32) -> Support:
    log_q = found.q.log().to(dtype)
    return Support(found.ids, torch.where(torch.isneginf(log_q), log_q[:, :1], log_q))


def _parts(
    logits: Tensor, plan: Plan, groups: Sequence[Group], native: bool
) -> Iterator[tuple[Tensor | None, Decoded]]:
    """The rows of some of a plan's groups, decoded: their numbers, int64 [B] (None: all, in order), and the results,
    with up to K columns. All rows that the kernel can decode are one part."""
    if logits.shape != (plan.R, plan.V):
        raise ValueError(f"the plan is for logits [{plan.R}, {plan.V}], got {list(logits.shape)}")
    compiled = kernel() if native and logits.device.type == "cpu" and logits.dtype == torch.float32 else None
    if compiled is not None:
        logits = logits.contiguous()
        closed = closed_rows(plan)
        if closed is not None:
            yield closed.rows, Decoded(*compiled.decode(logits, closed))
        groups = [group for group in groups if not closed_form(group)]
    for group in groups:
        yield group.rows, _decode_group(logits if group.rows is None else logits[group.rows], group, compiled)


def _decode_group(logits: Tensor, group: Group, compiled: BregmanKernel | None) -> Decoded:
    """Rows [B, V] of one group.

    On a CPU, few candidates are tried first: where the stop test fires among them the result is exact, and a row that
    needs more of them tries again. A device would have to wait for the answer, so it takes all candidates at once.
    """
    K = group.start if group.adaptive and logits.device.type == "cpu" else group.K
    # PROPORTIONAL is free of scale: it is spared the normaliser, which costs a pass over the vocabulary.
    scaled = group.family is not Family.PROPORTIONAL
    source = _Native(logits, compiled) if compiled is not None else _Torch(logits, K, scaled)
    found, settled = _attempt(*source.candidates(K), group)
    found = _widen(found, group.K)
    while K < group.K and not bool(settled.all()):
        K = min(K * GROWTH, group.K)
        rows = (~settled).nonzero()[:, 0]
        more, settled[rows] = _attempt(*source.candidates(K, rows), group.select(rows))
        found.ids[rows, :K], found.q[rows, :K], found.k[rows] = more.ids, more.q, more.k
    return found


Candidates = tuple[Tensor, Tensor, Tensor, Tensor]
"""Logits and ids [B, K] of the best tokens; which rows are valid, bool [B]; log-probability of the first [B]."""


class _Torch:
    """Candidates by torch operations; `scaled` False: probabilities up to a factor, without the normaliser."""

    def __init__(self, logits: Tensor, expected: int, scaled: bool) -> None:
        self._source, self._scaled = chunked(logits, expected), scaled
        self._top: Tensor | None = None

    def candidates(self, K: int, rows: Tensor | None = None) -> Candidates:
        values, ids = top_candidates(self._source, K, rows)
        if self._top is None:  # the first call is for all rows
            logits = self._source.logits
            self._top = top_logprob(logits, ids[:, 0]) if self._scaled else torch.zeros(len(ids), device=logits.device)
        valid, top = self._source.valid, self._top
        return (values, ids, valid, top) if rows is None else (values, ids, valid[rows], top[rows])


class _Native:
    """Candidates from the kernel, which reads the rows again when it is asked for more."""

    def __init__(self, logits: Tensor, compiled: BregmanKernel) -> None:
        self._logits, self._kernel = logits, compiled

    def candidates(self, K: int, rows: Tensor | None = None) -> Candidates:
        values, ids, top = self._kernel.candidates(self._logits, K, rows)
        return values, ids, ~torch.isnan(top), top.nan_to_num_()


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
    log_p = values.double() - values[:, :1].double() + top[:, None]
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
