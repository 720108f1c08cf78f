"""What a report shows of a run: its tables and plots, where its numbers come from, and its raw rows."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from decoding_server.bench.code import documents as code_documents
from decoding_server.bench.quality import documents as quality_documents
from decoding_server.bench.reporting.blocks import Block, Grid, Heading, OnPageOnly, Paragraph, Picture
from decoding_server.bench.reporting.folder import ROWS, RUNS, Run
from decoding_server.bench.rows import Row
from decoding_server.bench.serving import documents as serving_documents
from decoding_server.bench.tables import Table

SETTINGS = (
    *("dataset", "dataset_sha256", "grader", "math_verify", "tasks", "of", "subset_seed", "prompt", "unit", "budgets"),
    *("answer_cost", "data", "loads", "requests", "warm_up", "ignore_eos", "slo", "tests", "visible", "n_tests", "k"),
    *("max_tokens", "temperature", "stop", "seeds", "concurrency", "timeout", "sandbox", "engine", "extended"),
    *("missing",),
)


def of_run(run: Run, name: str) -> list[Block]:
    """name: of the files of its plots. Headings are below the run's own."""
    blocks: list[Block] = [Heading(run.title)]
    if not run.numbers["table"]:
        blocks.append(Paragraph("Nothing has been measured whole yet: no task with every strategy, no load."))
    else:
        shown_by = {"quality": quality, "serve": serve, "code": code}
        blocks += shown_by[run.kind](run, name)
    return [*blocks, *provenance(run), OnPageOnly([Heading("Raw rows", 3), *raw(run)])]


def quality(run: Run, name: str) -> list[Block]:
    results = run.results
    blocks: list[Block] = [Heading("Accuracy and cost", 3), Grid(quality_documents.accuracy(results))]
    if results["optimal"]:
        blocks += [Heading("The best strategy for each budget", 3), Grid(quality_documents.best(results))]
    alt = "Left: error against cost per task, with the frontier. Right: accuracy by budget, with 95 % intervals."
    return [
        *blocks,
        Picture(quality_documents.plot(results), f"{name}-frontier", alt),
        Grid(pairs(results["pairs"]), "Every two strategies under one budget"),
        Paragraph(quality_documents.facts(results)),
    ]


def pairs(found: Sequence[Row]) -> Table:
    lines = [
        [
            f"{one['first']} – {one['second']}",
            quality_documents.amount(one["budget"]),
            *("{:+.1f}|{:+.1f} to {:+.1f}".format(*(100 * value for value in one["difference"])).split("|")),
        ]
        for one in found
    ]
    return Table(["difference in points", "budget", "mean", "95 %"], lines)


def serve(run: Run, name: str) -> list[Block]:
    results = run.results
    alt = "Time to the first token, time to the end, and tokens per second, by load and strategy."
    return [
        Heading("Throughput, goodput, errors", 3),
        Grid(serving_documents.throughput(results)),
        Heading("Latency", 3),
        Grid(serving_documents.latency(results)),
        Picture(serving_documents.plot(results), f"{name}-latency", alt),
        Paragraph(serving_documents.facts(results)),
    ]


def code(run: Run, name: str) -> list[Block]:
    results = run.results
    alt = "Tasks solved by any of the programs, by programs evaluated and by tokens generated."
    return [
        Heading("Programs that pass the hidden tests", 3),
        Grid(code_documents.success(results["table"], results["run"]["k"])),
        Heading("Cost", 3),
        Grid(code_documents.cost(results["table"])),
        Picture(code_documents.plot(results), f"{name}-pass-any", alt),
        Paragraph(code_documents.facts(results["run"], results["table"])),
    ]


def provenance(run: Run) -> list[Block]:
    """Everything that the numbers depend on. Of a server that was asked, only what it says itself is known."""
    facts = run.facts
    machine = facts["machine"]
    instructions = ", ".join(machine["instruction_sets"])
    asked = run.kind == "serve" or "server_version" in facts
    whose = " of the benchmark" if asked else ""
    lines = [
        ["model", str(facts["model"])],
        *([["version of the server", str(facts.get("server_version") or "unknown")]] if asked else []),
        [f"commit{whose}", ", ".join(facts.get("commits") or [facts["commit"]])],
        ["date", str(facts["date"])],
        [f"versions{whose}", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())],
        [f"processor{whose}", f"{machine['processor']}, {machine['cores']} cores ({instructions})"],
        [f"memory{whose}", f"{machine['memory_gib']} GiB"],
        [f"system{whose}", f"{machine['system']}, Python {machine['python']}"],
        ["load average at the start", str(machine["load_average_at_start"])],
        ["raw rows", f"{len(run.rows)} of {ROWS}, SHA-256 {run.sha256}; measured in {runs_of(run)} of {RUNS}"],
        *([name.replace("_", " "), shown(facts[name])] for name in SETTINGS if name in facts),
        *([f"strategy {name}", shown(body)] for name, body in facts["strategies"].items()),
    ]
    return [Heading("Where the numbers come from", 3), Grid(Table(["", ""], lines))]


def runs_of(run: Run) -> str:
    keys = sorted({str(row["run"]) for row in run.rows if "run" in row})
    return f"the runs {', '.join(keys)}" if keys else f"the run {run.facts['key']}"


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def raw(run: Run) -> list[Block]:
    """A folded table for each cell of the tables above: the key of each row, and what it says."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in run.rows:
        groups[group_of(run.kind, row)].append(row)
    header, line = {"quality": QUALITY, "serve": SERVE, "code": CODE}[run.kind]
    return [
        Grid(Table(header, [line(row) for row in rows]), f"{name}: {len(rows)} rows") for name, rows in groups.items()
    ]


def group_of(kind: str, row: Row) -> str:
    if kind == "quality":
        return f"{row['strategy']}, budget {quality_documents.amount(row['budget'])}"
    return f"{row['strategy']}, {row['load']}" if kind == "serve" else str(row["strategy"])


def text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


View = tuple[Sequence[str], Callable[[Row], list[str]]]
"""Header and line of the raw rows of a kind."""
QUALITY: View = (
    ("key", "correct", "answer", "finish", "forward tokens", "FLOP", "s", "same as"),
    lambda row: [
        row["key"],
        "yes" if row["correct"] else "no",
        text(row["answer"])[:80],
        text(row.get("stop_reason") or row.get("finish_reason") or row.get("error")),
        *(text(row[name]) for name in ("forward_tokens", "flops", "seconds")),
        text(row.get("same_as")),
    ],
)
SERVE: View = (
    ("key", "first token, s", "per further token, s", "whole, s", "tokens", "error"),
    lambda row: [row["key"], *(text(row[name]) for name in ("ttft", "tpot", "e2e", "output_tokens", "error"))],
)
CODE: View = (
    ("key", "passed", "outcome", "programs", "generated", "FLOP", "s"),
    lambda row: [
        row["key"],
        "yes" if row["passed"] else "no",
        row["outcome"],
        str(len(row["programs"])),
        *(text(row[name]) for name in ("output_tokens", "flops", "seconds")),
    ],
)
