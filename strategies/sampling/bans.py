"""What a request forbids outright: sequences of tokens ("bad words"), and all ids but some."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from strategies.errors import InvalidRequest
from strategies.sampling.transform import Stage, Transform, ban, scatter
from strategies.text import Tokenizer

if TYPE_CHECKING:
    from strategies.sampling.row import Row

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class AllowedTokenIds(Transform):
    """Masks all tokens but `ids`. A row that would be left without a token stays as it was."""

    name: ClassVar = "allowed_token_ids"
    stage: ClassVar = Stage.BAN
    rank: ClassVar = 10

    ids: Annotated[
        tuple[TokenId, ...],
        Field(strict=False, min_length=1, max_length=2**20, description="The only token ids that may be generated."),
    ]

    def token_ids(self) -> Iterable[int]:
        return self.ids

    @cached_property
    def index(self) -> Tensor:
        """The ids as int64 [N]; made once for all steps."""
        return torch.tensor(self.ids, dtype=torch.int64)

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        forbidden = torch.ones_like(logits, dtype=torch.bool)
        for row, stage in zip(forbidden, stages, strict=True):
            row[stage.index.to(logits.device)] = False
        forbidden &= logits < float("inf")  # a NaN or +inf stays, so that the row is still found faulty
        left = logits.masked_fill(forbidden, float("-inf"))
        return torch.where(torch.isneginf(left.amax(-1, keepdim=True)), logits, left)


class BadWords(Transform):
    """Bans the last token of each of `sequences` whose other tokens are the end of the output.

    A sequence of one token is banned always. The prompt doesn't count. Where the bans would leave no token, the row
    stays as it was. `bad_word_sequences` makes the sequences from text.
    """

    name: ClassVar = "bad_words"
    stage: ClassVar = Stage.BAN
    rank: ClassVar = 20

    sequences: Annotated[
        tuple[Annotated[tuple[TokenId, ...], Field(strict=False, min_length=1, max_length=1024)], ...],
        Field(strict=False, min_length=1, max_length=4096, description="Token sequences that may not be generated."),
    ]

    def token_ids(self) -> Iterable[int]:
        return (token for sequence in self.sequences for token in sequence)

    @cached_property
    def by_beginning(self) -> dict[int | None, list[tuple[int, ...]]]:
        """The sequences by the token before their last one, None for those of one token."""
        found: dict[int | None, list[tuple[int, ...]]] = {}
        for sequence in self.sequences:
            found.setdefault(sequence[-2] if len(sequence) > 1 else None, []).append(sequence)
        return found

    def banned(self, output: Sequence[int]) -> list[int]:
        """The ids that may not follow these tokens."""
        tokens = [sequence[0] for sequence in self.by_beginning.get(None, ())]
        if output:
            for *beginning, last in self.by_beginning.get(output[-1], ()):
                if list(output[-len(beginning) :]) == beginning:
                    tokens.append(last)
        return tokens

    def wants(self, row: "Row") -> bool:
        return bool(self.banned(row.output))

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        index, tokens, _ = scatter(
            (
                (i, token, 0.0)
                for i, (row, stage) in enumerate(zip(rows, stages, strict=True))
                for token in stage.banned(row.output)
            ),
            logits.device,
        )
        return ban(logits, index, tokens)


def bad_word_sequences(words: Iterable[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Token sequences that spell the words, each at the start of a text and after a space, without duplicates.

    Spaces before a word don't matter. Raises InvalidRequest("bad_words") for a word that is empty or has no tokens.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        stem = word.lstrip(" ")
        spellings = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (stem, " " + stem)]
        if not stem or not spellings[0]:
            raise InvalidRequest(f"{word[:100]!r} has no tokens that could be banned", "bad_words")
        sequences.update(dict.fromkeys(spellings))
    return tuple(sequences)
