"""Our column beside the peers': docs/peers.toml holds what others do and what to ask ourselves."""

import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from decoding_server.features.support import LEGEND, Mark, honoured, served, unknown_field

OURS = "decoding-server"


@dataclass(frozen=True, slots=True)
class Row:
    """One feature. peers: a cell for each, a mark and what qualifies it; empty: not surveyed."""

    name: str
    ours: Mark
    note: str
    peers: tuple[str, ...]
    readme: bool

    def cells(self, *, marks_only: bool) -> list[str]:
        """The row of a Markdown table."""
        if marks_only:
            return [self.name, self.ours, *(cell[:1] for cell in self.peers)]
        return [self.name, f"{self.ours} {self.note}".strip(), *self.peers]


@dataclass(frozen=True, slots=True)
class Comparison:
    """peers: (name, version) in the order of the columns. tables: rows by title."""

    read: date
    peers: tuple[tuple[str, str], ...]
    tables: dict[str, list[Row]]

    def versions(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.peers)
        return f"Read on {self.read.isoformat()}, from source, without running them: {versions}."

    def compact(self) -> str:
        """The most telling rows in one table, marks only."""
        rows = [row.cells(marks_only=True) for rows in self.tables.values() for row in rows if row.readme]
        return f"{self._table(rows)}\n\n{LEGEND}; blank: not surveyed. {self.versions()}"

    def full(self) -> str:
        parts = [f"{LEGEND}; blank: not surveyed. {self.versions()}"]
        for title, rows in self.tables.items():
            parts += [f"## {title}", self._table([row.cells(marks_only=False) for row in rows])]
        return "\n\n".join(parts)

    def _table(self, rows: list[list[str]]) -> str:
        return markdown_table(["", OURS, *(name for name, _ in self.peers)], rows)


def load(path: Path) -> Comparison:
    """Reads the peers' columns and computes ours. Raises ValueError for a row that doesn't fit the columns."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    peers = tuple((peer["name"], peer["version"]) for peer in data["peers"])
    tables = {
        table["title"]: [_row(row, table.get("endpoint", ""), len(peers)) for row in table["rows"]]
        for table in data["tables"]
    }
    return Comparison(data["read"], peers, tables)


def _row(row: dict[str, Any], endpoint: str, peers: int) -> Row:
    if len(row["peers"]) != peers:
        raise ValueError(f"{row['name']!r} has {len(row['peers'])} cells, not {peers}")
    if "routes" in row:
        ours = served(row["routes"])
    elif "unknown" in row:
        ours = unknown_field(endpoint, row["unknown"])
    else:
        ours = honoured(endpoint, row["body"])
    note = row.get("limited", "") if ours == "●" else ""
    return Row(row["name"], "◐" if note else ours, note, tuple(row["peers"]), row.get("readme", False))


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Cells may hold anything but line breaks; a bar is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
