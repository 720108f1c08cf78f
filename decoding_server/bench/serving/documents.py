"""The results of a run as Markdown tables and as plots."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from decoding_server.bench import provenance
from decoding_server.bench.figures import COLOURS, STYLE, save
from decoding_server.bench.serving.summary import LATENCIES
from decoding_server.bench.tables import Table, known

Results = dict[str, Any]
PLOT = "latency.svg"
NAMES = {
    "ttft": "first token",
    "itl": "between chunks",
    "tpot": "per further token",
    "e2e": "whole answer",
}


def section(results: Results, plot: str | None = None) -> str:
    """Heading, throughput, latency, how it was measured, plot."""
    parts = [
        f"### {results['run']['label']}",
        throughput(results).markdown(),
        latency(results).markdown(),
        facts(results),
    ]
    return "\n\n".join(parts + ([] if plot is None else [f"![Latency and throughput by load]({plot})"]))


def throughput(results: Results) -> Table:
    header = [
        *("load", "strategy", "answered", "errors", "requests/s", "tokens/s", "computed tokens/s"),
        *("GFLOP/s", "goodput/s", "within limits"),
    ]
    return Table(header, [throughput_line(entry) for entry in results["table"]])


def throughput_line(entry: Results) -> list[str]:
    return [
        entry["load"],
        entry["strategy"],
        f"{entry['answered']} of {entry['requests']}",
        ", ".join(f"{name}: {count}" for name, count in entry["errors"].items()) or "–",
        f"{entry['requests_per_second']:.2f}",
        known(entry["output_tokens_per_second"], ".1f"),
        known(entry["computed_tokens_per_second"], ".1f"),
        known(entry["flops_per_second"], ".1f", 1e9),
        "–" if entry["goodput"] is None else f"{entry['goodput']:.2f}",
        "–" if entry["met"] is None else f"{100 * entry['met']:.0f} %",
    ]


def latency(results: Results) -> Table:
    """Milliseconds: p50 / p90 / p99."""
    lines = []
    for entry in results["table"]:
        cells = [
            "–" if entry[name] is None else " / ".join(f"{1000 * value:,.0f}" for value in entry[name].values())
            for name in LATENCIES
        ]
        lines.append([entry["load"], entry["strategy"], *cells])
    return Table(["load", "strategy", *(f"{NAMES[name]}, ms" for name in LATENCIES)], lines)


def facts(results: Results) -> str:
    run = results["run"]
    slo = ", ".join(f"{NAMES[name]} ≤ {limit:g} s" for name, limit in run["slo"].items())
    lag = max(entry["client_lag"] for entry in results["table"])
    goodput = f" Goodput: answers with {slo}." if slo else ""
    unfinished = f" {run['missing']} loads are missing." if run["missing"] else ""
    means = {entry["mean_output_tokens"] for entry in results["table"]}
    length = "exactly" if run["ignore_eos"] and means == {run["max_tokens"]} else "at most"
    return (
        f"{run['model']}, {run['requests']} requests a load after {run['warm_up']} untimed ones, {run['data']}, "
        f"{length} {run['max_tokens']} tokens an answer, temperature {run['temperature']:g} unless a strategy says so, "
        f"seeds {', '.join(map(str, run['seeds']))}; every prompt begins with a number of its own, so that no prefix "
        "cache has it. Latencies are p50 / p90 / p99 of answered requests, from when one was due; between chunks: of "
        "all gaps of all answers (a chunk may hold several tokens); per further token: of the answers' means. Rates "
        "count from the first request to the end of the last answer; the client sent no request more than "
        f"{1000 * lag:.0f} ms late.{goodput}{unfinished} {provenance.told(run)}; {results['rows']} rows."
    )


def draw(results: Results, path: Path) -> None:
    with mpl.rc_context({**STYLE, "svg.hashsalt": "serve-bench"}):
        save(plot(results), path)


def plot(results: Results) -> Figure:
    """For each load: the median and p99 to the first token and to the end, and tokens per second."""
    table = results["table"]
    loads = list(dict.fromkeys(entry["load"] for entry in table))
    names = list(dict.fromkeys(entry["strategy"] for entry in table))
    figure = Figure(figsize=(10.4, 3.9), layout="constrained")
    first, whole, rates = figure.subplots(1, 3)
    for i, name in enumerate(names):
        mine = [entry for entry in table if entry["strategy"] == name]
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": "o",
            "markersize": 4,
            "linewidth": 1,
            "linestyle": "-" if i < len(COLOURS) else ":",
        }
        for axes, latency_name in ((first, "ttft"), (whole, "e2e")):
            timed = [entry for entry in mine if entry[latency_name] is not None]
            places = [loads.index(entry["load"]) for entry in timed]
            middle = [entry[latency_name]["p50"] for entry in timed]
            above = [entry[latency_name]["p99"] - entry[latency_name]["p50"] for entry in timed]
            axes.errorbar(
                places, middle, yerr=[[0.0] * len(above), above], capsize=2, elinewidth=0.7, label=name, **style
            )
        paid = [entry for entry in mine if entry["output_tokens_per_second"] is not None]
        rates.plot([loads.index(e["load"]) for e in paid], [e["output_tokens_per_second"] for e in paid], **style)
    for axes, label in ((first, "first token, s (median, p99)"), (whole, "whole answer, s (median, p99)")):
        axes.set(ylabel=label, yscale="log")
    rates.set(ylabel="tokens returned per second")
    rates.set_ylim(bottom=0)
    for axes in (first, whole, rates):
        axes.set_xticks(range(len(loads)), labels=loads, rotation=20, ha="right", fontsize=7)
        axes.margins(x=0.1)
    first.legend(fontsize=7)
    return figure
