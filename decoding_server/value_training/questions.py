"""Questions with known answers, from a JSONL file: {"question": ..., "answer": ...} a line, as GSM8K is published."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from strategies.scoring.answers import after_hash
from strategies.scoring.canonical import canonical


class QuestionsError(Exception):
    """The file can't be used. The message names the line."""


@dataclass(frozen=True, slots=True)
class Question:
    """qid: hash of the text. gold: the answer in canonical form."""

    qid: str
    text: str
    gold: str


def read_questions(path: Path) -> list[Question]:
    """All questions, each once. An answer with a line "#### N" means N. Raises QuestionsError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionsError(f"{path} can't be read: {error}") from error
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text, answer = entry["question"], entry["answer"]
        except (ValueError, TypeError, KeyError) as error:
            raise QuestionsError(f'{path}, line {number}: must be {{"question": ..., "answer": ...}}') from error
        gold = canonical(after_hash(answer) or answer) if isinstance(answer, str) else canonical(json.dumps(answer))
        if not isinstance(text, str) or not text.strip() or gold is None:
            raise QuestionsError(f"{path}, line {number}: the question or the answer is empty")
        qid = hashlib.sha256(text.encode()).hexdigest()[:16]
        questions.setdefault(qid, Question(qid, text, gold))
    if not questions:
        raise QuestionsError(f"{path} holds no questions")
    return list(questions.values())


def ordered(qids: list[str], seed: int) -> list[str]:
    """The ids in an order that depends on the seed and each id alone, so that more of them never reshuffles others."""
    return sorted(qids, key=lambda qid: hashlib.sha256(f"{seed}:{qid}".encode()).digest())
