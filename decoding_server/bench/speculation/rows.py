"""Measured cells as JSON lines: appended and flushed as they come, so that a run that was cut off goes on."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


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
        """Reads what is there; a last line cut off by a crash is dropped."""
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            complete = [line for line in lines if line.endswith("\n")]
            if len(complete) != len(lines):
                path.write_text("".join(complete))
            for line in complete:
                value = json.loads(line)
                self.rows.append(Row(Cell(**value["cell"]), value["values"], value["when"]))

    def append(self, row: Row) -> None:
        self.rows.append(row)
        with self.path.open("a") as sink:
            sink.write(json.dumps(asdict(row)) + "\n")

    def has(self, cell: Cell) -> bool:
        return any(row.cell == cell for row in self.rows)
