"""Records of a data set: a file of JSON lines, or a name on the Hugging Face hub."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decoding_server.bench.rows import read_records

HUB = "hf:"
Record = dict[str, Any]


class DatasetError(Exception):
    """The data set can't be had. The message is one line that says what to do."""


def read_dataset(name: str, *, config: str | None = None, split: str = "test") -> list[Record]:
    """name: a path of .jsonl or .jsonl.gz, or `hf:NAME` with its config and split. Raises DatasetError."""
    if name.startswith(HUB):
        records = from_hub(name.removeprefix(HUB), config, split)
    else:
        try:
            records = read_records(Path(name))
        except OSError as error:
            raise DatasetError(f"{name}: {error.strerror or error}; a name on the hub is given as {HUB}NAME") from None
        except ValueError as error:
            raise DatasetError(f"{name}: no JSON lines: {error}") from None
    if not records or not all(isinstance(record, dict) for record in records):
        raise DatasetError(f"{name}: no records")
    return records


def fingerprint(records: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of the records, the same from any file that holds them. Of values that JSON does not have, such as
    images, only the type counts: no question, answer or test is one."""
    text = json.dumps(records, sort_keys=True, default=lambda value: type(value).__name__)
    return hashlib.sha256(text.encode()).hexdigest()


def title(name: str) -> str:
    """A short name, without folders."""
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    path = Path(name)
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    # `test.jsonl` says little, the folder that it lies in says which test.
    return f"{path.resolve().parent.name}/{stem}" if stem in ("test", "train", "validation", "dev") else stem


def from_hub(name: str, config: str | None, split: str) -> list[Record]:
    """Raises DatasetError: without the package, without the hub, without such a data set."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise DatasetError(f"{HUB}{name}: needs the package `datasets`: pip install datasets") from None
    try:
        loaded = datasets.load_dataset(name, config, split=split)
        return [dict(record) for record in loaded]
    except Exception as error:  # the package raises its own, its file system's and its HTTP client's
        line = " ".join(str(error).split())[:300]
        raise DatasetError(f"{HUB}{name} can't be loaded: {type(error).__name__}: {line}") from None
