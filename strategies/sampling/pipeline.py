"""The sampling pipeline: each row's ordered transforms, batched over the rows that share them, and the draw.

The default order is the same everywhere (`transform.Stage`): penalties, bias, structure, bans, temperature,
truncations, reshaping. The distribution after it is *the* target distribution: for sampling, for processed
log-probabilities, for speculation.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from strategies.randomness import gumbel_argmax, signed64
from strategies.sampling.row import Row


def process(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Logits float32 [R, V] (owned by the caller, overwritten) -> the target distribution's logits [R, V].

    Rows are independent: each passes through its own stages in its own order. At every turn, of the stages that are
    next in some row the one that comes first by default runs, for all rows where it is next; so rows in the default
    order meet at every stage that they share.
    """
    queues = {i: [stage for stage in row.stages if stage.wants(row)][::-1] for i, row in enumerate(rows)}
    queues = {i: queue for i, queue in queues.items() if queue}
    while queues:
        kind = min({type(queue[-1]) for queue in queues.values()}, key=lambda kind: kind.order())
        picked = [i for i, queue in queues.items() if type(queue[-1]) is kind]
        stages = [queues[i].pop() for i in picked]
        if len(picked) == len(rows):
            logits = kind.apply(logits, rows, stages)
        else:
            index = torch.tensor(picked, device=logits.device)
            logits[index] = kind.apply(logits[index], [rows[i] for i in picked], stages)
        for i in picked:
            if not queues[i]:
                del queues[i]
    return logits


def sample(
    logits: Tensor,
    rows: Sequence[Row],
    positions: Sequence[int],
    draw: Callable[[Tensor, Tensor], Tensor] = gumbel_argmax,
) -> Tensor:
    """One token per row, int64 [R], from processed logits [R, V].

    positions: tokens before the one drawn, which key the noise. Greedy rows take the arg-max (lowest id among equals).
    draw: `gumbel_argmax` or an equivalent (logits [S, V], keys int64 [S]) -> int64 [S].
    """
    sampled = [i for i, row in enumerate(rows) if not row.greedy]
    if not sampled:
        return logits.argmax(-1)
    keys = torch.tensor([signed64(rows[i].stream.key(positions[i])) for i in sampled], device=logits.device)
    if len(sampled) == len(rows):
        return draw(logits, keys)
    tokens = logits.argmax(-1)
    index = torch.tensor(sampled, device=logits.device)
    tokens[index] = draw(logits[index], keys)
    return tokens


def faulty_rows(logits: Tensor) -> Tensor:
    """bool [R]: rows that hold NaN or +inf, or nothing but -inf; no token can be drawn from them."""
    return ~torch.isfinite(logits.amax(-1))
