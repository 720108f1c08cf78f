"""The measured part of docs/strategies/scattered-forest.md: a section for every measured model, from the numbers kept
beside the page, so that runs on several models stand together."""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from decoding_server.bench.figures import COLOURS, STYLE, save
from decoding_server.bench.provenance import told
from decoding_server.bench.rows import Row
from decoding_server.bench.tables import Table
from decoding_server.features.markers import replaced

PAGE = "scattered-forest.md"
BLOCK = "code-bench"
NUMBERS = "measured"
PLOTS = "plots"
PREFIX = "code-"
ROWS = ".rows.jsonl.gz"
EMPTY = "Nothing has been measured yet."
AT = (1, 2, 3, 5)
"""Programs at which pass@any is shown, beside k."""

Results = dict[str, Any]


def write(folder: Path, label: str, results: Results, rows: Sequence[Row]) -> None:
    """Puts a run's numbers, raw rows and plot into the folder under a label, and all that are there into the page.
    Raises OSError where it is missing, MarkerError where its block is."""
    name = PREFIX + slug(f"{label}-{results['run']['dataset']}-{results['run']['tests']}")
    about = {"label": label, "plot": f"{PLOTS}/{name}.svg", "rows": f"{NUMBERS}/{name}{ROWS}"}
    results = {**results, "run": {**results["run"], **about}}
    numbers = folder / NUMBERS / f"{name}.json"
    numbers.parent.mkdir(parents=True, exist_ok=True)
    numbers.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / about["rows"]).write_bytes(gzip.compress(lines.encode(), mtime=0))
    draw(results, folder / PLOTS / f"{name}.svg")
    page = folder / PAGE
    page.write_text(rendered(folder, page.read_text(encoding="utf-8")), encoding="utf-8")


def rendered(folder: Path, page: str) -> str:
    """The page as the numbers in the folder make it."""
    return replaced(page, {BLOCK: lambda: block(measured(folder))}, foreign=True)


def measured(folder: Path) -> list[Results]:
    files = sorted((folder / NUMBERS).glob(f"{PREFIX}*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("+", "-plus")).strip("-")


def block(found: Sequence[Results]) -> str:
    return "\n\n".join(map(section, found)) if found else EMPTY


def section(results: Results) -> str:
    """Markdown: heading, table of success, table of cost, what was measured, plot."""
    run, entries = results["run"], results["table"]
    parts = [
        f"### {run['label']}, {run['dataset']}, {run['tests']} tests",
        success(entries, run["k"]).markdown(),
        cost(entries).markdown(),
        facts(run, entries),
    ]
    if run.get("plot"):
        parts.append(f"![pass@any by programs and by generated tokens]({run['plot']})")
    if run.get("rows"):
        parts.append(f"[Raw rows]({run['rows']}), with every program.")
    return "\n\n".join(parts)


def success(entries: Sequence[Results], k: int) -> Table:
    columns = [j for j in AT if j < k] + [k]
    header = ["", "pass@1", "95 %", "difference (95 %)", *(f"any of {j}" for j in columns), "precision", "recall"]
    lines = []
    for entry in entries:
        low, high = entry["pass_1_interval"]
        difference, told = entry["difference"], entry["submitted"] or {}
        lines.append(
            [
                entry["strategy"],
                f"{100 * entry['pass_1']:.1f} %",
                f"{100 * low:.0f} to {100 * high:.0f}",
                "" if difference is None else "{:+.1f} ({:+.0f} to {:+.0f})".format(*(100 * one for one in difference)),
                *(f"{100 * entry['pass_any'][j - 1]:.1f}" for j in columns),
                *("" if told.get(name) is None else f"{100 * told[name]:.0f} %" for name in ("precision", "recall")),
            ]
        )
    return Table(header, lines)


def cost(entries: Sequence[Results]) -> Table:
    tokens = list(entries[0]["pass_any_tokens"])
    header = [
        *("", "programs", "generated", "computed", "from cache", "GFLOP", "s"),
        *("TF-IDF distance", "edit distance"),
        *(f"by {int(one):,}" for one in tokens),
    ]
    lines = []
    for entry in entries:
        apart = entry["diversity"]
        lines.append(
            [
                entry["strategy"],
                f"{entry['programs']:.1f}",
                *(f"{entry[name]:,.0f}" for name in ("output_tokens", "target_tokens", "cached_tokens")),
                f"{entry['flops'] / 1e9:,.0f}",
                f"{entry['seconds']:.1f}",
                *("" if apart is None else f"{apart[name]:.2f}" for name in ("tfidf", "levenshtein")),
                *(f"{100 * entry['pass_any_tokens'][one]:.1f}" for one in tokens),
            ]
        )
    return Table(header, lines)


def facts(run: Results, entries: Sequence[Results]) -> str:
    base = entries[0]["strategy"]
    shown = {
        "given": "the examples in the prompt"
        + (f" and the first {run['visible']} of the data set's asserts" if run["visible"] else "")
        + f", where there are none up to {run['n_tests']} that the model wrote",
        "generated": f"up to {run['n_tests']} that the model wrote",
    }[run["tests"]]
    unfinished = f" {run['missing']} cells are missing." if run["missing"] else ""
    errors = sum(entry["errors"] for entry in entries)
    too_long = f" {errors} did not fit the context and count as failed." if errors else ""
    seeds = ", ".join(map(str, run["seeds"]))
    # With several seeds, a run that was cut off has some tasks with fewer of them.
    pairs = f" ({entries[0]['rows']} pairs of task and seed)" if len(run["seeds"]) > 1 else ""
    return (
        f"{run['model']}, {run['tasks']} of {run['of']} tasks{pairs} that every strategy was measured on, "
        f"seeds {seeds}, k = {run['k']}, at most {run['max_tokens']} tokens a program, {run['concurrency']} searches "
        f"at once. Visible tests: {shown}. pass@1: the submitted program passes the hidden tests (Wilson interval); "
        f"difference to {base} in points (paired bootstrap over tasks); any of j: one of the first j evaluated "
        "programs is right, in per cent; by N: one that was run before N tokens were generated; precision and recall: "
        "of “passes all visible tests” for “is right”, submitted programs. Tokens, FLOP and seconds are means per "
        "task; the searches shared the machine, so "
        "seconds are not those of one alone. Distances between the programs of a task, 0 to 1."
        f"{unfinished}{too_long} {told(run)}; sandbox {run['sandbox']}."
    )


def draw(results: Results, path: Path) -> None:
    with mpl.rc_context({**STYLE, "svg.hashsalt": "code-bench"}):
        save(plot(results), path)


def plot(results: Results) -> Figure:
    """pass@any by programs evaluated, and by tokens generated."""
    entries, k = results["table"], results["run"]["k"]
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    by_programs, by_tokens = figure.subplots(1, 2, sharey=True)
    last = max((entry["tokens_curve"][-1][0] for entry in entries if entry["tokens_curve"]), default=1)
    for i, entry in enumerate(entries):
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": "-" if i < len(COLOURS) else "--"}
        shares = [100 * share for share in entry["pass_any"]]
        by_programs.plot(range(1, k + 1), shares, marker="o", markersize=3, label=entry["strategy"], **style)
        curve = [*entry["tokens_curve"], [last, entry["pass_any"][-1]]]
        x, y = [point[0] for point in curve], [100 * point[1] for point in curve]
        by_tokens.plot(x, y, drawstyle="steps-post", **style)
    by_programs.set(xlabel="programs evaluated", ylabel="solved by any of them, %")
    by_tokens.set(xlabel="tokens generated", xscale="log")
    by_programs.legend(fontsize=8)
    return figure
