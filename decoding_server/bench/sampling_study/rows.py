"""Raw rows on disk: JSON lines, appended wave by wave, so that a run that was cut off goes on where it stopped."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One measured cell; `key` names it."""


class RowFile:
    """Rows by key, in the order in which they were written."""

    def __init__(self, path: Path) -> None:
        """Reads the rows that are there. A last line cut off by a crash is dropped from the file."""
        self.path = path
        self._rows: dict[str, Row] = {}
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            complete = [line for line in lines if line.endswith("\n")]
            if len(complete) != len(lines):
                path.write_text("".join(complete), encoding="utf-8")
            self._rows = {row["key"]: row for row in map(json.loads, complete)}

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def has(self, keys: Iterable[str]) -> bool:
        """Whether all of these cells have been measured."""
        return all(key in self._rows for key in keys)

    def append(self, rows: Sequence[Row]) -> None:
        """Adds those that are not there yet, in one write."""
        new = [row for row in rows if row["key"] not in self._rows]
        with self.path.open("a", encoding="utf-8") as sink:
            # Escaped, since generated text may hold line separators that `splitlines` would cut at.
            sink.write("".join(json.dumps(row) + "\n" for row in new))
        self._rows |= {row["key"]: row for row in new}
