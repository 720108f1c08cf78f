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
from strategies.sampling.support import Support


class Target:
    """The target distributions of R rows: logits [R, V], of which some rows may be known by their kept tokens alone.

    Whichever it is, a row has the same distribution and draws the same token.
    """

    __slots__ = ("_logits", "_rest", "_supports")

    def __init__(self, logits: Tensor, supports: Sequence[tuple[Sequence[int], Support]] = ()) -> None:
        """logits: float32 [R, V], owned by the caller before. supports: numbers of rows, each in one at most."""
        self._logits, self._supports = logits, list(supports)
        self._rest: Tensor | None = None

    def __len__(self) -> int:
        return len(self._logits)

    @property
    def logits(self) -> Tensor:
        """float32 [R, V]. The first use writes out the rows that are known by their kept tokens."""
        for picked, support in self._supports:
            whole = len(picked) == len(self._logits)
            support.write(self._logits, None if whole else torch.tensor(picked, device=self._logits.device))
        self._supports = []
        return self._logits

    def faulty(self) -> Tensor:
        """bool [R], see `faulty_rows`."""
        if not self._supports:
            return faulty_rows(self._logits)
        found = torch.empty(len(self), dtype=torch.bool, device=self._logits.device)
        for picked, support in self._supports:
            found[picked] = support.faulty()
        rest, logits = self._others()
        if rest:
            found[rest] = faulty_rows(logits)
        return found

    def sample(
        self,
        rows: Sequence[Row],
        positions: Sequence[int],
        draw: Callable[[Tensor, Tensor], Tensor] = gumbel_argmax,
    ) -> Tensor:
        """One token per row, int64 [R]; see `sample`."""
        if not self._supports:
            return sample(self._logits, rows, positions, draw)
        tokens = torch.empty(len(self), dtype=torch.int64, device=self._logits.device)
        for picked, support in self._supports:
            tokens[picked] = support.draw(_keys(rows, positions, picked, tokens.device))
        rest, logits = self._others()
        if rest:
            tokens[rest] = sample(logits, [rows[i] for i in rest], [positions[i] for i in rest], draw)
        return tokens

    def _others(self) -> tuple[list[int], Tensor]:
        """The rows without a support, and their logits."""
        known = {i for picked, _ in self._supports for i in picked}
        rest = [i for i in range(len(self)) if i not in known]
        if self._rest is None:
            self._rest = self._logits[rest]
        return rest, self._rest


def process(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Logits float32 [R, V] (owned by the caller, overwritten) -> the target distribution's logits [R, V]."""
    return target(logits, rows).logits


def target(logits: Tensor, rows: Sequence[Row]) -> Target:
    """The target distributions of logits float32 [R, V] (owned by the caller, overwritten).

    Rows are independent: each passes through its own stages in its own order. At every turn, of the stages that are
    next in some row the one that comes first by default runs, for all rows where it is next; so rows in the default
    order meet at every stage that they share.
    """
    queues = {i: [stage for stage in row.stages if stage.wants(row)][::-1] for i, row in enumerate(rows)}
    queues = {i: queue for i, queue in queues.items() if queue}
    supports: list[tuple[list[int], Support]] = []
    while queues:
        kind = min({type(queue[-1]) for queue in queues.values()}, key=lambda kind: kind.order())
        picked = [i for i, queue in queues.items() if type(queue[-1]) is kind]
        stages = [queues[i].pop() for i in picked]
        chosen = [rows[i] for i in picked]
        index = None if len(picked) == len(rows) else torch.tensor(picked, device=logits.device)
        given = logits if index is None else logits[index]
        last = not any(queues[i] or rows[i].greedy for i in picked)
        support = kind.support(given, chosen, stages) if last else None
        if support is not None:
            supports.append((picked, support))
        elif index is None:
            logits = kind.apply(given, chosen, stages)
        else:
            logits[index] = kind.apply(given, chosen, stages)
        for i in picked:
            if not queues[i]:
                del queues[i]
    return Target(logits, supports)


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
    keys = _keys(rows, positions, sampled, logits.device)
    if len(sampled) == len(rows):
        return draw(logits, keys)
    tokens = logits.argmax(-1)
    index = torch.tensor(sampled, device=logits.device)
    tokens[index] = draw(logits[index], keys)
    return tokens


def _keys(rows: Sequence[Row], positions: Sequence[int], picked: Sequence[int], device: torch.device) -> Tensor:
    """The keys of some rows' noise, int64 [len(picked)]."""
    return torch.tensor([signed64(rows[i].stream.key(positions[i])) for i in picked], device=device)


def faulty_rows(logits: Tensor) -> Tensor:
    """bool [R]: rows that hold NaN or +inf, or nothing but -inf; no token can be drawn from them."""
    return ~torch.isfinite(logits.amax(-1))
