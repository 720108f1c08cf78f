"""A run as it lies on disk: its raw rows, what made them, and the numbers that follow from them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoding_server.bench.code import summary as code_summary
from decoding_server.bench.quality import summary as quality_summary
from decoding_server.bench.rows import Row, RowFile
from decoding_server.bench.serving import summary as serving_summary

ROWS, RUNS, RESULTS = "rows.jsonl", "runs.jsonl", "results.json"
KINDS = ("quality", "serve", "code")
Record = dict[str, Any]


class ReportError(Exception):
    """The folder can't be reported on; one line that says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """kind: of `KINDS`. facts: settings, commit, versions, machine. rows: those of these settings. sha256: of the file
    of rows, all of it. numbers: computed here, from the rows."""

    folder: Path
    kind: str
    facts: Mapping[str, Any]
    rows: list[Row]
    sha256: str
    numbers: Mapping[str, Any]

    @property
    def title(self) -> str:
        return str(self.facts.get("label") or self.facts["model"])

    @property
    def results(self) -> Record:
        """As results.json has them."""
        return {"run": dict(self.facts), **self.numbers}


def load(folder: Path) -> Run:
    """Raises ReportError."""
    try:
        facts = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["run"]
        every = RowFile(folder / ROWS).rows
        data = (folder / ROWS).read_bytes()
        kind = str(facts.get("kind", "code"))
        if kind not in KINDS:
            raise ReportError(f"{folder}: a run of kind {kind!r}, which this version does not know")
        rows = of_these_settings(kind, facts, every)
        if not rows:
            raise ReportError(f"{folder}: no rows")
        return Run(folder, kind, facts, rows, hashlib.sha256(data).hexdigest(), numbers(kind, facts, rows))
    except OSError as error:
        raise ReportError(f"{folder}: no finished run of bench: {error.strerror}: {error.filename}") from None
    except KeyError as error:
        again = "the same bench command writes them again, and measures nothing twice"
        raise ReportError(f"{folder}: its results lack {error}; {again}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ReportError(f"{folder}: not the files of a run of bench: {error!r}") from None


def of_these_settings(kind: str, facts: Mapping[str, Any], rows: list[Row]) -> list[Row]:
    """A folder may hold rows of other settings too; the end of a key says of which."""
    digests = facts["digests"]
    found = [row for row in rows if row["key"].rpartition("|")[2] == digests.get(row["strategy"])]
    found = [row for row in found if row["seed"] in facts["seeds"]]
    if kind in ("quality", "code"):
        names = set(facts["task_names"])
        found = [row for row in found if row["task"] in names]
    if kind == "quality":
        return [row for row in found if row["budget"] in facts["budgets"]]
    return [row for row in found if row["load"] in facts["loads"]] if kind == "serve" else found


def numbers(kind: str, facts: Mapping[str, Any], rows: list[Row]) -> Record:
    names = list(facts["strategies"])
    if kind == "quality":
        return quality_summary.results(rows, names)
    if kind == "serve":
        return serving_summary.results(rows, facts["slo"])
    shared = code_summary.compared(rows, names)
    return {"rows": len(shared), "table": code_summary.table(shared, names, facts["k"])}
