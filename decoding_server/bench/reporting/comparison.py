"""Two runs of one kind beside each other: what both measured, and how they differ."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from decoding_server.bench.intervals import paired_difference
from decoding_server.bench.quality.documents import amount
from decoding_server.bench.quality.summary import cost_of, per_task
from decoding_server.bench.reporting.blocks import Block, Grid, Heading, Paragraph
from decoding_server.bench.reporting.folder import ReportError, Run
from decoding_server.bench.rows import Row
from decoding_server.bench.tables import Table, known

Entry = Mapping[str, Any]
Cell = tuple[Any, ...]
MUST_AGREE = {
    "quality": ("dataset", "dataset_sha256", "grader", "unit"),
    "serve": (),
    "code": ("dataset", "dataset_sha256", "tests", "k"),
}
"""Settings under which a difference of the numbers would say nothing."""
LATER = ("dataset_sha256",)
"""Facts that older runs lack; there, the other ones alone tell."""
OTHERWISE = (
    *("engine", "math_verify"),
    *("prompt", "max_tokens", "temperature", "data", "requests", "ignore_eos", "concurrency", "visible", "stop"),
)


def compared(first: Run, second: Run) -> list[Block]:
    """The second against the first. Raises ReportError for runs that can't be compared."""
    if first.kind != second.kind:
        raise ReportError(f"a run of bench {first.kind} and one of bench {second.kind} have nothing in common")
    for name in MUST_AGREE[first.kind]:
        one, other = first.facts.get(name), second.facts.get(name)
        if one != other and not (name in LATER and None in (one, other)):
            raise ReportError(f"the runs differ in {name}: {one!r} and {other!r}")
    table = {"quality": quality, "serve": serve, "code": code}[first.kind](first, second)
    if not table.lines:
        raise ReportError("the runs share no strategy under one budget or load")
    changed = [name for name in OTHERWISE if first.facts.get(name) != second.facts.get(name)]
    note = f"First: {first.title}, {first.facts['date']}. Second: {second.title}, {second.facts['date']}."
    if changed:
        note += f" They were asked otherwise: {', '.join(changed)} differ."
    return [Heading("The second run against the first"), Paragraph(note), Grid(table)]


def quality(first: Run, second: Run) -> Table:
    """Over the tasks that both have answered: accuracies, the paired interval of their difference, ratios of costs."""
    one, other = by_cell(first), by_cell(second)
    lines = [
        [strategy, amount(budget), *line]
        for (strategy, budget), rows in one.items()
        if (line := paired(rows, other.get((strategy, budget), ()), "correct", ("forward_tokens", "flops", "seconds")))
    ]
    header = ["strategy", "budget", "tasks", "first", "second", "difference (95 %)"]
    return Table([*header, "forward tokens ratio", "FLOP ratio", "seconds ratio"], lines)


def by_cell(run: Run) -> dict[Cell, list[Row]]:
    """Of a quality run: its rows by strategy and budget."""
    cells: dict[Cell, list[Row]] = defaultdict(list)
    for row in run.rows:
        cells[row["strategy"], row["budget"]].append(row)
    return cells


def paired(first: Sequence[Row], second: Sequence[Row], right: str, costs: Sequence[str]) -> list[str]:
    """Two runs of one cell, over their common tasks only; [] where there are none. right: the field that says whether a
    row is."""
    common = {row["task"] for row in first} & {row["task"] for row in second}
    if not common:
        return []
    rows = [[row for row in run if row["task"] in common] for run in (first, second)]
    scores = [per_task(found, right) for found in rows]
    difference = paired_difference(scores[1], scores[0])
    assert difference is not None, "there are common tasks"
    return [
        str(len(common)),
        *(f"{100 * statistics.fmean(found.values()):.1f} %" for found in scores),
        "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in difference)),
        *(ratio(*(cost_of(found, cost) for found in rows)) for cost in costs),
    ]


def entry_of(run: Run, cell: Cell, second: str) -> Entry:
    """The table's line of a strategy; {} where the table has none."""
    return next((e for e in run.numbers["table"] if (e["strategy"], e[second]) == cell), {})


def serve(first: Run, second: Run) -> Table:
    names = ("output_tokens_per_second", "requests_per_second", "goodput")
    lines = []
    for entry in first.numbers["table"]:
        other = entry_of(second, (entry["strategy"], entry["load"]), "load")
        if not other:
            continue
        cells = [pair(entry[name], other[name], ".2f") for name in names]
        for name in ("ttft", "tpot", "e2e"):
            for percent in ("p50", "p99"):
                one, two = (e[name][percent] if e[name] else None for e in (entry, other))
                cells.append(pair(one, two, ",.0f", 1e-3))
        lines.append([entry["strategy"], entry["load"], *cells])
    latencies = [f"{name} {p}, ms" for name in ("first token", "per token", "whole") for p in ("p50", "p99")]
    return Table(["strategy", "load", "tokens/s", "requests/s", "goodput/s", *latencies], lines)


def code(first: Run, second: Run) -> Table:
    """As `quality`; without budgets."""
    costs = ("target_tokens", "flops", "seconds")
    lines = []
    for entry in first.numbers["table"]:
        name = entry["strategy"]
        one, other = ([row for row in run.rows if row["strategy"] == name] for run in (first, second))
        if line := paired(one, other, "passed", costs):
            lines.append([name, *line])
    header = ["strategy", "tasks", "first", "second", "difference (95 %)"]
    return Table([*header, "computed tokens ratio", "FLOP ratio", "seconds ratio"], lines)


def pair(first: float | None, second: float | None, how: str, unit: float = 1) -> str:
    """Both, and the second over the first."""
    if first is None and second is None:
        return "–"
    return f"{known(first, how, unit)} → {known(second, how, unit)} ({ratio(first, second)})"


def ratio(first: float | None, second: float | None) -> str:
    return "–" if first is None or second is None or first == 0 else f"{second / first:.2f}x"
