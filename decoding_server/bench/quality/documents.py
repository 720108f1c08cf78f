"""The results of a run as Markdown tables and as plots."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from decoding_server.bench.figures import COLOURS, STYLE, save
from decoding_server.bench.provenance import told
from decoding_server.bench.tables import Table, known

Results = dict[str, Any]
PLOT = "frontier.svg"
UNITS = {
    "forward_tokens": "forward tokens",
    "output_tokens": "generated tokens",
    "flops": "FLOP",
    "seconds": "s",
}
MARKERS = "osD^vP*X<>"


def section(results: Results, plot: str | None = None) -> str:
    """Heading, accuracy and cost, best strategy by budget, how it was measured, plot."""
    run = results["run"]
    parts = [
        f"### {run['label']}, {run['dataset']}",
        accuracy(results).markdown(),
        *([] if not results["optimal"] else [best(results).markdown()]),
        facts(results),
    ]
    return "\n\n".join(parts + ([] if plot is None else [f"![Error against cost, and accuracy by budget]({plot})"]))


def accuracy(results: Results) -> Table:
    base = results["table"][0]["strategy"]
    header = [
        *("strategy", "budget", "accuracy", "95 %", f"over {base} (95 %)"),
        *("forward tokens", "generated", "GFLOP", "s", "ended by budget", "width"),
    ]
    lines = []
    for entry in results["table"]:
        low, high = entry["interval"]
        difference = entry["difference"]
        lines.append(
            [
                entry["strategy"],
                amount(entry["budget"]),
                f"{100 * entry['accuracy']:.1f} %",
                f"{100 * low:.0f} to {100 * high:.0f}",
                "" if difference is None else "{:+.1f} ({:+.0f} to {:+.0f})".format(*(100 * one for one in difference)),
                known(entry["forward_tokens"], ",.0f"),
                known(entry["output_tokens"], ",.0f"),
                known(entry["flops"], ",.0f", 1e9),
                known(entry["seconds"], ".1f"),
                f"{100 * entry['budget_ended']:.0f} %",
                ", ".join(f"{name} {value:.1f}".removesuffix(".0") for name, value in entry["width"].items()),
            ]
        )
    return Table(header, lines)


def best(results: Results) -> Table:
    """The compute-optimal strategy for each budget."""
    cost = results["frontier_cost"]
    header = ["budget", "least error", "accuracy", "measured under", "GFLOP" if cost == "flops" else UNITS[cost]]
    lines = [
        [
            amount(entry["budget"]),
            entry["strategy"],
            f"{100 * entry['accuracy']:.1f} %",
            amount(entry["measured_at"]),
            known(entry[cost], ",.0f", 1e9 if cost == "flops" else 1),
            ", ".join(entry["not_told_apart"]),
        ]
        for entry in results["optimal"]
    ]
    return Table([*header, "not told apart"], lines)


def facts(results: Results) -> str:
    run = results["run"]
    base = results["table"][0]["strategy"]
    unfinished = f" {run['missing']} cells are missing." if run["missing"] else ""
    errors = sum(entry["errors"] for entry in results["table"])
    too_long = f" {errors} did not fit the context and count as wrong." if errors else ""
    verified = {True: " with math-verify", False: " without math-verify", None: ""}[run.get("math_verify")]
    grader = run["grader"] + verified
    # With several seeds, a run that was cut off has some tasks with fewer of them.
    answers = results["table"][0]["rows"]
    pairs = f" ({answers} pairs of task and seed)" if len(run["seeds"]) > 1 else ""
    timeouts = sum(entry["grading_timeouts"] for entry in results["table"])
    unjudged = f" {timeouts} took too long to compare and count as wrong." if timeouts else ""
    known_cost = "" if run["extended"] else " The server reports neither FLOP nor computed tokens: they are unknown."
    return (
        f"{run['model']}, {results['compared_tasks']} tasks of {run['dataset']}{pairs} that every strategy answered "
        f"under every budget, graded as {grader}; seeds {', '.join(map(str, run['seeds']))}; at most "
        f"{run['max_tokens']} tokens an answer, temperature {run['temperature']:g} where a strategy says none, "
        f"{run['concurrency']} answers at once. Budgets in {UNITS[run['unit']]}, the prompt included where it is "
        f"computed; every answer pays for its whole prompt. Accuracy: Wilson interval; differences to {base} in points "
        "under the same budget, paired bootstrap over tasks; costs are means per task; seconds are of answers that "
        "shared the machine. “Not told apart”: under this budget, the paired interval to the best holds zero."
        f"{known_cost}{unfinished}{too_long}{unjudged} {told(run)}; "
        + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        + f"; {results['rows']} rows."
    )


def amount(budget: float | None) -> str:
    return "none" if budget is None else f"{budget:,.0f}" if budget < 1e7 else f"{budget:.2g}"


def draw(results: Results, path: Path) -> None:
    with mpl.rc_context({**STYLE, "svg.hashsalt": "quality-bench"}):
        save(plot(results), path)


def plot(results: Results) -> Figure:
    """Left: error against cost per task, a line for each strategy through its budgets, and the frontier. Right:
    accuracy by budget with its intervals."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    by_cost, by_budget = figure.subplots(1, 2)
    table: Sequence[Results] = results["table"]
    cost = results["frontier_cost"]
    names = list(dict.fromkeys(entry["strategy"] for entry in table))
    budgets = list(dict.fromkeys(entry["budget"] for entry in table))
    costs = [] if cost is None else [entry[cost] for entry in table if entry[cost] is not None]
    unit = 1e9 if cost == "flops" else 1.0
    for i, name in enumerate(names):
        mine = [entry for entry in table if entry["strategy"] == name]
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": "-" if i < len(COLOURS) else "--",
            "markersize": 4,
            "linewidth": 1,
        }
        if cost is not None:
            known_mine = [entry for entry in mine if entry[cost] is not None]
            errors = [100 * (1 - entry["accuracy"]) for entry in known_mine]
            by_cost.plot([entry[cost] / unit for entry in known_mine], errors, label=name, **style)
        places = [budgets.index(entry["budget"]) + (i - (len(names) - 1) / 2) * 0.6 / len(names) for entry in mine]
        shares = [100 * entry["accuracy"] for entry in mine]
        bars = [
            [share - 100 * entry["interval"][0] for share, entry in zip(shares, mine, strict=True)],
            [100 * entry["interval"][1] - share for share, entry in zip(shares, mine, strict=True)],
        ]
        by_budget.errorbar(places, shares, yerr=bars, capsize=2, elinewidth=0.7, label=name, **style)
    if cost is not None:
        points = results["frontier"]
        x, y = [point[cost] / unit for point in points], [100 * point["error"] for point in points]
        x = [*x, max(costs) / unit]
        by_cost.plot(x, [*y, y[-1]], color="#999999", drawstyle="steps-post", linewidth=3, alpha=0.5, zorder=0)
    if costs and min(costs) > 0:
        by_cost.set_xscale("log")
        ticks = round_numbers(min(costs) / unit, max(costs) / unit)
        by_cost.set_xticks(ticks, labels=[f"{tick:,g}" for tick in ticks])
        by_cost.xaxis.set_minor_locator(NullLocator())
    by_cost.set_ylabel("error, %")
    by_cost.set_xlabel("GFLOP per task" if cost == "flops" else f"{UNITS.get(cost or '', 'cost')} per task")
    by_budget.set_xticks(range(len(budgets)), labels=[amount(budget) for budget in budgets])
    by_budget.set(xlabel=f"budget, {UNITS[results['run']['unit']]}", ylabel="accuracy, %")
    handles, labels = by_budget.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(names), 7), fontsize=7)
    return figure


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from just below `low` to just above `high` (both above 0)."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = [digit * 10.0**power for power in range(first - 1, last + 1) for digit in (1, 2, 5)]
    below = max(tick for tick in every if tick <= low)
    above = min(tick for tick in every if tick >= high)
    return [tick for tick in every if below <= tick <= above]
