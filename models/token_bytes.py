"""The exact bytes of a vocabulary entry, by interpreting the decoder that tokenizer.json describes."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from strategies.errors import ModelLoadError

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's byte-level alphabet: printable Latin-1 characters stand for themselves, the other
    bytes, in order, for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(rest)}


BYTE_ALPHABET = _byte_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; one with characters outside the alphabet stands for its own text."""
    try:
        return bytes([BYTE_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


class TokenDecoder:
    """Turns one vocabulary entry into bytes.

    description: the `decoder` of tokenizer.json. strips_leading_space: whether decoding a whole text drops one space at
    its beginning. Raises ModelLoadError for a decoder whose tokens have no bytes of their own.
    """

    def __init__(self, description: Mapping[str, Any] | None) -> None:
        self.strips_leading_space = False
        self._replacements: list[Callable[[str], str]] = []
        self._byte_level = False
        self._byte_fallback = False
        if description is None:
            raise ModelLoadError(
                "the tokenizer has no decoder; add one to tokenizer.json (byte-level or SentencePiece's)"
            )
        self._add(description)

    def bytes_of(self, token: str) -> bytes:
        """The bytes of an ordinary (not added) token."""
        if self._byte_level:
            return byte_level_bytes(token)
        if self._byte_fallback and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for replace in self._replacements:
            token = replace(token)
        return token.encode()

    def _add(self, step: Mapping[str, Any]) -> None:
        kind = step["type"]
        if kind == "Sequence":
            for inner in step["decoders"]:
                self._add(inner)
        elif kind == "ByteLevel":
            self._byte_level = True
        elif kind == "ByteFallback":
            self._byte_fallback = True
        elif kind == "Metaspace":
            self._replacements.append(_substitution({"String": step["replacement"]}, " "))
            if step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True):
                self.strips_leading_space = True
        elif kind == "Replace":
            self._replacements.append(_substitution(step["pattern"], step["content"]))
        elif kind == "Strip" and step["content"] == " " and step["stop"] == 0 and step["start"] <= 1:
            self.strips_leading_space = self.strips_leading_space or step["start"] == 1
        elif kind != "Fuse":
            raise ModelLoadError(
                f"the tokenizer's decoder {kind} is not supported; use a byte-level or SentencePiece model"
            )


def _substitution(pattern: Mapping[str, str], content: str) -> Callable[[str], str]:
    if "String" in pattern:
        return lambda token: token.replace(pattern["String"], content)
    expression = re.compile(pattern["Regex"])
    return lambda token: expression.sub(lambda _: content, token)
