"""Measured cells as JSON lines: appended and flushed as they come, so that a run that was cut off goes on."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from decoding_server.bench.rows import JsonLines


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured. method: "plain", a method's name, or "theory:" and a method's name, or a peer's.

    shape: body of `decoding.speculation`, as JSON. budget: 0 for plain decoding and for peers.
    """

    dataset: str
    temperature: float
    concurrency: int
    repeat: int
    method: str
    budget: int
    shape: str


@dataclass(frozen=True, slots=True)
class Row:
    """A cell and its numbers; see `report` for their names. when: seconds since the epoch."""

    cell: Cell
    values: dict[str, Any] = field(default_factory=dict)
    when: float = 0.0


class RowFile:
    """The rows of one output folder, in the order in which they were measured."""

    def __init__(self, path: Path) -> None:
        self._file = JsonLines(path)
        self.rows = [Row(Cell(**one["cell"]), one["values"], one["when"]) for one in self._file.records]

    def append(self, row: Row) -> None:
        self.rows.append(row)
        self._file.append([asdict(row)])

    def has(self, cell: Cell) -> bool:
        return any(row.cell == cell for row in self.rows)
