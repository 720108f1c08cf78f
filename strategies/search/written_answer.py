"""An answer that a search has put together: its text is what was tested, so the client gets that, not a decoding of its
tokens, which would drop special tokens and change what the tokenizer normalises."""

from strategies.answer_text import AnswerText
from strategies.runtime import StopConditions
from strategies.text import Tokenizer


def write(
    answer: AnswerText, text: str, tokenizer: Tokenizer, stopping: StopConditions, *, max_tokens: int
) -> tuple[list[int], bool]:
    """Adds a text to an empty answer, up to a client's stop string or `max_tokens`: what is left of the client's own.
    Returns the tokens of an encoding of what is there then, a stop string included, which count and are no more; and
    whether max_tokens cut nothing off.

    No stop string ends in the first `min_tokens` - 1 tokens.
    """
    shown = beginning(text, tokenizer, max_tokens)
    answer.write(shown, len(beginning(shown, tokenizer, stopping.min_tokens - 1)) if stopping.stop else 0)
    if answer.ended and len(answer.text) < len(shown):
        end = len(answer.text) + (0 if stopping.include_stop else len(str(answer.stop_reason)))
        return encoded(shown[:end], tokenizer), True
    return encoded(shown, tokenizer), len(shown) == len(text)


def beginning(text: str, tokenizer: Tokenizer, most: int) -> str:
    """The longest beginning of a text that has at most so many tokens."""
    if most <= 0:
        return ""
    if len(encoded(text, tokenizer)) <= most:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if len(encoded(text[:middle], tokenizer)) <= most:
            fits = middle
        else:
            too_long = middle
    return text[:fits]


def encoded(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)
