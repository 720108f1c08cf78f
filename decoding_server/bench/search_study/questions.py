"""Questions with a known answer: JSON lines of {"question", "answer"}, GSM8K's own form included."""

import json
from dataclasses import dataclass
from pathlib import Path

from decoding_server.bench.subset import chosen

PROMPT = Path(__file__).with_name("prompt.txt").read_text(encoding="utf-8").rstrip()
"""Three worked examples, one step per line: small models rarely follow a description of that format."""
PLACE = "{question}"
STOP = "\nProblem:"
"""Where a model that goes on with a problem of its own is cut off."""


@dataclass(frozen=True, slots=True)
class Question:
    """number: its line in the file, from 0. gold: the right answer, as written."""

    number: int
    text: str
    gold: str


def load(path: Path, count: int | None) -> list[Question]:
    """A random subset, the same for every run. Raises OSError, and ValueError for a line without its fields."""
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        if not isinstance(record.get("question"), str) or not isinstance(record.get("answer"), str):
            raise ValueError(f"{path}, line {number + 1}: needs a 'question' and an 'answer'")
        questions.append(Question(number, record["question"], record["answer"].rpartition("####")[2].strip()))
    return [questions[i] for i in chosen(len(questions), count)]
