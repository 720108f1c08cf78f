"""Tokenizers with a given vocabulary of pieces, for tests that choose where token borders fall."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class PieceTokenizer:
    """A `strategies.text.Tokenizer` that learns pieces as it meets them: the special tokens, then the vocabulary."""

    def __init__(
        self,
        vocabulary: Iterable[bytes] = (),
        *,
        strips_leading_space: bool = False,
        special: Sequence[str] = ("<s>", "</s>"),
    ) -> None:
        self.special_token_ids: Mapping[str, int] = {name: i for i, name in enumerate(special)}
        self._pieces = [name.encode() for name in special]
        self._ids: dict[bytes, int] = {}
        self.strips_leading_space = strips_leading_space
        self.bos_token_id: int | None = 0
        self.eos_token_ids = frozenset({1})
        self.ids(vocabulary)

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def ids(self, pieces: Iterable[bytes]) -> list[int]:
        """Ids of the pieces, new ones for new pieces."""
        found = []
        for piece in pieces:
            if piece not in self._ids:
                self._ids[piece] = len(self._pieces)
                self._pieces.append(piece)
            found.append(self._ids[piece])
        return found

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [*([0] if add_special_tokens else []), *self.ids(bytes([byte]) for byte in text.encode())]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        text = b"".join(self._pieces[i] for i in ids if not (skip_special_tokens and self.is_special(i))).decode()
        return text.removeprefix(" ") if self.strips_leading_space else text

    def token_bytes(self, token: int) -> bytes:
        return self._pieces[token] if 0 <= token < len(self._pieces) else b""

    def is_special(self, token: int) -> bool:
        return token < len(self.special_token_ids)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        raise NotImplementedError


def split(text: bytes, lengths: Iterable[int]) -> list[bytes]:
    """The text cut into pieces of the given lengths, the last length over and over."""
    pieces, start, length = [], 0, 1
    for length in lengths:
        if start >= len(text):
            return pieces
        pieces.append(text[start : start + length])
        start += length
    return pieces + [text[i : i + length] for i in range(start, len(text), length)]
