"""From rows to medians, paired ratios, a JSON result and a Markdown table."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from decoding_server.bench.peers import OURS
from decoding_server.bench.session import Row
from decoding_server.bench.tables import Table
from decoding_server.bench.workloads import MEMORY, START, Workload

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"

RUNTIME = "vllm-runtime"

TARGETS: dict[tuple[str, str, str], float] = {
    ("decode-37-128-c1", OURS, "transformers-fp32"): 3.0,
    ("decode-37-128-c16", OURS, "transformers-fp32"): 1.8,
    ("decode-37-128-c1", OURS, "vllm"): 1.7,
    ("decode-37-128-c16", OURS, "vllm"): 1.3,
    ("decode-37-128-c32", OURS, "vllm"): 1.2,
    ("decode-37-128-c1", OURS, "llama-cpp"): 0.45,
    ("decode-37-128-c16", OURS, "llama-cpp"): 0.85,
    ("shared-512-64-c16", OURS, "vllm"): 1.5,
    **{(f"decode-37-128-c{concurrency}", RUNTIME, "vllm"): 0.95 for concurrency in (1, 8, 32)},
}
"""(workload, engine, peer) -> the engine's median advantage that the project set itself for two CPU cores."""

CEILINGS: dict[str, float] = {START.name: 6.0, MEMORY.name: 1.6 * 1024}
"""Workload -> the largest value of ours that meets the project's target, in the workload's unit."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, linear between neighbours. Raises ValueError if empty."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    lower = math.floor(position)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (position - lower)


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, smallest and largest of a cell's repeats."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        return cls(statistics.median(values), min(values), max(values), len(values))


def values_by_repeat(rows: Iterable[Row], engine: str, workload: str) -> dict[int, float]:
    """repeat -> value of the cells that were measured (the last row of a cell counts)."""
    return {
        row.repeat: row.value
        for row in rows
        if row.engine == engine and row.workload == workload and row.value is not None
    }


def advantages(rows: Sequence[Row], workload: Workload, ours: str, peer: str) -> list[float]:
    """One ratio per repeat that both engines measured; above 1 is better for us: ours / peer for rates, peer / ours for
    times and sizes. Ours and the peer's cells of a repeat ran one after the other, so slow drift cancels.

    Start-up and memory have no such pairs: there it is the ratio of the medians.
    """
    mine, theirs = values_by_repeat(rows, ours, workload.name), values_by_repeat(rows, peer, workload.name)
    if workload.kind in ("start", "memory") and mine and theirs:
        mine = {0: statistics.median(mine.values())}
        theirs = {0: statistics.median(theirs.values())}
    ratios = [mine[repeat] / theirs[repeat] for repeat in sorted(mine.keys() & theirs.keys())]
    return ratios if workload.higher_is_better else [1 / ratio for ratio in ratios]


def costs(rows: Sequence[Row], workload: Workload, engine: str) -> list[float]:
    """The share of its throughput that the workload's strategy takes from an engine, one for each repeat in which both
    were measured, with and without; below 0 where it was faster with it."""
    with_it, without = (values_by_repeat(rows, engine, name) for name in (workload.name, workload.plain))
    return [1 - with_it[repeat] / without[repeat] for repeat in sorted(with_it.keys() & without.keys())]


def summaries(rows: Sequence[Row], workloads: Sequence[Workload], engines: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per workload: the engines' summaries, the first engine's advantages over the others, what a strategy
    costs, and the errors.

    The targets are ours, so they appear where the first engine is our server, on either runtime.
    """
    ours = engines[0]
    result = []
    for workload in (*workloads, START, MEMORY):
        entry: dict[str, Any] = {"workload": workload.name, "title": workload.title, "unit": workload.unit}
        entry["engines"], entry["advantages"], entry["errors"] = {}, {}, {}
        for engine in engines:
            values = list(values_by_repeat(rows, engine, workload.name).values())
            if workload is MEMORY and values:
                values = [max(values)]
            if values:
                summary = Summary.of(values)
                entry["engines"][engine] = asdict(summary)
            failures = [
                row.error for row in rows if (row.engine, row.workload) == (engine, workload.name) and row.error
            ]
            if failures and not values:
                entry["errors"][engine] = failures[-1]
        for peer in engines[1:]:
            ratios = advantages(rows, workload, ours, peer)
            if ratios:
                summary = Summary.of(ratios)
                target = TARGETS.get((workload.name, ours, peer))
                entry["advantages"][peer] = {
                    "median": summary.median,
                    "low": summary.low,
                    "high": summary.high,
                    "target": target,
                    "met": None if target is None else summary.median >= target,
                }
        if workload.strategy:
            shares = {engine: costs(rows, workload, engine) for engine in engines}
            entry["costs"] = {engine: asdict(Summary.of(found)) for engine, found in shares.items() if found}
        ceiling = CEILINGS.get(workload.name)
        if ceiling is not None and ours == OURS and OURS in entry["engines"]:
            entry["ceiling"] = {"value": ceiling, "met": entry["engines"][ours]["median"] <= ceiling}
        if entry["engines"] or entry["errors"]:
            result.append(entry)
    return result


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def _spread(summary: dict[str, Any]) -> str:
    text = number(summary["median"])
    if summary.get("repeats", 2) > 1 and summary["low"] != summary["high"]:
        text += f" ({number(summary['low'])}–{number(summary['high'])})"
    return text


def markdown(result: dict[str, Any]) -> str:
    """The tables for the documentation: what was measured, what we gain over each peer, and on what."""
    engines: list[str] = result["engines"]
    values, ratios, shares = [], [], []
    for entry in result["summaries"]:
        cells = [
            _spread(entry["engines"][engine])
            if engine in entry["engines"]
            else ("failed" if engine in entry["errors"] else "–")
            for engine in engines
        ]
        if "ceiling" in entry:
            verdict = "met" if entry["ceiling"]["met"] else "missed"
            cells[0] += f"; target ≤ {number(entry['ceiling']['value'])}: {verdict}"
        values.append([f"{entry['title']}, {entry['unit']}", *cells])
        if entry["advantages"]:
            line = [entry["title"]]
            for peer in engines[1:]:
                advantage = entry["advantages"].get(peer)
                if advantage is None:
                    line.append("–")
                    continue
                text = _spread(advantage)
                if advantage["target"] is not None:
                    text += f"; target ≥ {number(advantage['target'])}: {'met' if advantage['met'] else 'missed'}"
                line.append(text)
            ratios.append(line)
        for engine, cost in entry.get("costs", {}).items():
            median, low, high = (f"{100 * cost[key]:.1f}" for key in ("median", "low", "high"))
            shares.append([f"{entry['title']}, {engine}", f"{median} ({low}–{high})"])
    machine = result["machine"]
    parts = [
        f"Measured: median (lowest–highest) of {result['repeats']} repeats.",
        Table(["workload", *engines], values).markdown(),
    ]
    if ratios:
        parts += [
            f"Advantage of {engines[0]}: median (lowest–highest) of the ratios within each repeat. Above 1 is better "
            f"for {engines[0]}, for rates and for times alike.",
            Table(["workload", *(f"over {peer}" for peer in engines[1:])], ratios).markdown(),
        ]
    if shares:
        parts += [
            "What a strategy costs: percent of the tokens a second of the same server without it, median "
            "(lowest–highest) of the pairs within each repeat.",
            Table(["workload", "cost, %"], shares).markdown(),
        ]
    parts += [
        f"Machine: {machine['processor']}, {machine['cores']} cores ({', '.join(machine['instruction_sets'])}), "
        f"{machine['memory_gib']} GiB, Python {machine['python']}. Model: {result['model']}. "
        f"Commit: {result['commit']}. Date: {result['date']}. "
        f"Load average at the start: {machine['load_average_at_start']}.",
        "\n".join(
            f"- {engine}: {result['descriptions'].get(engine, '')}; "
            + ", ".join(f"{package} {version}" for package, version in result["versions"].get(engine, {}).items())
            for engine in engines
        ),
    ]
    return "\n\n".join(parts)


def write_between_markers(path: Path, text: str) -> None:
    """Puts `text` between the markers of a Markdown file and leaves the rest; makes the file, or adds the markers at
    its end, where they are missing."""
    block = f"{BEGIN}\n{text}\n{END}"
    old = path.read_text() if path.exists() else "# Benchmarks\n"
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    new = before + block + after if begin and end else old.rstrip("\n") + "\n\n" + block + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(new)
