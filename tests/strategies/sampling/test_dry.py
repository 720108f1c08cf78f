"""DRY against its definition, the specification's vectors, its incremental state and its breakers."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from baseline_reference import INF, baseline_row, dry_lengths, process_row
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.scripted import ByteTokenizer
from strategies.errors import InvalidRequest
from strategies.sampling.dry import DRY, LARGEST_PENALTY, LONGEST
from strategies.sampling.row import Row

V = 6
TOKENS = st.lists(st.integers(0, V - 1), max_size=40)
VECTORS = json.loads((Path(__file__).parent / "baseline_vectors.json").read_text())["dry"]


def penalties(row: Row, vocab: int = V) -> dict[int, float]:
    return {v: -x for v, x in enumerate(process_row([0.0] * vocab, row)) if x}


def expected_penalties(tokens: list[int], transform: DRY, breakers: set[int]) -> dict[int, float]:
    lengths = dry_lengths(tokens, breakers, transform.allowed_length, transform.penalty_last_n)
    return {
        v: transform.multiplier * transform.base ** (length - transform.allowed_length) for v, length in lengths.items()
    }


@settings(deadline=None, max_examples=150)
@given(TOKENS, TOKENS, st.integers(1, 4), st.sampled_from([-1, 1, 3, 8, 20]), st.sets(st.integers(0, V - 1)))
def test_penalizes_what_would_continue_a_repetition(
    prompt: list[int], output: list[int], allowed: int, last_n: int, breakers: set[int]
) -> None:
    """At every step, over the border of prompt and output; the tokens of this tokenizer are single bytes."""
    transform = DRY(
        multiplier=0.7,
        base=1.3,
        allowed_length=allowed,
        penalty_last_n=last_n,
        sequence_breakers=tuple(map(chr, breakers)),
    )
    row = baseline_row(transform, prompt=prompt, tokenizer=ByteTokenizer())
    for n in range(len(output) + 1):
        if n:
            row.append(output[n - 1])
        expected = expected_penalties(prompt + output[:n], transform, breakers)
        assert penalties(row) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("vector", VECTORS)
def test_vectors_of_the_specification(vector: dict[str, Any]) -> None:
    transform = DRY(
        multiplier=vector["multiplier"],
        base=vector["base"],
        allowed_length=vector["allowed_length"],
        sequence_breakers=tuple(map(chr, vector["breakers"])),
    )
    expected = {int(token): penalty for token, penalty in vector["penalty"].items()}
    sequence = vector["seq"]
    for border in range(len(sequence) + 1):
        row = baseline_row(transform, prompt=sequence[:border], output=sequence[border:], tokenizer=ByteTokenizer())
        assert penalties(row, vocab=12) == pytest.approx(expected)


def test_the_exponent_ends_at_the_longest_match_and_logits_stay_finite() -> None:
    for length in (LONGEST - 1, LONGEST, LONGEST + 1, 200):
        row = baseline_row(
            DRY(multiplier=1.0, base=1.1, allowed_length=1, sequence_breakers=()), prompt=[1] * (length + 1)
        )
        assert penalties(row) == pytest.approx({1: 1.1 ** (min(length, LONGEST) - 1)}, rel=1e-5)
    steep = baseline_row(DRY(multiplier=1e6, base=1e6, sequence_breakers=()), prompt=[1] * 100, temperature=1e-5)
    found = process_row([0.0, 0.0], steep)
    assert found[1] < -LARGEST_PENALTY
    assert all(x > -INF for x in found)


PIECES = (b"a.\n\n", b"Use", b"r:", b"END", b"E", b"ND", b"N", b"D of")


def piece_row(*pieces: bytes, breakers: tuple[str, ...], output: int = 0) -> Row:
    tokenizer = ByteTokenizer(PIECES)
    ids = [260 + PIECES.index(piece) if piece in PIECES else piece[0] for piece in pieces]
    split = len(ids) - output
    transform = DRY(multiplier=1.0, base=2.0, allowed_length=1, sequence_breakers=breakers)
    return baseline_row(transform, prompt=ids[:split], output=ids[split:], tokenizer=tokenizer)


@pytest.mark.parametrize("output", range(6))
def test_a_token_with_a_breaker_inside_breaks(output: int) -> None:
    """x y "a.\\n\\n" x y: the next token in the repetition of `x y` has a newline in it, so it is not penalized."""
    row = piece_row(b"x", b"y", b"a.\n\n", b"x", b"y", breakers=("\n",), output=min(output, 5))
    assert penalties(row, 268) == {}
    row = piece_row(b"x", b"y", b"a.\n\n", b"x", b"y", breakers=(), output=min(output, 5))
    assert penalties(row, 268) == {260: 2.0}
    row = piece_row(b"x", b"a.\n\n", b"y", b"z", b"x", b"a.\n\n", b"y", breakers=("\n",), output=output)
    assert penalties(row, 268) == {ord("z"): 1.0}  # only y counts; x and the breaker lie before it


@pytest.mark.parametrize("output", [0, 1, 2, 4, 9])
@pytest.mark.parametrize("spelling", [(b"END",), (b"E", b"ND"), (b"E", b"N", b"D of"), (b"E", b"N", b"D")])
def test_a_breaker_across_tokens_breaks(spelling: tuple[bytes, ...], output: int) -> None:
    """Where token borders fall doesn't matter: k END y z ... k END y continues one token, not the whole."""
    pieces = (b"k", *spelling, b"y", b"z", b"k", *spelling, b"y")
    assert penalties(piece_row(*pieces, breakers=("END", ":"), output=output), 268) == {ord("z"): 1.0}
    longer = piece_row(*pieces, breakers=(), output=output)
    assert penalties(longer, 268) == {ord("z"): 2.0 ** (1 + len(spelling))}


def test_the_defaults_break_at_lines() -> None:
    text = "- one two\n- one two"
    row = baseline_row(DRY(), prompt=list(text.encode()), tokenizer=ByteTokenizer())
    assert penalties(row, 260) == {}
    row.append(ord(" "))
    row.append(ord("o"))
    assert penalties(row, 260) == pytest.approx({ord("n"): 0.8})  # " o", then n


def test_off_values_keep_no_state() -> None:
    for transform in (DRY(multiplier=0.0), DRY(penalty_last_n=0)):
        row = baseline_row(transform, prompt=[1, 2, 1, 2, 1, 2], output=[1])
        assert row.states == {}
        assert penalties(row) == {}


def test_breakers_need_a_tokenizer() -> None:
    with pytest.raises(InvalidRequest, match="sequence breakers") as fault:
        baseline_row(DRY())
    assert fault.value.param == "sequence_breakers"


def test_masked_tokens_stay_masked_and_greedy_rows_are_penalized() -> None:
    row = baseline_row(DRY(sequence_breakers=()), prompt=[1, 2, 3, 1, 2], temperature=0.0)
    assert process_row([0.0, 0.0, 0.0, 0.5], row) == pytest.approx([0.0, 0.0, 0.0, -0.3])
    assert process_row([0.0, 0.0, 0.0, -INF], row) == [0.0, 0.0, 0.0, -INF]


def test_forks_are_independent() -> None:
    transform = DRY(multiplier=1.0, base=2.0, allowed_length=1, sequence_breakers=())
    row = baseline_row(transform, prompt=[1, 2, 3], output=[1])
    left, right = row.fork(), row.fork()
    for fork, tokens in ((left, [4, 1]), (right, [2, 5, 1, 2])):
        for token in tokens:
            fork.append(token)
    assert penalties(row) == {2: 1.0}
    assert penalties(left) == {2: 1.0, 4: 1.0}
    assert penalties(right) == {3: 2.0, 5: 2.0}
    row.append(2)
    assert penalties(row) == {3: 2.0}


def test_a_long_text_of_one_token_is_bounded() -> None:
    """20,000 tokens of prompt and 200 of output: quadratic work would take minutes."""
    start = time.perf_counter()
    row = baseline_row(DRY(sequence_breakers=()), prompt=[1] * 20_000, output=[1] * 200)
    assert penalties(row) == pytest.approx({1: 0.8 * 1.75 ** (LONGEST - 2)}, rel=1e-5)
    assert time.perf_counter() - start < 10


def test_json_fields() -> None:
    transform = DRY.model_validate({"multiplier": 1, "sequence_breakers": ["\n", "§"]})
    assert transform.sequence_breakers == ("\n", "§")
    schema = DRY.model_json_schema()["properties"]
    assert all("description" in field for field in schema.values())


@pytest.mark.parametrize(
    "fields",
    [
        {"multiplier": -0.1},
        {"base": 0.9},
        {"base": float("inf")},
        {"allowed_length": 0},
        {"allowed_length": 51},
        {"penalty_last_n": -2},
        {"sequence_breakers": [""]},
        {"sequence_breakers": ["x" * 41]},
        {"sequence_breakers": [7]},
        {"range": 3},
    ],
)
def test_ranges(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DRY.model_validate(fields)


def test_a_row_of_a_batch_pays_its_own_parameters() -> None:
    rows = [
        baseline_row(DRY(multiplier=m, base=b, sequence_breakers=()), prompt=[1, 2, 3, 1, 2])
        for m, b in ((1.0, 2.0), (3.0, 1.0))
    ]
    stages = [DRY.model_validate(row.stages[0].model_dump()) for row in rows]
    found = DRY.apply(torch.zeros(2, 4), rows, stages)
    assert found.tolist() == [[0.0, 0.0, 0.0, -1.0], [0.0, 0.0, 0.0, -3.0]]
