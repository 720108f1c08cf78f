"""How strongly a repeat is penalised in each mode, and how a penalty changes logits. Pure functions."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from strategies.sampling.grammar_repetition.options import AllowedCopies

Context = Literal["code", "declarations", "literals", "imports"]
Scale = Literal["prob", "logit", "raw"]

SMALLEST_FACTOR = 1e-12
"""Keeps a penalised logit finite: a factor is never smaller."""

NUMERIC_TABLE_COPIES = 32
"""Verbatim copies allowed of a unit of numbers and punctuation inside a literal (tables of zeros are legitimate)."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """Factors of the tokens to change now; every other logit stays as it is.

    scale: "prob": the factor multiplies the probability before renormalisation. "logit": it multiplies positive logits
    and divides negative ones. "raw": it multiplies the logit whatever its sign (released mode).
    factors: token id -> factor > 0; below 1 for a penalised token, above 1 for end-of-sequence ids that are raised.
    """

    scale: Scale
    factors: dict[int, float]


def adjusted(logits: Tensor, factors: Tensor, scale: Scale) -> Tensor:
    """Logits [N] of the tokens to change and their factors [N] -> new logits [N]. -inf stays -inf."""
    if scale == "prob":
        return logits + factors.log()
    if scale == "raw":
        return logits * factors
    return torch.where(logits > 0, logits * factors, logits / factors)


def paper_factor(copies: int, factor: float) -> float:
    """lambda^Count, Count = whole adjacent copies, from two on (eq. 6-8)."""
    return 1.0 if copies < 2 else max(factor**copies, SMALLEST_FACTOR)


def guarded_factor(copies: int, allowed: int, factor: float, cap: int) -> float:
    """1 up to `allowed` copies, then one more factor per copy, at most `cap` of them."""
    return 1.0 if copies <= allowed else max(factor ** min(copies - allowed, cap), SMALLEST_FACTOR)


def allowed_tokens(period: int, unit: bytes, inside_literal: bool, allowed: AllowedCopies) -> int:
    """Copies that the token detector leaves alone, of a unit of `period` tokens with these bytes."""
    if period == 1:
        return allowed.single_token
    if inside_literal and numeric(unit):
        return max(allowed.tokens, NUMERIC_TABLE_COPIES)
    return allowed.tokens


def numeric(unit: bytes) -> bool:
    """Whether the text holds only numbers, punctuation and blanks (no word, no quote)."""
    return unit.isascii() and not any(chr(byte).isalpha() or byte in b"_'\"`" for byte in unit)
