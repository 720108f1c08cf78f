"""A scripted model that answers "What is A + B?": greedily wrong, by a vote right. Every character is a token.

It begins with one of seven words. The likeliest leads to a wrong answer, the six others to the right one.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.scripted import ByteTokenizer, scripted_runtime
from models.torch_runtime.runtime import TorchRuntime

TOKENIZER = ByteTokenizer()
END, ASSISTANT = 256, 259
WRONG, RIGHT = "hm", ("so", "it", "ok", "ah", "we", "no")
CHANCE = {WRONG: 0.16, **dict.fromkeys(RIGHT, 0.14)}
"""A vote of 16 samples at temperature 1 is wrong once in 2,000 questions; the seeds are fixed."""


def distribution(context: Sequence[int]) -> Tensor:
    text = TOKENIZER.decode(list(context), skip_special_tokens=False)
    prompt, _, reply = text.rpartition("<|assistant|>")
    logits = torch.full((TOKENIZER.vocab_size,), -60.0)
    if not reply:
        for word, chance in CHANCE.items():
            logits[ord(word[0])] = torch.log(torch.tensor(chance))
        return logits
    word = next(word for word in CHANCE if word[0] == reply[0])
    a, b = map(int, re.findall(r"What is (\d+) \+ (\d+)", prompt)[-1])
    script = f"{word} #### {a + b + (word == WRONG)}"
    logits[ord(script[len(reply)]) if len(reply) < len(script) else END] = 0.0
    return logits


def answering_runtime(**options: Any) -> TorchRuntime:
    return scripted_runtime(distribution, TOKENIZER, **{"max_model_len": 1024, **options})


def records(count: int) -> list[dict[str, Any]]:
    """In GSM8K's form; all prompts and answers are equally long."""
    return [{"question": f"What is {i} + {i + 1}?", "answer": f"Add.\n#### {2 * i + 1}"} for i in range(10, 10 + count)]
