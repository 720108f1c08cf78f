"""Raw rows on disk: JSON lines, appended as they come, so that a run that was cut off goes on where it stopped."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One measured cell; `key` names it."""


class JsonLines:
    """A file that only grows. records: what was in it, in order."""

    def __init__(self, path: Path) -> None:
        """Reads what is there. A last line cut off by a crash is dropped from the file."""
        self.path = path
        self.records: list[Row] = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            complete = [line for line in lines if line.endswith("\n")]
            if len(complete) != len(lines):
                path.write_text("".join(complete), encoding="utf-8")
            self.records = [json.loads(line) for line in complete]

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """All of them in one write."""
        with self.path.open("a", encoding="utf-8") as sink:
            # Escaped, since generated text may hold line separators that `splitlines` would cut at.
            sink.write("".join(json.dumps(record) + "\n" for record in records))


class RowFile:
    """Rows by key, in the order in which they were written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = JsonLines(path)
        self._rows: dict[str, Row] = {row["key"]: row for row in self._file.records}

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def has(self, keys: Iterable[str]) -> bool:
        """Whether all of these cells have been measured."""
        return all(key in self._rows for key in keys)

    def append(self, rows: Sequence[Row]) -> None:
        """Adds those that are not there yet, in one write."""
        new = [row for row in rows if row["key"] not in self._rows]
        self._file.append(new)
        self._rows |= {row["key"]: row for row in new}

    def replace(self, rows: Sequence[Row]) -> None:
        """Adds all of them, in one write; the last row of a key is what counts, here and when the file is read."""
        self._file.append(rows)
        self._rows |= {row["key"]: row for row in rows}


def read_records(path: Path) -> list[Any]:
    """The records of a data set's `.jsonl` or `.jsonl.gz`. Raises OSError, and ValueError for what is no JSON."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.split("\n") if line.strip()]
