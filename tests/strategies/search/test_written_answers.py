"""The answer of a search for programs is the text that was tested, whatever the tokenizer makes of it."""

import unicodedata
from dataclasses import dataclass
from typing import Any

import pytest
from program_bench import RIGHT, ZERO, fenced, forest_of, made, searched
from scripted_coder import TOKENIZER, code

from models.scripted import ByteTokenizer
from strategies.answer_text import AnswerText
from strategies.runtime import Generation, StopConditions
from strategies.search.written_answer import beginning, write

pytestmark = pytest.mark.usefixtures("program_bench")

NAMES = "".join(ByteTokenizer.SPECIAL)
SPECIAL = code(f'return a + b if "{NAMES}" else 0')


@pytest.mark.parametrize("format", ["fenced", "raw"])
@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_in_a_program_are_text(format: str, skip: bool) -> None:
    reply = searched(forest_of([SPECIAL], [ZERO]), made(k=1, format=format), skip_special_tokens=skip)
    expected = fenced(SPECIAL)
    assert reply.texts == [expected if format == "fenced" else expected[len("```python\n") : -len("```")]]
    assert reply.reasons == [("stop", None)]
    assert reply.facts["verified"] == "given"
    assert reply.programs[0]["text"] == reply.texts[0]
    assert reply.programs[0]["tokens"] == len(TOKENIZER.encode(reply.texts[0]))


def test_in_every_choice() -> None:
    other = SPECIAL.replace("a + b", "b + a")
    reply = searched(forest_of([SPECIAL, other], [ZERO]), made(k=2, seeds=2, stop="never"), n=2)
    assert reply.texts == [fenced(SPECIAL), fenced(other)]
    assert reply.reasons == [("stop", None)] * 2


def test_in_a_reply_without_a_program() -> None:
    """The model's own end is no text; the same characters one by one are."""
    reply = searched(forest_of(["I end with <|end|>, I think."], [ZERO]), made(k=1))
    assert reply.texts == ["I end with <|end|>, I think."]


@pytest.mark.parametrize(
    ("stop", "include", "end"),
    [("<|end|>", False, 0), ("<|end|>", True, 7), (' if "', False, -5), ("nowhere", True, 99)],
)
def test_stop_strings_of_the_client(stop: str, include: bool, end: int) -> None:
    stopping = StopConditions(max_tokens=1000, stop=(stop,), include_stop=include)
    reply = searched(forest_of([SPECIAL], [ZERO]), made(k=1), stopping=stopping)
    text = fenced(SPECIAL)
    assert reply.texts == [text[: text.index("<|end|>") + end] if end != 99 else text]
    assert reply.reasons == [("stop", None if end == 99 else stop)]


def test_max_tokens_cut_the_text() -> None:
    """Of a program that is complete; the answer's fences count too."""
    most = len(RIGHT.replace("Sure.\n", "")) - 1
    reply = searched(forest_of([RIGHT.replace("Sure.\n", "")], [ZERO]), made(k=1), max_tokens=most - 2)
    assert reply.texts == [fenced(RIGHT)[: most - 2]]
    assert reply.reasons == [("length", None)]


@pytest.mark.parametrize("less", [0, 1])
def test_max_tokens_cut_before_a_character_of_several_tokens(less: int) -> None:
    """The reply fits, the answer with its longer fence is cut, though it has fewer tokens than it may."""
    program = "```\ndef add(a, b):\n    return a + b  # \u20ac\u20ac\n```\n"
    reply = searched(forest_of([program], [ZERO]), made(k=1), max_tokens=len(program.encode()) - less)
    assert reply.texts == ["```python\ndef add(a, b):\n    return a + b  # \u20ac"]
    assert reply.reasons == [("length", None)]


class Composing(ByteTokenizer):
    """Normalises, as Qwen's does, so a decoding is not the text that was encoded."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return super().encode(unicodedata.normalize("NFC", text))


@dataclass
class Written:
    text: str
    tokens: list[int]
    whole: bool
    stop: Any


def written(text: str, max_tokens: int = 100, tokenizer: ByteTokenizer | None = None, **stopping: Any) -> Written:
    tokenizer = Composing() if tokenizer is None else tokenizer
    generation = Generation([0], stopping=StopConditions(**stopping))
    answer = AnswerText(generation, tokenizer, tokenizer.eos_token_ids)
    tokens, whole = write(answer, text, tokenizer, generation.stopping, max_tokens=max_tokens)
    assert answer.ended == (answer.stop_reason is not None)
    return Written(answer.text, tokens, whole, answer.stop_reason)


def test_what_a_tokenizer_normalises_stays() -> None:
    text = "x = 'e\u0301 \u212b <|end|>'"
    found = written(text)
    assert (found.text, found.whole, found.stop) == (text, True, None)
    assert Composing().decode(found.tokens, skip_special_tokens=False) != text


def test_a_cut_never_splits_a_character() -> None:
    text = "ab\u20accd"
    assert [beginning(text, TOKENIZER, n) for n in range(8)] == ["", "a", "ab", "ab", "ab", text[:3], text[:4], text]
    assert written(text, 4) == Written("ab", [97, 98], False, None)
    assert written(text, 7) == Written(text, list(text.encode()), True, None)


def test_stop_strings_count_from_min_tokens_on() -> None:
    """As they do when tokens come one by one."""
    assert written("abcabc", stop=("c",)) == Written("ab", list(b"abc"), True, "c")
    assert written("abcabc", stop=("c",), min_tokens=3).text == "ab"
    assert written("abcabc", stop=("c",), min_tokens=4) == Written("abcab", list(b"abcabc"), True, "c")
    # What stands before the stop string is the same text.
    assert written("ababab", stop=("ab",), min_tokens=4) == Written("ab", list(b"abab"), True, "ab")
    assert written("abcabc", 2, stop=("c",)) == Written("ab", list(b"ab"), False, None)
    assert written("abcabc", 3, stop=("c",), include_stop=True) == Written("abc", list(b"abc"), False, "c")


def test_min_tokens_cost_nothing_without_a_stop_string() -> None:
    encoded = 0

    class Counting(ByteTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            nonlocal encoded
            encoded += 1
            return super().encode(text)

    assert written("abcabc", tokenizer=Counting(), min_tokens=4).text == "abcabc"
    assert encoded == 2
