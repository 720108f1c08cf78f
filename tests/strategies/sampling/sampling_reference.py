"""Rows for the tests of the sampling pipeline, and each transform written again in plain Python floats, one row at a
time, in probability space, straight from its definition."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from strategies.runtime import Generation, StopConditions
from strategies.sampling.row import Row
from strategies.sampling.standard import sampling

INF = math.inf


def make_row(
    *,
    prompt: Sequence[int] = (0,),
    output: Sequence[int] = (),
    seed: int = 0,
    branch: tuple[int, ...] = (0,),
    eos: Sequence[int] = (),
    stopping: StopConditions | None = None,
    **parameters: Any,
) -> Row:
    """A row with this history and these sampling parameters."""
    generation = Generation(
        prompt=list(prompt),
        sampling=sampling(**parameters),
        stopping=stopping if stopping is not None else StopConditions(),
        seed=seed,
        branch=branch,
    )
    row = Row(generation, frozenset(eos))
    for token in output:
        row.append(token)
    return row


def repetition(logits: Sequence[float], seen: Sequence[int], penalty: float) -> list[float]:
    distinct = set(seen)
    return [(x / penalty if x > 0 else x * penalty) if v in distinct else x for v, x in enumerate(logits)]


def counts(logits: Sequence[float], output: Sequence[int], presence: float, frequency: float) -> list[float]:
    history = list(output)
    return [x - presence * (v in history) - frequency * history.count(v) for v, x in enumerate(logits)]


def bias(logits: Sequence[float], added: Mapping[int, float]) -> list[float]:
    return [x + added.get(v, 0.0) for v, x in enumerate(logits)]


def softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


def top_k(logits: Sequence[float], k: int) -> set[int]:
    """Tokens for which fewer than k others are strictly larger."""
    return {v for v, x in enumerate(logits) if x > -INF and sum(y > x for y in logits) < k}


def top_p(logits: Sequence[float], p: float) -> set[int]:
    """Tokens taken from the most likely down until their mass is at least p; ties with the last one come along."""
    probabilities = softmax(logits)
    mass, last = 0.0, max(logits)
    for v in sorted(range(len(logits)), key=lambda v: -logits[v]):
        if mass >= p and mass > 0:
            break
        mass, last = mass + probabilities[v], logits[v]
    return {v for v, x in enumerate(logits) if x >= last and x > -INF}


def min_p(logits: Sequence[float], least: float) -> set[int]:
    probabilities = softmax(logits)
    return {v for v, x in enumerate(logits) if x > -INF and probabilities[v] >= least * max(probabilities)}


def kept(logits: Tensor) -> set[int]:
    """Tokens of one row [V] that can still be drawn."""
    return {v for v, x in enumerate(logits.tolist()) if x > -INF}


def random_logits(rows: int, vocab: int, seed: int, scale: float = 3.0) -> Tensor:
    """float32 [rows, vocab], normal with this deviation."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator) * scale
