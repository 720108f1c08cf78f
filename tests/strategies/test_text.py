"""TextAssembler against a character-by-character reference, for any cut of any bytes into tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strategies.text import TextAssembler

REPLACEMENT = "\ufffd"


def second_byte_range(lead: int) -> range:
    """Allowed second bytes after a lead byte of two to four bytes (Unicode Standard, table 3-7)."""
    starts, ends = {0xE0: 0xA0, 0xF0: 0x90}, {0xED: 0xA0, 0xF4: 0x90}
    return range(starts.get(lead, 0x80), ends.get(lead, 0xC0))


def sequence_length(lead: int) -> int:
    """How many bytes a character with this lead byte has; 0 for a byte that can't lead."""
    if lead < 0x80:
        return 1
    for first, last, length in ((0xC2, 0xDF, 2), (0xE0, 0xEF, 3), (0xF0, 0xF4, 4)):
        if first <= lead <= last:
            return length
    return 0


def characters(data: bytes) -> list[tuple[str, int]]:
    """(character, index of the byte that settles it); an ill-formed maximal subpart becomes one U+FFFD."""
    found: list[tuple[str, int]] = []
    pending = b""
    for i, byte in enumerate(data):
        if pending:
            allowed = second_byte_range(pending[0]) if len(pending) == 1 else range(0x80, 0xC0)
            if byte in allowed:
                pending += bytes([byte])
                if len(pending) == sequence_length(pending[0]):
                    found.append((pending.decode(), i))
                    pending = b""
                continue
            found.append((REPLACEMENT, i))
            pending = b""
        length = sequence_length(byte)
        if length == 1:
            found.append((chr(byte), i))
        elif length == 0:
            found.append((REPLACEMENT, i))
        else:
            pending = bytes([byte])
    return found


@dataclass
class Expected:
    """What the reference says: text out after each token, the stop string found, the text at the end."""

    released: list[str]
    stopped: str | None
    text: str


def reference(tokens: Sequence[bytes], stop: Sequence[str], min_tokens: int = 0) -> Expected:
    """One character at a time: the first moment at which the text ends with a stop string ends it."""
    settled = characters(b"".join(tokens))
    text, out, end = "", "", 0
    released: list[str] = []
    for number, token in enumerate(tokens, 1):
        end += len(token)
        while settled and settled[0][1] < end:
            text += settled.pop(0)[0]
            matches = [s for s in stop if text.endswith(s)] if number >= min_tokens else []
            if matches:
                longest = max(matches, key=len)
                text = text[: len(text) - len(longest)]
                return Expected([*released, text], longest, text)
        candidates = (text[i:] for i in range(len(out), len(text) + 1))
        held = next(c for c in candidates if any(s.startswith(c) and s != c for s in stop) or not c)
        out = text[: len(text) - len(held)]
        released.append(out)
    return Expected(released, None, text)


def assemble(tokens: Sequence[bytes], stop: Sequence[str], min_tokens: int = 0) -> Expected:
    assembler = TextAssembler(stop, min_tokens)
    out, released = "", []
    for token in tokens:
        out += assembler.push(token)
        released.append(out)
        if assembler.stopped is not None:
            break
    out += assembler.finish()
    assert out == assembler.text
    return Expected(released, assembler.stopped, out)


def cut(data: bytes, borders: Sequence[int]) -> list[bytes]:
    """Splits at the borders (taken modulo the length); equal borders give empty tokens."""
    places = [0, *sorted(b % (len(data) + 1) for b in borders), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


# A few characters of one to four bytes, of which two share their first two bytes, and a base with a combining accent:
# stop strings over so few overlap themselves and each other often.
DENSE = st.text(st.sampled_from(["a", "b", "\n", "é", "e", "\u0301", "字", "孖", "😀", "😁", "\u200d"]), max_size=12)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# 0xED is left out: after ED A0 Python's incremental decoder waits for one byte more than it must (same text, later).
RAW = st.lists(st.sampled_from([b for b in range(256) if b != 0xED]), max_size=12).map(bytes)
TWO_LETTERS = st.text(st.sampled_from("ab"), max_size=16)
DATA = st.lists(
    st.one_of(DENSE.map(str.encode), ANY_TEXT.map(str.encode), TWO_LETTERS.map(str.encode), RAW), max_size=4
)
STOPS = st.lists(
    st.one_of(
        st.text(st.sampled_from("ab"), min_size=1, max_size=5),
        st.text(st.sampled_from(["a", "é", "e", "\u0301", "字", "😀", REPLACEMENT]), min_size=1, max_size=3),
    ),
    max_size=4,
)
BORDERS = st.lists(st.integers(0, 200), max_size=30)


@settings(max_examples=400, deadline=None)
@given(DATA.map(b"".join), STOPS, BORDERS)
@example(b"aabaabaaab", ["aabaaa"], [1, 2, 3])
@example(b"xabcd", ["abcd", "bc"], [])
@example(b"aaab", ["aab", "aaab", "b"], [2])
@example("é😀é".encode(), ["😀é"], list(range(9)))
@example(b"\xf0\x9fa\xff", [REPLACEMENT + "a"], [1, 2])
def test_equals_the_character_by_character_reference(data: bytes, stop: list[str], borders: list[int]) -> None:
    """After every token, what is out is what the reference lets out: nothing early, nothing held that need not be."""
    tokens = cut(data, borders)
    assert assemble(tokens, stop) == reference(tokens, stop)


@settings(max_examples=300, deadline=None)
@given(DATA.map(b"".join), STOPS, BORDERS, st.integers(0, 12))
@example(b"abab", ["ab"], [1, 2, 3], 3)
@example(b"aaa", ["aa"], [1, 2], 3)
@example("😀😀".encode(), ["😀"], [2, 4, 6], 3)
def test_equals_the_reference_with_a_floor(data: bytes, stop: list[str], borders: list[int], min_tokens: int) -> None:
    tokens = cut(data, borders)
    assert assemble(tokens, stop, min_tokens) == reference(tokens, stop, min_tokens)


@settings(max_examples=300, deadline=None)
@given(DATA.map(b"".join), STOPS, BORDERS, BORDERS)
@example(b"abcd" * 4, ["cdab", "dabc"], [], [1, 5, 9])
def test_the_result_does_not_depend_on_token_borders(
    data: bytes, stop: list[str], one: list[int], other: list[int]
) -> None:
    results = [assemble(cut(data, borders), stop) for borders in (one, other, [], range(len(data)))]
    assert {(r.text, r.stopped) for r in results} == {(results[0].text, results[0].stopped)}


@settings(max_examples=300, deadline=None)
@given(DATA, STOPS.filter(bool), BORDERS, st.data())
def test_text_that_is_out_is_never_part_of_a_stop_string(
    data: list[bytes], stop: list[str], borders: list[int], draw: st.DataObject
) -> None:
    """Whatever follows, also a stop string's own rest, the final text begins with everything that was handed out."""
    chosen = draw.draw(st.sampled_from(stop))
    whole = b"".join(data) + chosen.encode()
    end = draw.draw(st.integers(0, len(whole)))
    tokens = [*cut(whole[:end], borders), whole[end:]]
    result = assemble(tokens, stop)
    assert all(result.text.startswith(out) for out in result.released)
    assert not any(s in result.text for s in stop)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), BORDERS)
def test_well_formed_text_comes_out_whole_with_no_replacement(text: str, borders: list[int]) -> None:
    assembler = TextAssembler()
    pieces = [assembler.push(token) for token in cut(text.encode(), borders)]
    assert "".join(pieces) + assembler.finish() == text
    assert assembler.stopped is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=24), BORDERS)
@example(b"\xed\xa0", [1])
@example(b"\xed\xa0\x80\xed", [2])
def test_ill_formed_bytes_decode_as_in_one_piece(data: bytes, borders: list[int]) -> None:
    """With a settled last character, the text is that of decoding all bytes at once."""
    result = assemble(cut(data + b".", borders), ())
    assert result.text == (data + b".").decode("utf-8", "replace")


def pieces(tokens: Sequence[bytes], stop: Sequence[str] = (), min_tokens: int = 0) -> tuple[list[str], str | None]:
    assembler = TextAssembler(stop, min_tokens)
    out = [assembler.push(token) for token in tokens]
    return [*out, assembler.finish()], assembler.stopped


def test_stop_string_over_several_tokens_never_leaks() -> None:
    """peers.md 5, row 1."""
    assembler = TextAssembler(["DEFGH"])
    assert [assembler.push(t) for t in (b"X", b"DE", b"F", b"GH")] == ["X", "", "", ""]
    assert assembler.stopped == "DEFGH"
    assert assembler.finish() == ""
    assert assembler.text == "X"


def test_emoji_in_two_tokens_is_one_piece() -> None:
    """peers.md 5, row 2."""
    assert pieces([b"\xf0\x9f", b"\x98\x80"]) == (["", "😀", ""], None)


def test_stop_string_below_min_tokens_is_text() -> None:
    """peers.md 5, row 3: at least min_tokens tokens, then a stop string counts, from the token that reaches it on."""
    lines = [b"a", b"\n"] * 5
    assert pieces(lines[:8], ["\n"], 8) == (["a", "\n", "a", "\n", "a", "\n", "a", "", ""], "\n")
    assert pieces(lines[:9], ["\n"], 9) == (["a", "\n"] * 4 + ["a", ""], None)


def test_stop_string_begun_below_the_floor_counts_when_it_ends_beyond() -> None:
    assert pieces([b"x", b"E", b"ND"], ["END"], 3) == (["x", "", "", ""], "END")
    assert pieces([b"x", b"E", b"ND", b"."], ["END"], 4) == (["x", "", "END", ".", ""], None)


def test_a_match_below_the_floor_does_not_hide_one_that_overlaps_it() -> None:
    assert pieces([b"aa", b"a"], ["aa"], 2) == (["a", "", ""], "aa")


def test_special_token_name_given_as_stop_matches_its_bytes() -> None:
    """peers.md 5, row 4, where a special token's bytes (its name) reach the text."""
    assert pieces([b"Hi", b"<|im", b"_end|>"], ["<|im_end|>"]) == (["Hi", "", "", ""], "<|im_end|>")


@pytest.mark.parametrize(
    ("stop", "data", "text", "stopped"),
    [
        (["abc", "b"], b"xabcx", "xa", "b"),  # ends first although it starts later
        (["b", "ab"], b"xaby", "x", "ab"),  # both end at the same character: the longest
        (["ab", "b"], b"xaby", "x", "ab"),
        (["ab", "abc"], b"xabc", "x", "ab"),  # a stop string that is a prefix of another ends first
        (["aab"], b"aaab", "a", "aab"),
        (["abab", "ba"], b"abab", "a", "ba"),
    ],
)
def test_the_stop_string_that_ends_first_wins(stop: list[str], data: bytes, text: str, stopped: str) -> None:
    for tokens in ([data], [data[i : i + 1] for i in range(len(data))]):
        assembler = TextAssembler(stop)
        out = ""
        for token in tokens:
            out += assembler.push(token)
            if assembler.stopped:
                break
        assert (out + assembler.finish(), assembler.stopped) == (text, stopped)


def test_what_is_held_is_released_as_soon_as_it_can_not_match() -> None:
    assert pieces([b"ab", b"a", b"ab", b"c"], ["abac"]) == (["", "", "aba", "abc", ""], None)


def test_long_stop_string_does_not_delay_other_text() -> None:
    """vllm#11089: the length of a stop string alone must not hold text back."""
    assert pieces([b"Yes", b"."], ["\n\nUser: " + "x" * 100]) == (["Yes", ".", ""], None)


def test_finish_releases_held_text_and_drops_half_a_character() -> None:
    assert pieces([b"go EN", b"\xe5\xad"], ["END"]) == (["go ", "", "EN"], None)


def test_tokens_without_text_count_towards_the_floor() -> None:
    assert pieces([b"", b"", b"a"], ["a"], 3) == (["", "", "", ""], "a")
    assert pieces([b"", b"a"], ["a"], 3) == (["", "a", ""], None)
