"""The small operations of a step on the CPU, as one call each: C kernels built on demand, and torch in their place.

`load()` compiles kernels.c (see `strategies.native`). Where that is not possible it returns None, and `TorchKernels`
does the same work, slower. Both classes have the methods of `Kernels`.

Shapes: T packed new tokens, H query heads, G key/value heads, D head size, S slots. Tensors are contiguous float32 on
the CPU (`TorchKernels`: any device) unless said; `NativeKernels` checks this only when asked to.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from strategies import native
from strategies.randomness import gumbel

SOURCE = Path(__file__).with_name("kernels.c")


class Segment(NamedTuple):
    """The new tokens of one sequence: rows start..start+length of the packed batch.

    context_slots: int64 [n], the KV slots of positions 0..n-1. tree_mask: bool or uint8 [length, length], row i marks
    the new tokens that token i sees (itself included); None is a chain, where token i sees tokens 0..i.
    """

    start: int
    length: int
    context_slots: NDArray[np.int64]
    tree_mask: NDArray[np.uint8] | NDArray[np.bool_] | None = None


class PlanStruct(ctypes.Structure):
    """`struct plan` of kernels.c."""

    _fields_ = (
        ("segments", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("start", "length", "context_begin", "context_length", "tree_begin")),
        *((name, ctypes.c_void_p) for name in ("context_slots", "tree_mask", "slots", "positions")),
    )


@dataclass(slots=True)
class AttentionPlan:
    """Which keys each packed token attends to; built once per step, read by every layer.

    start, length, context_begin, context_length, tree_begin: int64 [segments]; context_begin indexes context_slots
    (int64, all segments in a row), tree_begin indexes tree_mask (uint8, all trees in a row) or is -1 for a chain.
    slots, positions: int64 [T], the KV slot and the position of every new token.
    struct: these arrays' addresses, as kernels.c reads them; address: where it lies.
    """

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    context_begin: NDArray[np.int64]
    context_length: NDArray[np.int64]
    tree_begin: NDArray[np.int64]
    context_slots: NDArray[np.int64]
    tree_mask: NDArray[np.uint8]
    slots: NDArray[np.int64]
    positions: NDArray[np.int64]
    address: int
    struct: PlanStruct

    @staticmethod
    def build(segments: Sequence[Segment], slots: NDArray[np.int64], positions: NDArray[np.int64]) -> "AttentionPlan":
        """slots, positions: int64 [T]; the segments may lie anywhere in the packed order."""
        context_lengths = [len(segment.context_slots) for segment in segments]
        tree_begins, trees, offset = [], [], 0
        for segment in segments:
            if segment.tree_mask is None:
                tree_begins.append(-1)
            else:
                tree_begins.append(offset)
                trees.append(np.ascontiguousarray(segment.tree_mask).reshape(-1).view(np.uint8))
                offset += segment.length * segment.length
        rows = np.array(
            [[s.start for s in segments], [s.length for s in segments], context_lengths, context_lengths, tree_begins],
            dtype=np.int64,
        )
        rows[2] = np.cumsum(rows[3]) - rows[3]
        context_slots = np.concatenate([s.context_slots for s in segments]) if segments else np.empty(0, np.int64)
        context_slots = np.ascontiguousarray(context_slots, dtype=np.int64)
        tree_mask = np.concatenate(trees) if trees else np.zeros(1, np.uint8)
        slots = np.ascontiguousarray(slots, dtype=np.int64)
        positions = np.ascontiguousarray(positions, dtype=np.int64)
        row = rows.ctypes.data
        step = rows.strides[0]
        struct = PlanStruct(
            len(segments),
            *(row + i * step for i in range(5)),
            *(array.ctypes.data for array in (context_slots, tree_mask, slots, positions)),
        )
        start, length, context_begin, context_length, tree_begin = rows
        return AttentionPlan(
            start,
            length,
            context_begin,
            context_length,
            tree_begin,
            context_slots,
            tree_mask,
            slots,
            positions,
            ctypes.addressof(struct),
            struct,
        )


class Kernels(Protocol):
    """What the engine calls. Every method writes to its `out` arguments and returns nothing."""

    name: str

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """out = x / sqrt(mean(x^2) + eps) * weight. x, out [T, C]; weight [C]."""

    def add_rms_norm(self, residual: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """residual += delta, in place, then out = rms_norm(residual). residual, delta, out [T, C]; weight [C]."""

    def rope_store(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        slots: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
        q_out: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
    ) -> None:
        """Rotates queries and keys ("rotate half", first 2 * cos.shape[1] dimensions), and stores keys and values.

        qkv [T, (H + 2G) * D], a row holding H query, G key and G value heads; cos, sin [P, rotary / 2] by position;
        positions, slots int64 [T]; k_pool, v_pool [S, G, D] are written at the slots; q_out [T, H, D].
        q_norm, k_norm [D]: an rms_norm over each head before the rotation.
        """

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        """out = silu(gate) * up. gate_up [T, 2I] holds gate, then up; out [T, I]."""

    def tree_attention(
        self, q: Tensor, k_pool: Tensor, v_pool: Tensor, plan: AttentionPlan, out: Tensor, scale: float, window: int = 0
    ) -> None:
        """Softmax attention of each new token over its context and the new tokens that it sees (see `Segment`).

        q, out [T, H, D]; k_pool, v_pool [S, G, D]; query head h reads key/value head h // (H / G). window > 0: a token
        at position p sees positions above p - window only. A row's result does not depend on the other segments.
        """

    def gumbel_argmax(self, logits: Tensor, keys: Tensor, out: Tensor) -> None:
        """out[r] = argmax over v of logits[r, v] + gumbel(keys[r])[v], in float64; noise: `strategies.randomness`.

        logits [R, V]; keys, out int64 [R]. -inf is never chosen, +inf always; lowest id among equals. -1 where a row
        holds NaN, or nothing above -inf.
        """


class TorchKernels:
    """The reference: plain torch operations, any device."""

    name = "torch"

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        out.copy_(F.rms_norm(x, (x.shape[-1],), weight, eps))

    def add_rms_norm(self, residual: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        self.rms_norm(residual.add_(delta), weight, eps, out)

    def rope_store(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        slots: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
        q_out: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
    ) -> None:
        (_, H, D), G, half = q_out.shape, k_pool.shape[1], cos.shape[1]
        heads = qkv.view(-1, H + 2 * G, D)
        q, k, v = heads[:, :H], heads[:, H : H + G], heads[:, H + G :]
        if q_norm is not None:
            q = F.rms_norm(q, (D,), q_norm, eps)
        if k_norm is not None:
            k = F.rms_norm(k, (D,), k_norm, eps)
        c, s = cos[positions][:, None], sin[positions][:, None]  # [T, 1, half]
        q_out.copy_(self._rotate(q, c, s, half))
        k_pool[slots] = self._rotate(k, c, s, half)
        v_pool[slots] = v

    @staticmethod
    def _rotate(x: Tensor, cos: Tensor, sin: Tensor, half: int) -> Tensor:
        a, b = x[..., :half], x[..., half : 2 * half]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), dim=-1)

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        gate, up = gate_up.chunk(2, dim=-1)
        torch.mul(F.silu(gate), up, out=out)

    def tree_attention(
        self, q: Tensor, k_pool: Tensor, v_pool: Tensor, plan: AttentionPlan, out: Tensor, scale: float, window: int = 0
    ) -> None:
        H, G, D = q.shape[1], k_pool.shape[1], q.shape[2]
        context_slots, slots, positions = (
            torch.from_numpy(array).to(q.device) for array in (plan.context_slots, plan.slots, plan.positions)
        )
        for s in range(len(plan.start)):
            start, length, context = int(plan.start[s]), int(plan.length[s]), int(plan.context_length[s])
            begin = int(plan.context_begin[s])
            keys = torch.cat((context_slots[begin : begin + context], slots[start : start + length]))
            mask = self._mask(plan, s, positions[start : start + length], window)
            # Group heads as extra query rows, so that keys are not repeated: [G, length * H/G, D] against [G, keys, D].
            rows = q[start : start + length].view(length, G, H // G, D).transpose(0, 1).reshape(G, -1, D)
            attended = F.scaled_dot_product_attention(
                rows[None],
                k_pool[keys].transpose(0, 1)[None],
                v_pool[keys].transpose(0, 1)[None],
                None if mask is None else mask.repeat_interleave(H // G, dim=0),
                scale=scale,
            )
            attended = attended.view(G, length, H // G, D).transpose(0, 1).reshape(length, H, D)
            out[start : start + length] = attended

    @staticmethod
    def _mask(plan: AttentionPlan, s: int, positions: Tensor, window: int) -> Tensor | None:
        """Visibility bool [length, context + length] of segment s; None where everything is visible."""
        length, context, tree = int(plan.length[s]), int(plan.context_length[s]), int(plan.tree_begin[s])
        if length == 1 and window <= 0:
            return None
        mask = torch.ones((length, context + length), dtype=torch.bool, device=positions.device)
        if tree < 0:
            mask = mask.tril_(context)
        else:
            seen = torch.from_numpy(plan.tree_mask[tree : tree + length * length].reshape(length, length))
            mask[:, context:] = seen.to(positions.device) != 0
        if window > 0:
            key_positions = torch.cat((torch.arange(context, device=positions.device), positions))
            mask &= positions[:, None] - key_positions < window
        return mask

    def gumbel_argmax(self, logits: Tensor, keys: Tensor, out: Tensor) -> None:
        noisy = logits.to(torch.float64) + gumbel(keys, logits.shape[-1])
        noisy.masked_fill_(logits == float("-inf"), float("-inf"))  # also where the noise is +inf
        best, chosen = noisy.amax(-1), noisy.argmax(-1)  # argmax: the first among equals; both: NaN if there is one
        out.copy_(torch.where(best > float("-inf"), chosen, -1))


class NativeKernels:
    """kernels.c behind the same methods; see `load`. Raises MemoryError when attention finds no scratch memory.

    threads: OpenMP threads of a call that is large enough for more than one; torch's number by default.
    checked: raise ValueError for a tensor of the wrong type or layout (about 1 us per call), which else reads or
    overwrites memory at random.
    """

    name = "native"

    def __init__(self, library: Path, threads: int | None = None, checked: bool = False) -> None:
        """Raises OSError where the library can't be loaded."""
        self.library = library
        self.checked = checked
        self.threads = torch.get_num_threads() if threads is None else threads
        # The short calls keep the interpreter lock (PyDLL): giving it up costs more than they take, as another thread
        # may then hold it for a whole switch interval. Attention and sampling release it.
        short, long = ctypes.PyDLL(str(library)), ctypes.CDLL(str(library))
        integer, pointer, real, count = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float, ctypes.c_int
        self._rms_norm = short.rms_norm
        self._rms_norm.argtypes = (integer, integer, pointer, pointer, pointer, real, pointer, count)
        self._rope_store = short.rope_store
        self._rope_store.argtypes = (*(integer,) * 5, *(pointer,) * 7, real, *(pointer,) * 3, count)
        self._silu_mul = short.silu_mul
        self._silu_mul.argtypes = (integer, integer, pointer, pointer, count)
        self._tree_attention = long.tree_attention
        self._tree_attention.argtypes = (*(integer,) * 3, *(pointer,) * 5, real, integer, count)
        self._gumbel_argmax = long.gumbel_argmax
        self._gumbel_argmax.argtypes = (integer, integer, *(pointer,) * 3, count)
        for function in (self._rms_norm, self._rope_store, self._silu_mul, self._gumbel_argmax):
            function.restype = None
        self._tree_attention.restype = count
        self._fallback = TorchKernels()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        if self.checked:
            _require(torch.float32, x, weight, out)
        T, C = x.shape
        self._rms_norm(T, C, x.data_ptr(), None, weight.data_ptr(), eps, out.data_ptr(), self.threads)

    def add_rms_norm(self, residual: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        if self.checked:
            _require(torch.float32, residual, delta, weight, out)
        T, C = residual.shape
        self._rms_norm(
            T, C, residual.data_ptr(), delta.data_ptr(), weight.data_ptr(), eps, out.data_ptr(), self.threads
        )

    def rope_store(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        slots: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
        q_out: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
    ) -> None:
        if self.checked:
            _require(torch.float32, qkv, cos, sin, k_pool, v_pool, q_out)
            _require(torch.int64, positions, slots)
        T, H, D = q_out.shape
        self._rope_store(
            T,
            H,
            k_pool.shape[1],
            D,
            cos.shape[1],
            qkv.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            positions.data_ptr(),
            slots.data_ptr(),
            None if q_norm is None else q_norm.data_ptr(),
            None if k_norm is None else k_norm.data_ptr(),
            eps,
            k_pool.data_ptr(),
            v_pool.data_ptr(),
            q_out.data_ptr(),
            self.threads,
        )

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        if self.checked:
            _require(torch.float32, gate_up, out)
        T, I = out.shape  # noqa: E741
        self._silu_mul(T, I, gate_up.data_ptr(), out.data_ptr(), self.threads)

    def tree_attention(
        self, q: Tensor, k_pool: Tensor, v_pool: Tensor, plan: AttentionPlan, out: Tensor, scale: float, window: int = 0
    ) -> None:
        if self.checked:
            _require(torch.float32, q, k_pool, v_pool, out)
        _, H, D = q.shape
        if D % 8:  # only test models have such heads
            self._fallback.tree_attention(q, k_pool, v_pool, plan, out, scale, window)
            return
        failed = self._tree_attention(
            H,
            k_pool.shape[1],
            D,
            q.data_ptr(),
            k_pool.data_ptr(),
            v_pool.data_ptr(),
            plan.address,
            out.data_ptr(),
            scale,
            window,
            self.threads,
        )
        if failed:
            raise MemoryError("no scratch memory for attention")

    def gumbel_argmax(self, logits: Tensor, keys: Tensor, out: Tensor) -> None:
        if self.checked:
            _require(torch.float32, logits)
            _require(torch.int64, keys, out)
        R, V = logits.shape
        self._gumbel_argmax(R, V, logits.data_ptr(), keys.data_ptr(), out.data_ptr(), self.threads)


def _require(dtype: torch.dtype, *tensors: Tensor) -> None:
    """Raises ValueError unless raw pointers to all of them are what the C code expects."""
    for tensor in tensors:
        if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(f"expected a contiguous {dtype} tensor on the CPU, not {tensor.dtype} on {tensor.device}")


def load(compilers: Sequence[str] | None = None, cache: Path | None = None) -> NativeKernels | None:
    """The C kernels, or None where they can't be had; arguments and environment as for `strategies.native.load`."""
    return native.load(SOURCE, NativeKernels, compilers, cache)
