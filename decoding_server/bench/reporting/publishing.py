"""A run put into a page of the documentation, with its raw rows beside it, so that a reader can make the report again.

The page `docs/benchmarks/gsm8k.md` has a block `report`, which gets tables, facts and plot. The folder
`docs/benchmarks/gsm8k/` gets rows, runs and results as `bench report` reads them, the plot, and `report.html`.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from decoding_server.bench.code import documents as code_documents
from decoding_server.bench.quality import documents as quality_documents
from decoding_server.bench.reporting import views
from decoding_server.bench.reporting.folder import RESULTS, ROWS, RUNS, ReportError, Run, load
from decoding_server.bench.reporting.page import page as html_page
from decoding_server.bench.rows import JsonLines
from decoding_server.bench.serving import documents as serving_documents
from decoding_server.features.markers import MarkerError, with_block

BLOCK = "report"
PLOT = "plot.svg"
REPORT = "report.html"
LEFT_OUT = ("text", "search")
"""Of a row: long, and no number comes from it."""
DOCUMENTS: dict[str, ModuleType] = {
    "quality": quality_documents,
    "serve": serving_documents,
    "code": code_documents,
}


def publish(source: Path, page: Path, title: str) -> None:
    """source: the `--output` of a run. title: of the report. Raises OSError, and ReportError for a run without a
    number, or a page without the block."""
    run = load(source)
    if not run.numbers["table"]:
        raise ReportError(f"{source}: nothing has been measured whole yet")
    text = page.read_text(encoding="utf-8")
    folder = folder_of(page)
    try:
        with_block(text, BLOCK, "")
        folder.mkdir(exist_ok=True)
        copy(run, folder)
        published = load(folder)
        (folder / REPORT).write_text(html_page(title, views.of_run(published, "run")), encoding="utf-8")
        DOCUMENTS[run.kind].draw(published.results, folder / PLOT)
        page.write_text(rendered(page, text), encoding="utf-8")
    except MarkerError as error:
        raise ReportError(f"{page}: {error}") from None


def folder_of(page: Path) -> Path:
    return page.with_suffix("")


def copy(run: Run, folder: Path) -> None:
    """The run's rows without their texts, and what `load` needs beside them."""
    whole = run.kind == "code"  # the distances between programs come from their texts
    rows = [{key: value for key, value in row.items() if whole or key not in LEFT_OUT} for row in run.rows]
    used = {row["run"] for row in run.rows if "run" in row} or {run.facts["key"]}
    runs = [one for one in JsonLines(run.folder / RUNS).records if one["key"] in used]
    for name, records in ((ROWS, rows), (RUNS, runs)):
        (folder / name).unlink(missing_ok=True)
        JsonLines(folder / name).append(records)
    (folder / RESULTS).write_text(json.dumps(run.results, indent=1) + "\n", encoding="utf-8")


def rendered(page: Path, text: str) -> str:
    """The page's text as the rows beside it make it. Raises MarkerError, ReportError."""
    folder = folder_of(page)
    return with_block(text, BLOCK, section(load(folder), folder.name))


def section(run: Run, folder: str) -> str:
    facts: dict[str, Any] = {**run.facts, "label": run.title, "plot": f"{folder}/{PLOT}"}
    results = {**run.results, "run": facts}
    documents = DOCUMENTS[run.kind]
    text = documents.section(results) if run.kind == "code" else documents.section(results, facts["plot"])
    sources = f"[The whole report]({folder}/{REPORT}), its [raw rows]({folder}/{ROWS}), [settings]({folder}/{RUNS})."
    return f"{text}\n\n{sources}"
