"""Which part of a prompt is the text that generation continues, and whether the prompt is a conversation."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from strategies.text import Tokenizer

ROLES = frozenset({b"assistant", b"model"})
COMPLETION_MARKS = ("fim", "file", "repo", "endoftext", "jupyter")


class PromptText(NamedTuple):
    """ids: the tokens of the text that generation goes on with. conversation: whether it answers a chat message."""

    ids: Sequence[int]
    conversation: bool


def continued_text(prompt: Sequence[int], tokenizer: Tokenizer) -> PromptText:
    """The text after the last special token or, in a fill-in-the-middle prompt, the text before the gap."""
    names = {token: name.lower() for name, token in tokenizer.special_token_ids.items()}
    marks = [(place, names[token]) for place, token in enumerate(prompt) if token in names]
    if marks and marks[0][0] == 0 and prompt[0] == tokenizer.bos_token_id:
        if len(marks) == 1:
            return PromptText(prompt[1:], False)
        marks = marks[1:]
    if not marks:
        return PromptText(prompt, False)
    fim = [(place, name) for place, name in marks if "fim" in name]
    if fim:
        return PromptText(_before_gap(prompt, fim), False)
    conversation = any(not any(mark in name for mark in COMPLETION_MARKS) for _, name in marks)
    return PromptText(prompt[marks[-1][0] + 1 :], conversation)


def _before_gap(prompt: Sequence[int], marks: Sequence[tuple[int, str]]) -> Sequence[int]:
    """Prefix-suffix-middle order has the prefix first; suffix-prefix-middle has it last."""
    for (place, name), (following, _) in pairwise(marks):
        if ("prefix" in name or "begin" in name) and following > place + 1:
            return [*prompt[place + 1 : following], *prompt[marks[-1][0] + 1 :]]
    return prompt[marks[-1][0] + 1 :]
