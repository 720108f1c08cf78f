"""No n-gram twice: against the definition, the specification's vectors and transformers; state and forks."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from baseline_reference import INF, baseline_row, process_row, repeated_ngram
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sampling_reference import random_logits
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from strategies.sampling import pipeline
from strategies.sampling.bans import AllowedTokenIds
from strategies.sampling.ngram import NoRepeatNgram
from strategies.sampling.row import Row

V = 6
TOKENS = st.lists(st.integers(0, V - 2), max_size=30)  # one token stays free, so that bans never empty the row
VECTORS = json.loads((Path(__file__).parent / "baseline_vectors.json").read_text())["no_repeat_ngram"]


def banned(row: Row, vocab: int = V) -> set[int]:
    return {v for v, x in enumerate(process_row([0.0] * vocab, row)) if x == -INF}


@settings(deadline=None, max_examples=100)
@given(TOKENS, TOKENS, st.integers(1, 5))
def test_bans_what_would_repeat_an_ngram_of_prompt_and_output(prompt: list[int], output: list[int], size: int) -> None:
    row = baseline_row(NoRepeatNgram(size=size), prompt=prompt)
    for n, token in enumerate(output):
        assert banned(row) == repeated_ngram(prompt + output[:n], size)
        row.append(token)
    assert banned(row) == repeated_ngram(prompt + output, size)


@pytest.mark.parametrize("vector", VECTORS)
def test_vectors_of_the_specification(vector: dict[str, Any]) -> None:
    sequence = vector["seq"]
    for border in range(len(sequence) + 1):
        row = baseline_row(NoRepeatNgram(size=vector["n"]), prompt=sequence[:border], output=sequence[border:])
        assert banned(row, vocab=10) == set(vector["banned"])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_equals_transformers(size: int) -> None:
    """On rows where something is left: transformers may mask a whole row, we then leave it alone."""
    rng = random.Random(size)
    history = [[rng.randrange(4) for _ in range(40)] for _ in range(16)]
    logits = random_logits(16, 7, seed=size)
    expected = NoRepeatNGramLogitsProcessor(size)(torch.tensor(history), logits.clone())
    rows = [baseline_row(NoRepeatNgram(size=size), prompt=h[:25], output=h[25:]) for h in history]
    assert torch.equal(pipeline.process(logits.clone(), rows), expected)
    assert torch.isneginf(expected).any()


def test_a_row_with_nothing_else_left_stays_as_it_was() -> None:
    row = baseline_row(NoRepeatNgram(size=1), prompt=[0, 1], output=[2])
    assert process_row([3.0, 2.0, 1.0], row) == [3.0, 2.0, 1.0]
    assert process_row([3.0, 2.0, 1.0, 0.0], row) == [-INF, -INF, -INF, 0.0]


def test_yields_to_what_is_allowed() -> None:
    row = baseline_row(NoRepeatNgram(size=1), AllowedTokenIds(ids=(0, 1)), prompt=[0, 1, 2])
    assert process_row([3.0, 2.0, 1.0, 0.0], row) == [3.0, 2.0, -INF, -INF]


def test_applies_at_temperature_zero_and_asks_for_nothing_when_nothing_repeats() -> None:
    row = baseline_row(NoRepeatNgram(size=2), prompt=[1, 2, 3], temperature=0.0)
    assert not row.stages[0].wants(row)
    row.append(1)
    assert row.stages[0].wants(row)
    assert process_row([0.0, 1.0, 5.0, 1.0], row) == [0.0, 1.0, -INF, 1.0]


def test_forks_are_independent() -> None:
    row = baseline_row(NoRepeatNgram(size=2), prompt=[1, 2], output=[3, 1])
    left, right = row.fork(), row.fork()
    left.append(4)
    left.append(1)
    right.append(5)
    right.append(1)
    assert [banned(r) for r in (row, left, right)] == [{2}, {2, 4}, {2, 5}]
    row.append(1)
    assert banned(row) == {1, 2}


@pytest.mark.parametrize("size", [0, -1, 65, 2.5])
def test_range(size: float) -> None:
    with pytest.raises(ValidationError):
        NoRepeatNgram.model_validate({"size": size})
