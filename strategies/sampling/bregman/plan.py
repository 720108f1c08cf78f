"""A batch of rows with different parameters, grouped on the host so that each group is one tensor operation.

Whatever fixes a shape or picks a formula (family, number of candidates) is a property of the group, known without
asking the device; alpha, lambda and the bounds of k are tensors per row. No row's result depends on the rest of the
batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from strategies.sampling.bregman.generator import Family
from strategies.sampling.bregman.parameters import BregmanParameters

LEAST_CANDIDATES = 32


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Rows with the same formulas and shapes.

    rows: their indices, int64 [B], or None for the whole batch in order. K: candidates. start: with how many to try
    first, where that is worth it. alpha, penalty: float64 [B, 1] (penalty: 0 unless adaptive). k_min, k_max: int64 [B].
    """

    family: Family
    adaptive: bool
    unchanged: bool
    start: int
    K: int
    rows: Tensor | None
    alpha: Tensor
    penalty: Tensor
    k_min: Tensor
    k_max: Tensor

    def select(self, index: Tensor) -> "Group":
        """Some of the group's rows, int64 [B'], counted within the group; `rows` is left as it is."""
        return replace(
            self,
            alpha=self.alpha[index],
            penalty=self.penalty[index],
            k_min=self.k_min[index],
            k_max=self.k_max[index],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The groups of a batch of R rows over V tokens, K the largest number of candidates."""

    groups: tuple[Group, ...]
    R: int
    V: int
    K: int


def plan(parameters: Sequence[BregmanParameters], V: int, device: torch.device | str = "cpu") -> Plan:
    """Groups rows, one per entry of `parameters` (at least one). It can be kept while the batch stays the same."""
    members: dict[tuple[Family, bool, bool, int, int], list[int]] = {}
    for row, wanted in enumerate(parameters):
        start = _bucket(wanted.bounds(V)[0], V)
        key = (wanted.family, wanted.adaptive, wanted.unchanged, start, _bucket(wanted.candidates(V), V))
        members.setdefault(key, []).append(row)
    groups = []
    for (family, adaptive, unchanged, start, K), rows in members.items():
        picked = [parameters[row] for row in rows]
        numbers = torch.tensor([[p.exponent, p.penalty or 0.0] for p in picked], dtype=torch.float64, device=device)
        bounds = torch.tensor([p.bounds(V) for p in picked], device=device)
        groups.append(
            Group(
                family=family,
                adaptive=adaptive,
                unchanged=unchanged,
                start=start,
                K=K,
                rows=None if len(rows) == len(parameters) else torch.tensor(rows, device=device),
                alpha=numbers[:, :1],
                penalty=numbers[:, 1:],
                k_min=bounds[:, 0],
                k_max=bounds[:, 1],
            )
        )
    return Plan(tuple(groups), len(parameters), V, max(group.K for group in groups))


def _bucket(K: int, V: int) -> int:
    """K rounded up to a power of two, so that shapes repeat; at most V."""
    return min(V, max(LEAST_CANDIDATES, 1 << (K - 1).bit_length()))
