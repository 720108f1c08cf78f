"""Bad words and allowed token ids: definitions, transformers, what they yield to, and words as tokens."""

import math
from typing import Any

import pytest
import torch
from baseline_reference import INF, bad_word_ends, baseline_row, process_row
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sampling_reference import random_logits
from transformers.generation.logits_process import NoBadWordsLogitsProcessor

from models.scripted import ByteTokenizer
from strategies.errors import InvalidRequest
from strategies.sampling import pipeline
from strategies.sampling.bans import AllowedTokenIds, BadWords, bad_word_sequences
from strategies.sampling.pipeline import faulty_rows

V = 6
TOKENS = st.lists(st.integers(0, V - 2), max_size=12)
SEQUENCES = st.lists(st.lists(st.integers(0, V - 2), min_size=1, max_size=3), min_size=1, max_size=8)


@settings(deadline=None, max_examples=120)
@given(SEQUENCES, TOKENS, TOKENS)
def test_bans_the_end_of_a_begun_sequence(sequences: list[list[int]], prompt: list[int], output: list[int]) -> None:
    row = baseline_row(BadWords.model_validate({"sequences": sequences}), prompt=prompt)
    for n in range(len(output) + 1):
        if n:
            row.append(output[n - 1])
        expected = bad_word_ends(sequences, output[:n])
        found = process_row([float(v) for v in range(V)], row)
        assert found == [-INF if v in expected else float(v) for v in range(V)]
        assert row.stages[0].wants(row) == bool(expected)


def test_equals_transformers() -> None:
    """transformers reads the prompt, too, so the whole history is output here, and it lets a sequence of n tokens begin
    only after n tokens; the histories are longer than that."""
    sequences = [[1], [2, 3], [0, 0, 4], [3, 2, 1, 5], [5, 5]]
    history = torch.randint(0, 6, (32, 12), generator=torch.Generator().manual_seed(1))
    history[0, -2:], history[1, -3:], history[2, -1] = 0, torch.tensor([3, 2, 1]), 2
    logits = random_logits(32, 9, seed=1)
    expected = NoBadWordsLogitsProcessor(sequences)(history, logits.clone())
    transform = BadWords.model_validate({"sequences": sequences})
    rows = [baseline_row(transform, output=h) for h in history.tolist()]
    assert torch.equal(pipeline.process(logits.clone(), rows), expected)


def test_the_prompt_does_not_begin_a_bad_word_and_greedy_rows_obey() -> None:
    row = baseline_row(BadWords(sequences=((1, 2),)), prompt=[0, 1], temperature=0.0)
    assert process_row([0.0, 0.0, 5.0], row) == [0.0, 0.0, 5.0]
    row.append(1)
    assert process_row([0.0, 0.0, 5.0], row) == [0.0, 0.0, -INF]


def test_bans_yield_to_what_is_allowed() -> None:
    row = baseline_row(BadWords(sequences=((2,), (3,))), AllowedTokenIds(ids=(2, 3)))
    assert process_row([1.0, 2.0, 3.0, 4.0], row) == [-INF, -INF, 3.0, 4.0]
    row = baseline_row(BadWords(sequences=((2,),)), AllowedTokenIds(ids=(2, 3)))
    assert process_row([1.0, 2.0, 3.0, 4.0], row) == [-INF, -INF, -INF, 4.0]


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.floats(-30, 30, width=32), st.just(-INF)), min_size=V, max_size=V),
    st.lists(st.integers(0, V - 1), min_size=1),
)
def test_allowed_token_ids(logits: list[float], ids: list[int]) -> None:
    found = process_row(logits, baseline_row(AllowedTokenIds(ids=tuple(ids))))
    left = [x if v in ids else -INF for v, x in enumerate(logits)]
    assert found == (left if max(left) > -INF else logits)


def test_allowed_token_ids_hide_no_fault() -> None:
    rows = [baseline_row(AllowedTokenIds(ids=(0,))) for _ in range(3)]
    logits = torch.tensor([[1.0, math.nan, 0.0], [1.0, INF, 0.0], [1.0, 2.0, 0.0]])
    assert faulty_rows(pipeline.process(logits, rows)).tolist() == [True, True, False]


def test_the_ids_named_are_told() -> None:
    assert set(AllowedTokenIds(ids=(3, 9)).token_ids()) == {3, 9}
    assert set(BadWords(sequences=((1, 2), (7,))).token_ids()) == {1, 2, 7}


class SpacedTokenizer(ByteTokenizer):
    """Spells " no" and "no" as one token each, like a byte-pair vocabulary; all else as bytes."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        single = {" no": [260], "no": [261]}
        return single.get(text) or super().encode(text, add_special_tokens=add_special_tokens)


def test_words_are_spelled_with_and_without_a_space() -> None:
    tokenizer = SpacedTokenizer((b" no", b"no"))
    assert bad_word_sequences(["no"], tokenizer) == ((261,), (260,))
    assert bad_word_sequences(["  no", "no"], tokenizer) == ((261,), (260,))
    assert bad_word_sequences(["ab"], tokenizer) == ((97, 98), (32, 97, 98))
    assert bad_word_sequences(["\n"], tokenizer) == ((10,), (32, 10))
    assert bad_word_sequences([], tokenizer) == ()


@pytest.mark.parametrize("word", ["", " ", "   "])
def test_an_empty_word_is_refused(word: str) -> None:
    with pytest.raises(InvalidRequest, match="no tokens") as fault:
        bad_word_sequences(["fine", word], ByteTokenizer())
    assert fault.value.param == "bad_words"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (AllowedTokenIds, {"ids": []}),
        (AllowedTokenIds, {"ids": [-1]}),
        (AllowedTokenIds, {"ids": ["1"]}),
        (BadWords, {"sequences": []}),
        (BadWords, {"sequences": [[]]}),
        (BadWords, {"sequences": [[1], [-2]]}),
        (BadWords, {"sequences": [[1.5]]}),
    ],
)
def test_ranges(kind: type[AllowedTokenIds] | type[BadWords], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(fields)
