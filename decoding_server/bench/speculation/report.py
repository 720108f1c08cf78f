"""From rows to all tables of one target, and its plot."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from decoding_server.bench.speculation.grid import PLAIN, shape_text
from decoding_server.bench.speculation.peers import MODES
from decoding_server.bench.speculation.rows import Cell, Row

THEORY = "theory:"
Group = tuple[str, float, int]


def ratio_to_plain(rows: Sequence[Row], place: int) -> float | None:
    """Tokens per second of a row over the mean of the nearest plain ones before and after it, of the same data set,
    temperature, concurrency and repeat; None without any."""
    cell = rows[place].cell

    def plain(places: Iterable[int]) -> list[float]:
        for other in places:
            if rows[other].cell.method == PLAIN and _block(rows[other].cell) == _block(cell):
                return [float(rows[other].values["tokens_per_second"])]
        return []

    near = plain(range(place - 1, -1, -1)) + plain(range(place + 1, len(rows)))
    return float(rows[place].values["tokens_per_second"]) / statistics.mean(near) if near else None


def _block(cell: Cell) -> tuple[str, float, int, int]:
    return cell.dataset, cell.temperature, cell.concurrency, cell.repeat


def summaries(rows: Sequence[Row]) -> dict[tuple[Group, str, int], dict[str, Any]]:
    """By data set, temperature and concurrency, method and budget: the shape whose median ratio is the best, with
    medians over the repeats of its numbers."""
    by_shape: dict[tuple[Group, str, int], dict[str, list[tuple[float, Row]]]] = {}
    for place, row in enumerate(rows):
        cell = row.cell
        if cell.method == PLAIN or cell.method.startswith(THEORY) or cell.method in MODES:
            continue
        ratio = ratio_to_plain(rows, place)
        if ratio is not None:
            key = (cell.dataset, cell.temperature, cell.concurrency), cell.method, cell.budget
            by_shape.setdefault(key, {}).setdefault(cell.shape, []).append((ratio, row))
    found = {}
    for key, shapes in by_shape.items():
        best = max(shapes, key=lambda shape: statistics.median(ratio for ratio, _ in shapes[shape]))
        measured = shapes[best]
        found[key] = {
            "shape": best,
            "ratio": statistics.median(ratio for ratio, _ in measured),
            "ratios": sorted(ratio for ratio, _ in measured),
            **{
                name: statistics.median(row.values[name] for _, row in measured)
                for name in ("block_efficiency", "mbsu", "tokens_per_second")
            },
            "levels": measured[-1][1].values["acceptance_by_level"],
            "picked": measured[-1][1].values.get("picked", {}),
        }
    return found


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def markdown(rows: Sequence[Row], setting: dict[str, Any], plot: str | None) -> str:
    """All tables. setting: of the run, for the line below them. plot: file name of the figure."""
    found = summaries(rows)
    groups = sorted({key[0] for key in found})
    methods = list(dict.fromkeys(key[1] for key in found))
    parts = [
        "Each cell: block efficiency (tokens per forward of the target), MBSU, and tokens per second over plain "
        "decoding in the same run, of the method's best shape of at most B draft tokens. Our shapes; B does not count "
        "the root.",
    ]
    if plot is not None:
        parts.append(f"![Speed over plain decoding by budget]({plot})")
    for group in groups:
        dataset, temperature, concurrency = group
        budgets = sorted({budget for key, _, budget in found if key == group})
        plain = [
            row.values["tokens_per_second"]
            for row in rows
            if row.cell.method == PLAIN and (row.cell.dataset, row.cell.temperature, row.cell.concurrency) == group
        ]
        parts.append(
            f"### {dataset}, temperature {temperature:g}, concurrency {concurrency} "
            f"(plain: {statistics.median(plain):.1f} tokens/s)"
        )
        lines = []
        for method in methods:
            cells = [found.get((group, method, budget)) for budget in budgets]
            if any(cells):
                lines.append([method, *("–" if one is None else _cell(one) for one in cells)])
        parts.append(table(["method", *(f"B = {budget}" for budget in budgets)], lines))
    parts += [*levels(found), *theory(rows), *peers(rows), setting_line(setting)]
    return "\n\n".join(parts)


def _cell(one: dict[str, Any]) -> str:
    shape = shape_text(json.loads(one["shape"]))
    return f"{one['block_efficiency']:.2f}, {one['mbsu']:.2f}, **{one['ratio']:.2f}x**" + (
        f" ({shape})" if shape else ""
    )


def levels(found: dict[tuple[Group, str, int], dict[str, Any]]) -> list[str]:
    """Acceptance by level at the smallest concurrency, and what `auto` picked."""
    if not found:
        return []
    least = min(concurrency for (_, _, concurrency), _, _ in found)
    lines, picks = [], []
    for (group, method, budget), one in sorted(found.items()):
        if group[2] != least:
            continue
        name = f"{group[0]}, T = {group[1]:g}"
        lines.append([name, method, str(budget), " ".join(f"{level:.2f}" for level in one["levels"][:8])])
        if one["picked"]:
            total = sum(one["picked"].values())
            often = sorted(one["picked"].items(), key=lambda item: -item[1])[:4]
            picks.append([name, str(budget), ", ".join(f"{shape} {100 * n / total:.0f} %" for shape, n in often)])
    parts = [
        f"Share of the rounds that accepted a token at the first level, the second, and so on (concurrency {least}):",
        table(["prompts", "method", "B", "by level"], lines),
    ]
    if picks:
        parts += ["What `auto` picked, in shares of the steps:", table(["prompts", "B", "picked"], picks)]
    return parts


def theory(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        if not row.cell.method.startswith(THEORY):
            continue
        tokens, first = row.values["tokens"], row.values["first_level"]
        if not tokens["rounds"]:
            continue
        shape = shape_text(json.loads(row.cell.shape))
        lines.append(
            [
                f"{row.cell.dataset}, {row.cell.method.removeprefix(THEORY)} {shape}".strip(),
                str(tokens["rounds"]),
                f"{tokens['expected']:.3f}",
                f"{tokens['observed']:.3f} ± {tokens['standard_error']:.3f}",
                f"{first['expected']:.3f}" if first["rounds"] else "–",
                f"{first['observed']:.3f} ± {first['standard_error']:.3f}" if first["rounds"] else "–",
            ]
        )
    if not lines:
        return []
    return [
        "Theory: tokens a round expected from the measured draft and target distributions given the drawn trees, and "
        "acceptance of the first level by the closed form before the draw, beside what happened in the same rounds "
        "(± standard error of the difference):",
        table(["prompts, method", "rounds", "expected", "measured", "first level", "measured"], lines),
    ]


def peers(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        if row.cell.method in MODES:
            base = [r for r in rows if r.cell.method == MODES[0] and _block(r.cell) == _block(row.cell)]
            rate = row.values["tokens_per_second"]
            ratio = rate / base[-1].values["tokens_per_second"] if base else 1.0
            place = f"{row.cell.dataset}, T = {row.cell.temperature:g}"
            lines.append([place, row.cell.method, f"{rate:.1f}", f"{ratio:.2f}x"])
    if not lines:
        return []
    return [
        "Peers, one prompt at a time, prefill included; the ratio is to the peer's own plain decoding:",
        table(["prompts", "peer", "tokens/s", "over plain"], lines),
    ]


def setting_line(setting: dict[str, Any]) -> str:
    machine = setting["machine"]
    return (
        f"Target: {setting['target']}. Draft: {setting['drafter']} (cost of a forward over the target's: "
        f"{setting['ratio']:.2f}). {setting['prompts']} prompts of each set, at most {setting['max_tokens']} tokens "
        f"each, {setting['repeats']} repeat(s). Machine: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB. Commit: {setting['commit']}. Date: {setting['date']}."
    )


def write_plot(rows: Sequence[Row], path: Path) -> bool:
    """Speed over plain decoding against B at the smallest concurrency: data sets in columns, temperatures in rows.
    False (and no file) without matplotlib or numbers."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    found = summaries(rows)
    if not found:
        return False
    least = min(concurrency for (_, _, concurrency), _, _ in found)
    datasets = sorted({key[0] for key, _, _ in found})
    temperatures = sorted({key[1] for key, _, _ in found})
    figure = Figure(figsize=(3.6 * len(datasets), 2.9 * len(temperatures)), layout="constrained")
    grid = figure.subplots(len(temperatures), len(datasets), sharex=True, sharey="row", squeeze=False)
    for line, temperature in zip(grid, temperatures, strict=True):
        for axes, dataset in zip(line, datasets, strict=True):
            for method in dict.fromkeys(key[1] for key in found):
                points = sorted(
                    (budget, one["ratio"])
                    for (group, name, budget), one in found.items()
                    if name == method and group == (dataset, temperature, least)
                )
                if points:
                    axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=method)
            axes.axhline(1.0, color="grey", linewidth=0.8)
            axes.set_title(f"{dataset}, T = {temperature:g}")
    figure.supxlabel("B, draft tokens a round")
    figure.supylabel("speed over plain decoding")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    return True
