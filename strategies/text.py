"""Tokens to text: what a tokenizer must offer, incremental detokenization, and stop strings."""

import codecs
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """What the runtimes and the HTTP layer need of a tokenizer. `token_bytes` are a token's real bytes."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token(self) -> str | None:
        """The text of the end that the tokenizer itself names."""

    @property
    def special_token_ids(self) -> Mapping[str, int]:
        """Text -> id of the special tokens (control tokens such as <|im_end|>, which have no text in an answer)."""

    @property
    def strips_leading_space(self) -> bool:
        """Whether decoding drops one space before the first word (SentencePiece-style tokenizers)."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes the token stands for; a special token's are its name's; empty for an id beyond the vocabulary."""

    def is_special(self, token: int) -> bool: ...

    @property
    def chat_template(self) -> str | None:
        """The text of the chat template in use, or None."""

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation, by `template` or the one in use. Raises InvalidRequest("messages") with
        the template's own message."""


class TextAssembler:
    """Turns one sequence's token bytes into text that is final, and finds stop strings across token borders.

    Only the longest suffix that may still become a stop string is held back, and bytes of an unfinished character.
    The result does not depend on where token borders fall: the stop string that ends first wins, as if characters
    came one by one.
    """

    def __init__(
        self,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        *,
        include_stop: bool = False,
        step_ends: Sequence[str] = (),
    ) -> None:
        """step_ends: strings that end a step: `step_end` becomes the first of them to stand behind a non-blank
        character."""
        self._include_stop = include_stop
        self._step_ends = tuple(step_ends)
        self._content = -1  # index of the first non-blank character
        self._stop = tuple(stop)
        self._longest = max((len(s) for s in self._stop), default=0)
        self._min_tokens = min_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._floor = 0  # a stop string counts only if it ends beyond this character
        self.tokens = 0
        self.text = ""  # everything decoded so far
        self.released = 0  # characters of `text` handed out
        self.stopped: str | None = None
        self.step_end: str | None = None

    def push(self, data: bytes) -> str:
        """Adds one token's bytes and returns the text that is now final; sets `stopped` when a stop string is complete
        (the text then ends before it, or with it if `include_stop`)."""
        before = len(self.text)
        self.text += self._decoder.decode(data)
        self.tokens += 1
        if self.tokens < self._min_tokens:
            self._floor = len(self.text)
        return self._added(before)

    def write(self, text: str, floor: int = 0) -> str:
        """`push` for text that is decoded already. floor: how many characters of it no stop string ends in."""
        before = len(self.text)
        self.text += text
        self._floor = max(self._floor, before + floor)
        return self._added(before)

    def _added(self, before: int) -> str:
        if self._step_ends:
            self.step_end = self._find_step_end(before)
        if not self._stop:
            return self._release(len(self.text))
        found = self._find(max(self._floor, before))
        if found is not None:
            start, self.stopped = found
            self.text = self.text[: start + len(self.stopped) if self._include_stop else start]
            return self._release(len(self.text))
        return self._release(len(self.text) - self._held())

    def fork(self) -> "TextAssembler":
        """An independent copy: both go on with different tokens."""
        copy = TextAssembler.__new__(TextAssembler)
        copy.__dict__.update(self.__dict__)
        copy._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        copy._decoder.setstate(self._decoder.getstate())
        return copy

    @property
    def unfinished(self) -> bool:
        """Whether the bytes so far end inside a character, which is not in `text` yet."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """The rest of the text at the end of the sequence; an unfinished character is dropped."""
        return self._release(len(self.text))

    def _find(self, floor: int) -> tuple[int, str] | None:
        """(start, stop string) of the match that ends first beyond character `floor`; the longest among equals."""
        best: tuple[int, int, str] | None = None
        for stop in self._stop:
            start = self.text.find(stop, max(0, floor - len(stop) + 1))
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[1], best[2])

    def _find_step_end(self, before: int) -> str | None:
        """The step end that is complete first, ending beyond character `before` and starting behind content."""
        if self._content < 0:
            blank = len(self.text) - len(self.text.lstrip())
            if blank == len(self.text):
                return None
            self._content = blank
        best: tuple[int, int, str] | None = None
        for string in self._step_ends:
            start = self.text.find(string, max(self._content + 1, before - len(string) + 1))
            if start >= 0 and (best is None or (start + len(string), start) < best[:2]):
                best = (start + len(string), start, string)
        return None if best is None else best[2]

    def _held(self) -> int:
        """Length of the longest suffix of the unreleased text that is a proper prefix of a stop string."""
        longest = min(self._longest - 1, len(self.text) - self.released)
        for length in range(longest, 0, -1):
            suffix = self.text[-length:]
            if any(len(stop) > length and stop.startswith(suffix) for stop in self._stop):
                return length
        return 0

    def _release(self, end: int) -> str:
        piece = self.text[self.released : end]
        self.released = max(self.released, end)
        return piece
