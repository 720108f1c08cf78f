"""The measured part of docs/strategies/search.md: its table, the numbers behind it, and the plot."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from decoding_server.bench.figures import COLOURS, STYLE, save
from decoding_server.features.markers import replaced
from strategies.search.compute_frontier import FrontierPoint, pareto_frontier

PAGE = "search.md"
NUMBERS = "measured/search.json"
PLOT = "plots/search.svg"
COLUMNS = ("", "accuracy", "95 %", "over greedy (95 %)", "generated", "computed", "from cache", "GFLOP", "s")
ORACLE = "any of"


def write(folder: Path, results: dict[str, Any]) -> None:
    """Puts the results into the page. Raises OSError where it is missing, MarkerError where its block is."""
    (folder / NUMBERS).parent.mkdir(parents=True, exist_ok=True)
    (folder / NUMBERS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    with mpl.rc_context(STYLE):
        save(plot(results["table"]), folder / PLOT)
    page = folder / PAGE
    text = replaced(page.read_text(encoding="utf-8"), {"search-study": lambda: table(results)})
    page.write_text(text, encoding="utf-8")


def table(results: dict[str, Any]) -> str:
    """Markdown: one row per contender, by rising FLOPs, and what was measured."""
    run = results["run"]
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " + "| ---: " * (len(COLUMNS) - 1) + "|"]
    for entry in results["table"]:
        difference = entry["difference"]
        cells = [
            entry["contender"],
            f"{100 * entry['accuracy']:.1f} %",
            f"{100 * entry['low']:.0f} to {100 * entry['high']:.0f}",
            "" if difference is None else "{:+.1f} ({:+.0f} to {:+.0f})".format(*(100 * value for value in difference)),
            f"{entry['output_tokens']:,.0f}",
            f"{entry['target_tokens']:,.0f}",
            f"{entry['cached_tokens']:,.0f}",
            f"{entry['gflops']:,.0f}",
            "" if entry["seconds"] is None else f"{entry['seconds']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    facts = (
        f"{run['model']}, {results['table'][0]['questions']} questions, at most {run['max_tokens']} tokens an answer, "
        f"{run['concurrency']} questions at once; value function: {run['value']}. Tokens, FLOP and seconds "
        f"are means per question. Commit {run['commit']}, {run['date']}; {run['machine']['processor']}, "
        f"{run['machine']['cores']} cores."
    )
    return "\n".join([*lines, "", facts])


def plot(entries: Sequence[dict[str, Any]]) -> Figure:
    """Error against FLOPs per question, with the frontier of what was measured."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    shown = [entry for entry in entries if not entry["contender"].startswith(ORACLE)]
    points = [FrontierPoint(entry["gflops"], 1 - entry["accuracy"], entry["contender"]) for entry in shown]
    for entry, point in zip(shown, points, strict=True):
        bars = [[entry["high"] - entry["accuracy"]], [entry["accuracy"] - entry["low"]]]
        axes.errorbar(point.flops, point.error, yerr=bars, fmt="o", color=COLOURS[0], alpha=0.7, capsize=2, lw=0.6)
        axes.annotate(point.label, (point.flops, point.error), textcoords="offset points", xytext=(4, 4), fontsize=7)
    frontier = pareto_frontier(points)
    axes.plot([p.flops for p in frontier], [p.error for p in frontier], color=COLOURS[1], drawstyle="steps-post")
    axes.set(xscale="log", xlabel="GFLOP per question", ylabel="error")
    return figure
