"""Bregman decoding on a CPU as one call: bregman.c, and what it is given.

Per row it reads the logits once and then touches a few thousand numbers, where the torch operations make dozens of
passes over the vocabulary and the candidates. Whatever has no closed form gets its candidates from it.
"""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies import native
from strategies.sampling.bregman.generator import Family
from strategies.sampling.bregman.plan import Group, Plan

SOURCE = Path(__file__).with_name("bregman.c")

FAMILIES = (
    Family.PROPORTIONAL,
    Family.SQUARE_ROOT,
    Family.EUCLIDEAN,
    Family.WATER_FILLING,
    Family.ALL_TO_TOP,
)
"""Those with closed forms, in the order of `enum family`."""

WANTED = np.dtype([*((name, np.int64) for name in ("family", "start", "K", "k_min", "k_max")), ("penalty", np.float64)])
"""`struct wanted`: what one row asks for; penalty -1 means a fixed k."""


@dataclass(frozen=True, slots=True, eq=False)
class ClosedRows:
    """The rows of a plan that the kernel decodes: their numbers, int64 [B] (None: all, in order), and `WANTED` [B]."""

    rows: Tensor | None
    wanted: NDArray[np.void]
    K: int


def closed_form(group: Group) -> bool:
    """Whether the kernel decodes these rows."""
    return group.family in FAMILIES and not group.unchanged


@functools.lru_cache(maxsize=64)
def closed_rows(plan: Plan) -> ClosedRows | None:
    """None where no row has a closed form. Kept for as long as a plan is in use."""
    found: dict[int, tuple[float, ...]] = {}
    for group in filter(closed_form, plan.groups):
        numbers = torch.cat([group.k_min[:, None], group.k_max[:, None]], -1).tolist()
        penalties = group.penalty[:, 0].tolist() if group.adaptive else [-1.0] * len(numbers)
        rows = range(plan.R) if group.rows is None else group.rows.tolist()
        for row, (k_min, k_max), penalty in zip(rows, numbers, penalties, strict=True):
            found[row] = (FAMILIES.index(group.family), group.start, group.K, k_min, k_max, penalty)
    if not found:
        return None
    rows = sorted(found)
    wanted = np.array([found[row] for row in rows], dtype=WANTED)
    return ClosedRows(None if len(rows) == plan.R else torch.tensor(rows), wanted, int(wanted["K"].max()))


class BregmanKernel:
    """bregman.c behind two methods; see `kernel`. Logits are contiguous float32 [R, V] on the CPU.

    threads: OpenMP threads of a batch that is large enough for more than one; torch's number if None.
    Both methods raise MemoryError where no workspace can be had.
    """

    def __init__(self, library: Path) -> None:
        """Raises OSError where the library can't be loaded."""
        self.threads: int | None = None
        opened = ctypes.CDLL(str(library))
        integer, pointer, count = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
        self._decode = opened.bregman_decode
        self._decode.argtypes = (integer, integer, *(pointer,) * 3, integer, integer, *(pointer,) * 3, count)
        self._candidates = opened.bregman_candidates
        self._candidates.argtypes = (integer, integer, pointer, pointer, integer, *(pointer,) * 3, count)
        self._decode.restype = self._candidates.restype = integer

    def decode(self, logits: Tensor, closed: ClosedRows) -> tuple[Tensor, Tensor, Tensor]:
        """ids, q and k of the closed rows, as in `Decoded`, with as many columns as the largest k."""
        _require(logits)
        B, V = len(closed.wanted), logits.shape[-1]
        ids = torch.empty(B, closed.K, dtype=torch.int64)
        q = torch.empty(B, closed.K, dtype=torch.float64)
        k = torch.empty(B, dtype=torch.int64)
        width = self._decode(
            B,
            V,
            logits.data_ptr(),
            None if closed.rows is None else closed.rows.data_ptr(),
            closed.wanted.ctypes.data,
            closed.K,
            0,
            ids.data_ptr(),
            q.data_ptr(),
            k.data_ptr(),
            self._threads(),
        )
        if width < 0:
            raise MemoryError("no workspace for Bregman decoding")
        return ids[:, :width], q[:, :width], k

    def candidates(self, logits: Tensor, K: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The K <= V best tokens of some rows, int64 [B] (None: all): logits float32 [B, K], ids int64 [B, K], and the
        log-probability of the best in the whole vocabulary, float64 [B], NaN for a row that can't be decoded."""
        _require(logits)
        R, V = logits.shape
        B = R if rows is None else len(rows)
        values, ids = torch.empty(B, K), torch.empty(B, K, dtype=torch.int64)
        top = torch.empty(B, dtype=torch.float64)
        failed = self._candidates(
            B,
            V,
            logits.data_ptr(),
            None if rows is None else rows.data_ptr(),
            K,
            values.data_ptr(),
            ids.data_ptr(),
            top.data_ptr(),
            self._threads(),
        )
        if failed:
            raise MemoryError("no workspace for Bregman decoding")
        return values, ids, top

    def _threads(self) -> int:
        return torch.get_num_threads() if self.threads is None else self.threads


def _require(logits: Tensor) -> None:
    if logits.dtype != torch.float32 or logits.device.type != "cpu" or not logits.is_contiguous():
        raise ValueError(f"expected contiguous float32 logits on the CPU, not {logits.dtype} on {logits.device}")


@functools.cache
def kernel() -> BregmanKernel | None:
    """The compiled kernel; None where it can't be had (see `strategies.native.load`)."""
    return native.load(SOURCE, BregmanKernel)
