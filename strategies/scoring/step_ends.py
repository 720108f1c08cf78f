"""Where the steps of a whole answer end: the prefixes that a search would have stopped at."""

from collections.abc import Sequence

from strategies.text import TextAssembler, Tokenizer


def step_ends(tokens: Sequence[int], tokenizer: Tokenizer, separators: Sequence[str]) -> list[int]:
    """Lengths of the prefixes that end a step, ascending; the last is the whole answer's.

    By the rule of `StopConditions.step_ends`, which starts afresh behind every step: the token that completes a
    separator belongs to the step, with whatever it adds behind it.
    """
    ends: list[int] = []
    step = TextAssembler(step_ends=separators)
    for i, token in enumerate(tokens):
        # Special tokens have no text in an answer.
        step.push(b"" if tokenizer.is_special(token) else tokenizer.token_bytes(token))
        if step.step_end is not None:
            ends.append(i + 1)
            step = TextAssembler(step_ends=separators)
    if tokens and (not ends or ends[-1] < len(tokens)):
        ends.append(len(tokens))
    return ends
