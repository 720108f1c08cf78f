"""From sampled tokens to what a client sees of them: text, log-probabilities whose text is out, and where it ends."""

from collections import deque

from strategies.runtime import Generation, TokenLogprob
from strategies.text import TextAssembler, Tokenizer


class AnswerText:
    """The visible side of one answer. Tokens go in one by one; text and log-probabilities come out when final.

    ended: the answer, or its step, is complete. stop_reason: the stop string or id that ended it, None for an end of
    sequence. stop_token: the last token ended it and has no text. step_end: only a step ended.
    """

    __slots__ = (
        "_assembler",
        "_include_stop",
        "_min_tokens",
        "_skips_special",
        "_tokenizer",
        "_unreleased",
        "_visible",
        "ended",
        "step_end",
        "stop_ids",
        "stop_reason",
        "stop_token",
    )

    def __init__(self, generation: Generation, tokenizer: Tokenizer, eos_token_ids: frozenset[int]) -> None:
        """For the tokens that follow `generation.answer`."""
        stopping = generation.stopping
        self._tokenizer = tokenizer
        self._include_stop = stopping.include_stop
        self._skips_special = generation.skip_special_tokens
        self._visible = generation.visible_special_tokens
        self._min_tokens = max(0, stopping.min_tokens - len(generation.answer))
        self._assembler = TextAssembler(
            stopping.stop, self._min_tokens, include_stop=stopping.include_stop, step_ends=stopping.step_ends
        )
        self._unreleased: deque[tuple[TokenLogprob, int, int]] = deque()
        specials = tokenizer.special_token_ids
        self.stop_ids: dict[int, str | int | None] = {} if stopping.ignore_eos else dict.fromkeys(eos_token_ids)
        self.stop_ids |= {token: token for token in stopping.stop_token_ids}
        self.stop_ids |= {specials[text]: text for text in stopping.stop if text in specials}
        self.ended, self.stop_token, self.step_end = False, False, False
        self.stop_reason: str | int | None = None

    @property
    def text(self) -> str:
        """Everything decoded so far, a stop string cut off."""
        return self._assembler.text

    def fork(self) -> "AnswerText":
        """An independent copy: both go on with different tokens."""
        copy = AnswerText.__new__(AnswerText)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        copy._assembler = self._assembler.fork()
        copy._unreleased = self._unreleased.copy()
        return copy

    def push(self, token: int, logprob: TokenLogprob | None) -> tuple[str, list[TokenLogprob]]:
        """Adds a token. Returns the text that is now final, and the entries whose text is out by now."""
        assembler = self._assembler
        stopping = token in self.stop_ids and assembler.tokens + 1 > self._min_tokens
        if stopping:
            # An end of sequence is no stop that was asked for, so it is never shown.
            visible = self._include_stop and self.stop_ids[token] is not None
        else:
            visible = not (self._skips_special and token not in self._visible and self._tokenizer.is_special(token))
        start = len(assembler.text)
        text = assembler.push(self._tokenizer.token_bytes(token) if visible else b"")
        if logprob is not None:
            self._unreleased.append((logprob, start, len(assembler.text) + assembler.unfinished))
        if stopping:
            self.ended, self.stop_reason, self.stop_token = True, self.stop_ids[token], not visible
        elif assembler.stopped is not None:
            self.ended, self.stop_reason = True, assembler.stopped
        elif assembler.step_end is not None:
            self.ended, self.step_end = True, True
        return text, self._release()

    def write(self, text: str, floor: int = 0) -> None:
        """Adds text that no tokens stand for, so only stop strings end it; none that ends in its first `floor`
        characters does."""
        self._assembler.write(text, floor)
        if self._assembler.stopped is not None:
            self.ended, self.stop_reason = True, self._assembler.stopped

    def finish(self) -> tuple[str, list[TokenLogprob]]:
        """The rest: text held back, and all entries but those that lie wholly in the stop string."""
        text = self._assembler.finish()
        entries, end = [], len(self._assembler.text)
        while self._unreleased:
            entry, start, _ = self._unreleased.popleft()
            if self._assembler.stopped is not None and start >= end:
                break
            entries.append(entry)
        self._unreleased.clear()
        return text, entries

    def _release(self) -> list[TokenLogprob]:
        entries = []
        while self._unreleased and self._unreleased[0][2] <= self._assembler.released:
            entries.append(self._unreleased.popleft()[0])
        return entries
