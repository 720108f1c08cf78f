"""Log-probabilities in OpenAI's two shapes: four parallel arrays (completions), and entries with real bytes (chat)."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from decoding_server.protocol.chat import TokenLogprobEntry, TopLogprob
from decoding_server.protocol.completions import CompletionLogprobs, PromptLogprob
from decoding_server.running import Prompt
from strategies.runtime import TokenLogprob
from strategies.text import Tokenizer

FLOOR = -9999.0
"""JSON has no infinity: a token that can't occur gets this."""


def floored(logprob: float) -> float:
    return max(logprob, FLOOR)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""The token as a string; one that is no whole character is spelt `bytes:\xf0\x9f`, as OpenAI does, so that
    different tokens stay different."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


@dataclass(frozen=True, slots=True)
class TokenSpelling:
    """How tokens are written in log-probabilities: as text, or (`return_tokens_as_token_ids`) as `token_id:ID`, which
    keeps tokens apart that have the same text."""

    tokenizer: Tokenizer
    as_ids: bool = False

    def __call__(self, token: int) -> str:
        return f"token_id:{token}" if self.as_ids else token_text(self.tokenizer, token)


class CompletionLogprobsWriter:
    """Writes the arrays of one choice, chunk by chunk.

    `text_offset` counts characters from the start of prompt plus completion, echoed or not; a token that begins inside
    a character has the offset of that character's end. Special tokens of the answer have no text, hence no width.
    """

    def __init__(self, spelling: TokenSpelling, prompt: Prompt, alternatives: int) -> None:
        self.spelling = spelling
        self.tokenizer = spelling.tokenizer
        self.prompt = prompt
        self.alternatives = alternatives
        self.offset = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def prompt_arrays(self, entries: Sequence[TokenLogprob | None]) -> CompletionLogprobs:
        """The prompt's tokens: the first, which nothing precedes, has null for its value."""
        arrays = _empty()
        for position, (token, entry) in enumerate(zip(self.prompt.tokens, entries, strict=True)):
            text = token_text(self.tokenizer, token)
            self._append(arrays, self.spelling(token), entry)
            # A beginning-of-sequence token that the tokenizer put before the text is not part of it.
            added = position == 0 and token == self.tokenizer.bos_token_id and not self.prompt.text.startswith(text)
            self._advance(b"" if added else self.tokenizer.token_bytes(token))
        return arrays

    def answer_arrays(self, entries: Sequence[TokenLogprob]) -> CompletionLogprobs:
        arrays = _empty()
        self._begin_answer()
        for entry in entries:
            self._append(arrays, self.spelling(entry.token), entry)
            self._advance(b"" if self.tokenizer.is_special(entry.token) else self.tokenizer.token_bytes(entry.token))
        return arrays

    def _begin_answer(self) -> None:
        if self.offset < len(self.prompt.text):
            self.offset = len(self.prompt.text)
            self.decoder.reset()

    def _advance(self, raw: bytes) -> None:
        self.offset += len(self.decoder.decode(raw))

    def _append(self, arrays: CompletionLogprobs, text: str, entry: TokenLogprob | None) -> None:
        arrays["tokens"].append(text)
        arrays["text_offset"].append(self.offset)
        if entry is None:
            arrays["token_logprobs"].append(None)
            arrays["top_logprobs"].append(None)
            return
        arrays["token_logprobs"].append(floored(entry.logprob))
        best: dict[str, float] = {}
        for token, logprob in entry.top[
            : self.alternatives
        ]:  # best first: of two tokens with one text the better stays
            best.setdefault(self.spelling(token), floored(logprob))
        if self.alternatives:
            best.setdefault(text, floored(entry.logprob))
        arrays["top_logprobs"].append(best)


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """The prompt's arrays followed by the answer's."""
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": first["top_logprobs"] + second["top_logprobs"],
        "text_offset": first["text_offset"] + second["text_offset"],
    }


def _empty() -> CompletionLogprobs:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def chat_entries(
    spelling: TokenSpelling, entries: Sequence[TokenLogprob], alternatives: int
) -> list[TokenLogprobEntry]:
    return [
        {
            **_chat_token(spelling, entry.token, entry.logprob),
            "top_logprobs": [_chat_token(spelling, token, value) for token, value in entry.top[:alternatives]],
        }
        for entry in entries
    ]


def _chat_token(spelling: TokenSpelling, token: int, logprob: float) -> TopLogprob:
    """A special token has no bytes, as it has no text in the answer."""
    tokenizer = spelling.tokenizer
    raw = b"" if tokenizer.is_special(token) else tokenizer.token_bytes(token)
    return {"token": spelling(token), "logprob": floored(logprob), "bytes": list(raw)}


def prompt_entries(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob | None] | None
) -> list[dict[str, PromptLogprob] | None]:
    """vLLM's `prompt_logprobs`: for every prompt token but the first, candidates by id, itself among them."""
    return [None if entry is None else _candidates(tokenizer, entry) for entry in entries or ()]


def _candidates(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, PromptLogprob]:
    ranked = [(token, logprob, rank) for rank, (token, logprob) in enumerate(entry.top, 1)]
    if all(token != entry.token for token, _, _ in ranked):
        ranked.append((entry.token, entry.logprob, entry.rank))
    return {
        str(token): {"logprob": floored(logprob), "rank": rank, "decoded_token": token_text(tokenizer, token)}
        for token, logprob, rank in ranked
    }
