"""A scripted model that answers the questions of searches for programs, each kind with its own replies in turn."""

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.scripted import ByteTokenizer, scripted_runtime

TOKENIZER = ByteTokenizer()
END, SYSTEM, USER, ASSISTANT = range(256, 260)
PREFIX = "Direction 1:"
KINDS = {
    "You check": "tests",
    "You try": "inputs",
    "plan repairs": "directions",
    "list of lessons": "lessons",
    "You review a failing program.": "reflection",
}


def code(body: str, name: str = "add") -> str:
    """A reply with a program of one function of two arguments."""
    return f"Sure.\n```python\ndef {name}(a, b):\n    {body}\n```\n"


class ScriptedCoder:
    """replies: by kind of question, in the order in which prompts are first seen; the last one is repeated. A prompt
    that is seen again gets the same reply. asked: (kind, prompt) in that order."""

    def __init__(self, **replies: Sequence[str]) -> None:
        self.replies = replies
        self.asked: list[tuple[str, str]] = []
        self._known: dict[tuple[int, ...], bytes] = {}

    def distribution(self, context: Sequence[int]) -> Tensor:
        turn = end = len(context) - context[::-1].index(ASSISTANT)
        # What the reply has to begin with belongs to the prompt; a reply is then played from behind as many characters.
        prefix = list(PREFIX.encode())
        end += len(prefix) * (context[end : end + len(prefix)] == prefix)
        prompt = tuple(context[:end])
        if prompt not in self._known:
            self._known[prompt] = self._reply(TOKENIZER.decode(prompt, skip_special_tokens=False)).encode()
        reply, place = self._known[prompt], len(context) - turn
        logits = torch.full((TOKENIZER.vocab_size,), -30.0)
        logits[reply[place] if place < len(reply) else END] = 30.0
        return logits

    def _reply(self, prompt: str) -> str:
        kind = next((kind for words, kind in KINDS.items() if words in prompt), None)
        if kind is None:
            changed = "Carry out this change" in prompt or "Write the whole program again" in prompt
            kind = "code" if changed else "seed"
        before = sum(one == kind for one, _ in self.asked)
        self.asked.append((kind, prompt))
        replies = self.replies[kind]
        return replies[min(before, len(replies) - 1)]

    def prompts(self, kind: str) -> list[str]:
        return [prompt for one, prompt in self.asked if one == kind]

    @contextmanager
    def serving(self, **options: Any) -> Any:
        sizes = {"max_model_len": 8192, "num_slots": 65536, "max_num_batched_tokens": 4096}
        runtime = scripted_runtime(self.distribution, TOKENIZER, **{**sizes, **options})
        try:
            yield runtime
        finally:
            runtime.close()
