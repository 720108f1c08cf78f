"""Texts as TF-IDF rows, as phi-decoding clusters them (arXiv 2503.13288, section 2.2).

Raw counts; idf = ln((1 + n) / (1 + df)) + 1; rows of unit length; vocabulary and document frequencies from these
texts only: the smoothed form that scikit-learn's vectoriser has by default.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TokenRule = Literal["words", "math"]
"""words: runs of two or more word characters (the authors' tokens). math: see `math_tokens`."""

_WORDS = re.compile(r"\b\w\w+\b")
_OPERATORS = frozenset("+-*/=<>^%$")
_UNSEGMENTED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1100, 0x11FF),  # Hangul letters
    (0x3005, 0x3007),  # ideographic iteration and closing marks, zero
    (0x3040, 0x30FF),  # kana
    (0x3130, 0x318F),  # Hangul compatibility letters
    (0x31F0, 0x31FF),  # kana extensions
    (0x3400, 0x4DBF),  # CJK extension A
    (0x4E00, 0x9FFF),  # CJK
    (0xA960, 0xA97F),  # Hangul extended A
    (0xAC00, 0xD7FF),  # Hangul syllables
    (0xF900, 0xFAFF),  # CJK compatibility
    (0xFF66, 0xFF9F),  # half-width kana
    (0x20000, 0x323AF),  # further CJK extensions
)


class EmptyVocabulary(ValueError):
    """No text has a single token."""


def word_tokens(text: str) -> list[str]:
    """Lower-cased runs of at least two word characters. One-digit answers and unsegmented scripts stay unseen."""
    return _WORDS.findall(text.lower())


def math_tokens(text: str) -> list[str]:
    """Lower-cased words, numbers and operators of any length; unsegmented scripts as single characters and pairs.

    Two solutions that differ in a one-digit answer, or in one Chinese word, differ in these tokens.
    """
    tokens: list[str] = []
    for kind, run in groupby(text.lower(), key=_character_class):
        characters = "".join(run)
        if kind == "unsegmented":
            tokens += characters
            tokens += (characters[i : i + 2] for i in range(len(characters) - 1))
        elif kind == "operator":
            tokens += characters
        elif kind is not None:
            tokens.append(characters)
    return tokens


def tfidf(texts: Sequence[str], rule: TokenRule = "words") -> tuple[list[str], NDArray[np.float64]]:
    """(vocabulary in code-point order, rows float64 [texts, vocabulary]); a text without tokens is a zero row.

    Raises EmptyVocabulary if no text has a token.
    """
    tokenize = word_tokens if rule == "words" else math_tokens
    counts = [Counter(tokenize(text)) for text in texts]
    vocabulary = sorted(set().union(*counts))
    if not vocabulary:
        raise EmptyVocabulary("no text has a token")
    column = {token: index for index, token in enumerate(vocabulary)}
    rows = np.zeros((len(texts), len(vocabulary)))
    for row, count in zip(rows, counts, strict=True):
        for token, times in count.items():
            row[column[token]] = times
    document_frequency = (rows > 0).sum(axis=0)
    rows *= np.log((1 + len(texts)) / (1 + document_frequency)) + 1
    lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return vocabulary, np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def _character_class(character: str) -> Literal["unsegmented", "word", "digit", "operator"] | None:
    code = ord(character)
    if code > 0x7F and any(low <= code <= high for low, high in _UNSEGMENTED):
        return "unsegmented"
    if character.isdecimal():
        return "digit"
    if character in _OPERATORS:
        return "operator"
    # Marks belong to the word: Devanagari vowel signs and combining accents are no letters by themselves.
    return "word" if unicodedata.category(character)[0] in "LM" else None
