"""Corners of the log-probability shapes: no probability at all, colliding texts, a token put before the prompt."""

import json
import math

import pytest

from decoding_server.logprobs import FLOOR, CompletionLogprobsWriter, TokenSpelling, chat_entries
from decoding_server.running import Prompt
from decoding_server.service import SeedSource
from decoding_server.streaming import event
from models.scripted import ByteTokenizer
from strategies.runtime import TokenLogprob

A, B, EMOJI_HALF = ord("a"), ord("b"), 260


class TokenizerWithBeginning(ByteTokenizer):
    @property
    def bos_token_id(self):
        return 257


def test_no_probability_has_a_floor_and_stays_json():
    entry = TokenLogprob(A, -math.inf, ((B, -0.5), (A, -math.inf)))
    (chat,) = chat_entries(TokenSpelling(ByteTokenizer()), [entry], 2)
    assert [chat["logprob"], *(top["logprob"] for top in chat["top_logprobs"])] == [FLOOR, -0.5, FLOOR]
    arrays = CompletionLogprobsWriter(TokenSpelling(ByteTokenizer()), Prompt([A], "a"), 1).answer_arrays([entry])
    assert arrays["top_logprobs"] == [{"b": -0.5, "a": FLOOR}]
    assert b"Infinity" not in event(dict(arrays))
    with pytest.raises(ValueError, match="JSON"):
        event({"logprob": -math.inf})


def test_of_two_tokens_with_one_text_the_likelier_stays():
    tokenizer = ByteTokenizer(pieces=[b"a"])
    twin = EMOJI_HALF
    arrays = CompletionLogprobsWriter(TokenSpelling(tokenizer), Prompt([A], "a"), 2).answer_arrays(
        [TokenLogprob(twin, -3.0, ((A, -0.1), (twin, -3.0)))]
    )
    assert arrays["token_logprobs"] == [-3.0]
    assert arrays["top_logprobs"] == [{"a": -0.1}]


def test_special_tokens_have_no_bytes():
    (entry,) = chat_entries(TokenSpelling(ByteTokenizer()), [TokenLogprob(256, -1.0)], 0)
    assert (entry["token"], entry["bytes"]) == ("<|end|>", [])


@pytest.mark.parametrize(("text", "offsets"), [("ab", [0, 0, 1, 2]), ("<|system|>ab", [0, 10, 11, 12])])
def test_a_beginning_that_the_tokenizer_added_has_no_width(text, offsets):
    """Unless the client wrote it."""
    writer = CompletionLogprobsWriter(TokenSpelling(TokenizerWithBeginning()), Prompt([257, A, B], text), 0)
    prompt = writer.prompt_arrays([None, TokenLogprob(A, -1.0), TokenLogprob(B, -1.0)])
    assert prompt["text_offset"] + writer.answer_arrays([TokenLogprob(A, -1.0)])["text_offset"] == offsets


def test_half_a_character_in_the_prompt_does_not_shift_the_answer():
    tokenizer = ByteTokenizer()
    tokens = [A, 0xE2]
    writer = CompletionLogprobsWriter(TokenSpelling(tokenizer), Prompt(tokens, tokenizer.decode(tokens)), 0)
    writer.prompt_arrays([None, TokenLogprob(0xE2, -1.0)])
    assert writer.answer_arrays([TokenLogprob(A, -1.0), TokenLogprob(B, -1.0)])["text_offset"] == [2, 3]


def test_seed_source():
    first, again, other = SeedSource(1), SeedSource(1), SeedSource(2)
    seeds = [first.next() for _ in range(4)]
    assert seeds == [again.next() for _ in range(4)]
    assert len({*seeds, *(other.next() for _ in range(4))}) == 8
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert SeedSource(None).next() != SeedSource(None).next()


def test_events_are_one_ascii_line():
    line = event({"text": "\u2028\u0085\n\r\N{GRINNING FACE}"})
    assert line.isascii()
    assert line.endswith(b"\n\n")
    assert line.count(b"\n") == 2
    assert json.loads(line.removeprefix(b"data: "))["text"] == "\u2028\u0085\n\r\N{GRINNING FACE}"
