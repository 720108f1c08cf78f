"""Counter-based random numbers: noise is a pure function of (seed, purpose, branch, position, vocabulary index).

Nothing is drawn from a shared generator, so a request's noise does not depend on its neighbours in the batch, on
arrival order, or on how often it was preempted. Generator: SplitMix64 (Steele, Lea, Flood 2014), used as a hash of a
64-bit counter; 52-bit uniforms in the open interval (0, 1), so that Gumbel tails are not cut (24-bit ones end at 16.6).
"""

import hashlib
import struct
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


class Purpose(IntEnum):
    """Disjoint uses of noise; sharing one stream between two of them would bias both."""

    SAMPLE = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3
    SEARCH = 4


def mix64(value: int) -> int:
    """SplitMix64's output function on a 64-bit unsigned integer."""
    value &= MASK64
    value = ((value ^ (value >> 30)) * MIX_1) & MASK64
    value = ((value ^ (value >> 27)) * MIX_2) & MASK64
    return value ^ (value >> 31)


class Stream:
    """The noise of one branch of one request for one purpose; `key(position)` is the 64-bit key of one draw."""

    __slots__ = ("_base",)

    def __init__(self, seed: int, branch: Sequence[int], purpose: Purpose = Purpose.SAMPLE) -> None:
        words = [seed & MASK64, int(purpose), *(step & MASK64 for step in branch)]
        digest = hashlib.blake2b(struct.pack(f"<{len(words)}Q", *words), digest_size=8).digest()
        self._base = int.from_bytes(digest, "little")

    def key(self, position: int) -> int:
        """Key of the draw that chooses the token at `position` (tokens before it: prompt and output)."""
        return mix64(self._base + (position + 1) * GOLDEN)


def signed64(value: int) -> int:
    """The int64 that has the bit pattern of an unsigned 64-bit integer (torch has no arithmetic on uint64)."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def uniform(keys: Tensor, index: Tensor) -> Tensor:
    """float64 uniforms in (0, 1).

    keys: int64 [R] (bit patterns of Stream.key). index: int64 [N] or [R, N], vocabulary index. Returns [R, N].
    """
    value = keys[:, None] + (index + 1) * signed64(GOLDEN)
    value = (value ^ _shift(value, 30)) * signed64(MIX_1)
    value = (value ^ _shift(value, 27)) * signed64(MIX_2)
    value = value ^ _shift(value, 31)
    return (_shift(value, 12).to(torch.float64) + 0.5) * 2.0**-52


def gumbel(keys: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise, float64 [R, vocab_size], from int64 keys [R]."""
    return gumbel_at(keys, torch.arange(vocab_size, device=keys.device))


def gumbel_at(keys: Tensor, ids: Tensor) -> Tensor:
    """The noise of some tokens alone, float64 [R, N]; keys: int64 [R]; ids: int64 [N] or [R, N]."""
    return -torch.log(-torch.log(uniform(keys, ids)))


def gumbel_argmax(logits: Tensor, keys: Tensor) -> Tensor:
    """A sample of softmax(logits) per row, int64 [R]. logits: float [R, V]; keys: int64 [R]. -inf is never chosen."""
    noisy = logits.to(torch.float64) + gumbel(keys, logits.shape[-1])
    return noisy.argmax(-1)
