"""The prompts: HumanEval and GSM8K from files that the caller has, the copy-heavy set from here."""

import gzip
import json
from pathlib import Path

from decoding_server.bench.speculation.copying import COPYING
from strategies.text import Tokenizer

CODE = "Complete this Python function. Answer with the whole function.\n\n```python\n{}```"
QUESTION = "{} Explain your steps, then give the answer."


def read_jsonl(path: Path, field: str) -> list[str]:
    """One field of every line of a .jsonl or .jsonl.gz file. Raises ValueError with the line that lacks it."""
    data = path.read_bytes()
    found = []
    for number, line in enumerate((gzip.decompress(data) if path.suffix == ".gz" else data).splitlines(), 1):
        if line.strip():
            value = json.loads(line).get(field)
            if not isinstance(value, str):
                raise ValueError(f"{path.name}, line {number}: no text field {field!r}")
            found.append(value)
    return found


def datasets(humaneval: Path | None, gsm8k: Path | None) -> dict[str, list[str]]:
    """User messages by name of the set; a set without a file is left out."""
    found = {}
    if humaneval is not None:
        found["humaneval"] = [CODE.format(prompt) for prompt in read_jsonl(humaneval, "prompt")]
    if gsm8k is not None:
        found["gsm8k"] = [QUESTION.format(question) for question in read_jsonl(gsm8k, "question")]
    found["copying"] = list(COPYING)
    return found


def spread(items: list[str], count: int) -> list[str]:
    """`count` of the items, evenly over the list; all if there are fewer."""
    if count >= len(items):
        return items
    return [items[i * len(items) // count] for i in range(count)]


def encoded(tokenizer: Tokenizer, messages: list[str]) -> list[list[int]]:
    """Token ids of one-message chats; of the bare texts for a model without a chat template."""
    prompts = []
    for message in messages:
        text = tokenizer.render_chat([{"role": "user", "content": message}]) if tokenizer.chat_template else message
        prompts.append(tokenizer.encode(text, add_special_tokens=not tokenizer.chat_template))
    return prompts
