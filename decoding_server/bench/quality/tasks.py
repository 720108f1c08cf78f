"""The tasks: what the model is asked, and what is right. Any JSON lines, and HumanEval's and MBPP's programs."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decoding_server.bench.code.tasks import CodeTask, code_dataset, is_code
from decoding_server.bench.dataset import DatasetError, Record, fingerprint, read_dataset, title
from decoding_server.bench.subset import SUBSET_SEED, chosen

QUESTION, CHOICES = "{question}", "{choices}"
HASH = "####"
"""GSM8K writes the final answer behind it."""
LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class Source:
    """dataset: a path, or `hf:NAME`. Fields may be `outer.inner`. prompt: text around {question} and {choices}.

    grader: a name of `graders.GRADERS`, or "auto": the hidden tests of HumanEval and MBPP, mathematics where all
    answers have the `####` of GSM8K.
    """

    dataset: str
    config: str | None = None
    split: str = "test"
    question: str = "question"
    answer: str = "answer"
    choices: str | None = None
    prompt: str = QUESTION
    grader: str = "auto"


@dataclass(frozen=True, slots=True)
class Task:
    """name: unique in its data set. prompt: the user's turn. gold: the right answer, as written; "" for programs.
    letters: of a multiple choice, all that there are."""

    name: str
    prompt: str
    gold: str
    letters: str = ""
    code: CodeTask | None = None


@dataclass(frozen=True, slots=True)
class Tasks:
    """title: of the data set. grader: resolved, never "auto". sha256: of its records."""

    title: str
    grader: str
    tasks: tuple[Task, ...]
    sha256: str

    def subset(self, count: int | None, seed: int = SUBSET_SEED) -> list[Task]:
        """In a fixed random order, so that whatever part is measured is a random one."""
        return [self.tasks[i] for i in chosen(len(self.tasks), count, seed)]


def load(source: Source) -> Tasks:
    """Raises DatasetError for what can't be read, ValueError for wrong fields."""
    records = read_dataset(source.dataset, config=source.config, split=source.split)
    name = title(source.dataset)
    if source.grader == "code" or (source.grader == "auto" and is_code(records)):
        try:
            found = code_dataset(records)
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{name}: neither HumanEval's nor MBPP's records: {error}") from None
        programs = tuple(Task(one.name, worded(source.prompt, one), "", code=one) for one in found.tasks)
        return Tasks(found.kind, "code", programs, found.sha256)
    grader = source.grader
    if grader == "auto":
        if not all(HASH in str(record.get(source.answer, "")) for record in records):
            raise ValueError(f"{name}: say with --grader how its answers are judged")
        grader = "math"
    tasks = tuple(task(source, record, f"{name}/{i}", grader) for i, record in enumerate(records))
    return Tasks(name, grader, tasks, fingerprint(records))


def worded(prompt: str, task: CodeTask) -> str:
    return prompt.replace(QUESTION, task.prompt)


def task(source: Source, record: Record, name: str, grader: str) -> Task:
    """Raises ValueError that names the record and the field."""
    question = text_of(record, source.question, name)
    options = [] if source.choices is None else listed(record, source.choices, name)
    prompt = source.prompt.replace(CHOICES, "\n".join(f"{LETTERS[i]}) {one}" for i, one in enumerate(options)))
    prompt = prompt.replace(QUESTION, question)  # last: a question may hold anything
    value = value_of(record, source.answer, name)
    if grader == "choice":
        gold = letter(value, options, name)
        return Task(name, prompt, gold, LETTERS[: len(options)] or LETTERS[:10])
    gold = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else text(value, name)
    return Task(name, prompt, gold.rpartition(HASH)[2].strip())


def value_of(record: Mapping[str, Any], path: str, name: str) -> Any:
    found: Any = record
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise ValueError(f"{name}: has no field {path!r}, but {', '.join(map(str, record))}")
        found = found[part]
    return found


def text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: an answer or question must be a text, not {value!r}"[:200])
    return value


def text_of(record: Mapping[str, Any], path: str, name: str) -> str:
    return text(value_of(record, path, name), name)


def listed(record: Mapping[str, Any], path: str, name: str) -> Sequence[str]:
    value = value_of(record, path, name)
    if not isinstance(value, Sequence) or isinstance(value, str) or not 2 <= len(value) <= len(LETTERS):
        raise ValueError(f"{name}: {path!r} must be a list of 2 to {len(LETTERS)} choices")
    return [str(one) for one in value]


def letter(value: Any, options: Sequence[str], name: str) -> str:
    """The right letter: given as such, as a place from 0, or as the text of one of the choices."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < (len(options) or len(LETTERS)):
        return LETTERS[value]
    if isinstance(value, str):
        if value in options:
            return LETTERS[options.index(value)]
        if len(value.strip()) == 1 and value.strip().upper() in LETTERS[: len(options) or len(LETTERS)]:
            return value.strip().upper()
    raise ValueError(f"{name}: {value!r} is no letter, place or text of a choice")
