"""What is asked under load: questions of a data set, or passages of the built-in texts; the seed decides which."""

import functools
import random
from collections.abc import Sequence
from typing import Any

from decoding_server.bench.dataset import Record
from decoding_server.bench.identity import digest
from decoding_server.bench.passages import PASSAGES
from decoding_server.bench.quality.tasks import text_of

CONTINUE = "Continue this text:\n\n"
DIGITS = 9


class Questions:
    """The n-th question of a repeat depends on the seed and n alone, so every strategy and load is asked the same."""

    def __init__(self, texts: Sequence[str] | None, words: int) -> None:
        """texts: None for passages of so many words."""
        self._texts = texts
        self._words = [word for passage in PASSAGES for word in passage.split()]
        self._length = words
        self._order = functools.lru_cache(maxsize=4)(self._shuffled)
        self.fingerprint = digest(list(texts) if texts is not None else [words, *self._words])

    def number(self, seed: int, number: int) -> str:
        """Warm-up requests have negative numbers, and so texts of their own."""
        draw = random.Random(f"{seed}|{number}")
        if self._texts is not None:
            if number < 0:
                return draw.choice(self._texts)
            return self._texts[self._order(seed, number // len(self._texts))[number % len(self._texts)]]
        # The text wraps round at its end.
        start = draw.randrange(len(self._words))
        picked = [self._words[(start + i) % len(self._words)] for i in range(self._length)]
        return CONTINUE + " ".join(picked)

    def _shuffled(self, seed: int, turn: int) -> list[int]:
        assert self._texts is not None
        order = list(range(len(self._texts)))
        random.Random(f"{seed}|{turn}").shuffle(order)
        return order


def marked(text: str, *facts: Any) -> str:
    """The text behind a number that these facts decide, so that no server finds its prompt in a prefix cache. Always
    as many digits, which usual tokenizers take one by one or in threes: all prompts grow by as many tokens."""
    return f"[{int(digest(list(facts)), 16) % 10**DIGITS:0{DIGITS}d}] {text}"


def questions_of(records: Sequence[Record], field: str, title: str) -> list[str]:
    """Raises ValueError that names the record."""
    return [text_of(record, field, f"{title}/{i}") for i, record in enumerate(records)]
