"""The prompts: contexts whose distributions are looked at, loop-prone programs, and HumanEval's tasks from a file."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from decoding_server.bench.rows import read_records

Item = TypeVar("Item")

FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True, slots=True)
class Context:
    """A text to be continued. kind: prose, code, maths or chat; number: its place within the kind. A chat one is what a
    user says."""

    kind: str
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Program:
    """The beginning of a program. language: as the grammar penalty names it."""

    language: str
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task of HumanEval. test: defines `check(candidate)`."""

    name: str
    prompt: str
    entry_point: str
    test: str


def contexts(limit: int | None = None) -> list[Context]:
    """At most `limit` of them, all kinds by turns."""
    kinds = _read("contexts.toml")
    columns = [[Context(kind, number, text) for number, text in enumerate(texts)] for kind, texts in kinds.items()]
    return [one for one in chain.from_iterable(zip_longest(*columns)) if one is not None][:limit]


def programs(limit: int | None = None) -> list[Program]:
    """At most `limit` of them, spread over the languages."""
    found = [Program(one["language"], i, one["text"]) for i, one in enumerate(_read("loops.toml")["prompt"])]
    return spread(found, limit)


def tasks(path: Path, limit: int | None = None) -> list[Task]:
    """HumanEval's tasks from its file (`.jsonl`, or `.jsonl.gz`), at most `limit`, spread over it.

    Raises OSError, and ValueError for a file that is something else.
    """
    try:
        found = [Task(one["task_id"], one["prompt"], one["entry_point"], one["test"]) for one in read_records(path)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is not HumanEval's file: {error} is missing") from error
    return spread(found, limit)


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` of the items, at equal distances, in order."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))
