"""Draws of the whole pipeline follow the processed distribution: chi-square tests with fixed seeds.

Each test accepts p-values down to 1e-8, so that the ten or so of them together raise a false alarm with probability
below 1e-6 (and never again once they passed, since the seeds are fixed).
"""

from typing import Any

import pytest
import torch
from sampling_reference import kept, make_row, random_logits, softmax
from torch import Tensor

from strategies.sampling import pipeline
from strategies.sampling.pipeline import sample
from strategies.sampling.row import Row

DRAWS = 24_000
SMALLEST_P = 1e-8


def p_value(observed: Tensor, probabilities: Tensor) -> float:
    """Pearson's chi-square; cells expecting fewer than 10 draws are pooled into one, dropped if it stays below 10."""
    expected = probabilities.to(torch.float64) * observed.sum()
    rare = expected < 10
    o, e = observed[~rare].to(torch.float64), expected[~rare]
    if expected[rare].sum() >= 10:
        o, e = torch.cat([o, observed[rare].sum()[None].to(o)]), torch.cat([e, expected[rare].sum()[None]])
    statistic = ((o - e) ** 2 / e).sum()
    return float(torch.special.gammaincc(torch.tensor((len(e) - 1) / 2, dtype=torch.float64), statistic / 2))


def test_the_p_value_is_one() -> None:
    """Known quantiles of the chi-square distribution, and a false hypothesis."""
    # One degree of freedom, statistic 3.841: p = 0.05.
    off = (3.841458820694124 * 1000 / 4) ** 0.5
    assert p_value(torch.tensor([500 + off, 500 - off]), torch.tensor([0.5, 0.5])) == pytest.approx(0.05, rel=1e-6)
    assert p_value(torch.tensor([12_600, 11_400]), torch.tensor([0.5, 0.5])) < SMALLEST_P


def draws(logits: Tensor, rows: list[Row], positions: range) -> tuple[Tensor, Tensor]:
    """Tokens drawn, and the processed logits of the first row (all rows have equal parameters)."""
    processed = pipeline.process(logits.repeat(len(rows), 1), rows)
    return sample(processed, rows, positions), processed[0]


PARAMETERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.3, "logit_bias": {2: 2.0, 9: -100.0}},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "frequency_penalty": -0.5},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: "+".join(p) or "plain")
def test_draws_follow_the_processed_softmax(parameters: dict[str, Any]) -> None:
    """One sequence drawn at 24,000 positions."""
    logits = random_logits(1, 30, seed=12, scale=1.5)
    row = make_row(seed=2024, prompt=[1, 5], output=[5, 6, 6], **parameters)
    tokens, processed = draws(logits, [row] * DRAWS, range(DRAWS))
    observed = torch.bincount(tokens, minlength=30)
    assert {v for v in range(30) if observed[v]} <= kept(processed)
    assert p_value(observed, torch.tensor(softmax(processed.tolist()), dtype=torch.float64)) > SMALLEST_P


@pytest.mark.parametrize("varied", ["seed", "branch"])
def test_draws_over_seeds_and_over_branches_follow_it_too(varied: str) -> None:
    logits = random_logits(1, 30, seed=13, scale=1.5)
    rows = [make_row(seed=s) if varied == "seed" else make_row(branch=(s,)) for s in range(DRAWS)]
    tokens, processed = draws(logits, rows, range(DRAWS))
    fixed = sample(processed.repeat(DRAWS, 1), rows, [17] * DRAWS)
    expected = torch.tensor(softmax(processed.tolist()), dtype=torch.float64)
    for found in (tokens, fixed):
        assert p_value(torch.bincount(found, minlength=30), expected) > SMALLEST_P


def test_neighbouring_draws_are_independent() -> None:
    """Pairs of tokens at following positions, and of following seeds at one position, have the product distribution."""
    logits = random_logits(1, 6, seed=14, scale=1.0)
    expected = torch.tensor(softmax(logits[0].tolist()), dtype=torch.float64)
    product = torch.outer(expected, expected).flatten()
    line, _ = draws(logits, [make_row(seed=3)] * DRAWS, range(DRAWS))
    seeds = sample(logits.repeat(DRAWS, 1), [make_row(seed=s) for s in range(DRAWS)], [0] * DRAWS)
    for tokens in (line, seeds):
        pairs = tokens[::2] * 6 + tokens[1::2]
        assert p_value(torch.bincount(pairs, minlength=36), product) > SMALLEST_P


def test_a_wide_vocabulary_is_drawn_evenly_from_end_to_end() -> None:
    """Equal logits over 49,152 tokens: 8 bands of ids are hit equally often (noise reaches every index)."""
    row = make_row(seed=8)
    hits = torch.zeros(8, dtype=torch.int64)
    for start in range(0, 640, 16):  # small batches stay in the processor's cache
        tokens = sample(torch.zeros(16, 49_152), [row] * 16, range(start, start + 16))
        hits += torch.bincount(tokens // 6144, minlength=8)
    assert p_value(hits, torch.full((8,), 1 / 8)) > SMALLEST_P
