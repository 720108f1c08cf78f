"""What docs/strategies/speculation.md says about one target, and the page of all its tables."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decoding_server.bench.speculation.grid import COUPLED, PLAIN
from decoding_server.bench.speculation.report import (
    Group,
    markdown,
    peers,
    setting_line,
    summaries,
    table,
    theory,
    write_plot,
)
from decoding_server.bench.speculation.rows import Row
from decoding_server.features.markers import with_block

PAGE = "speculation.md"
AUTO = "auto"
Found = dict[tuple[Group, str, int], dict[str, Any]]


def slug(name: str) -> str:
    """A model's name as part of a file's: lower case, without quantisation and file ending."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-").removesuffix(".gguf").removesuffix(".q4-k-m")


def write(folder: Path, rows: Sequence[Row], setting: dict[str, Any]) -> None:
    """Into the page's block of this target, `speculation-NAME`; all tables into measured/. Raises OSError, MarkerError
    where the page has no such block."""
    name = f"speculation-{slug(setting['target'])}"
    plot = folder / "plots" / f"{name}.svg"
    drawn = write_plot(rows, plot)
    every = folder / "measured" / f"{name}.md"
    every.parent.mkdir(parents=True, exist_ok=True)
    title = f"# Speculation on {setting['target']}: every cell\n\n"
    every.write_text(title + markdown(rows, setting, f"../plots/{plot.name}" if drawn else None) + "\n")
    text = summary(rows, setting, f"plots/{plot.name}" if drawn else None, f"measured/{every.name}")
    page = folder / PAGE
    page.write_text(with_block(page.read_text(), name, text))


def summary(rows: Sequence[Row], setting: dict[str, Any], plot: str | None, every: str) -> str:
    """The best budget of every method, by workload; how `auto` fared; theory and peers. every: link to all tables."""
    found: Found = summaries(rows)
    methods = list(dict.fromkeys(key[1] for key in found if key[1] not in COUPLED))
    lines = []
    for group in sorted({key[0] for key in found}):
        plain = [row.values["tokens_per_second"] for row in rows if row.cell.method == PLAIN and _group(row) == group]
        cells = [_best(found, group, method) for method in methods]
        lines.append([f"{group[0]}, T = {group[1]:g}", str(group[2]), f"{sum(plain) / len(plain):.1f}", *cells])
    parts = [
        "Tokens per second over plain decoding in the same run, at the method's best B (in brackets):",
        table(["prompts", "at a time", "plain, tokens/s", *methods], lines),
    ]
    if AUTO in methods:
        parts.append(_auto(found))
    if plot is not None:
        parts.append(f"![Speed over plain decoding by budget]({plot})")
    parts += [*_coupled(found), *theory(rows), *peers(rows), f"[Every cell]({every}). " + setting_line(setting)]
    return "\n\n".join(parts)


def _group(row: Row) -> Group:
    return row.cell.dataset, row.cell.temperature, row.cell.concurrency


def _best(found: Found, group: Group, method: str) -> str:
    of_method = [(one["ratio"], budget) for (key, name, budget), one in found.items() if (key, name) == (group, method)]
    if not of_method:
        return "–"
    ratio, budget = max(of_method)
    return f"{ratio:.2f}x ({budget})"


def _auto(found: Found) -> str:
    """The range of its ratios over all workloads and budgets, and which were below 0.95."""
    ratios = {key: one["ratio"] for key, one in found.items() if key[1] == AUTO}
    slow = [
        f"{dataset}, T = {temperature:g}, {concurrency} at a time, B = {budget}: {ratio:.2f}x"
        for ((dataset, temperature, concurrency), _, budget), ratio in sorted(ratios.items())
        if ratio < 0.95
    ]
    text = f"`auto`: {min(ratios.values()):.2f}x to {max(ratios.values()):.2f}x over {len(ratios)} cells"
    return text + (f"; below 0.95x: {'; '.join(slow)}." if slow else "; none below 0.95x.")


def _coupled(found: Found) -> list[str]:
    """What sharing the target's noise costs."""
    lines = []
    for (group, method, budget), one in sorted(found.items()):
        free = found.get((group, method.split()[0], budget))
        if method in COUPLED and free is not None:
            first = [f"{each['levels'][0]:.2f}" if each["levels"] else "–" for each in (free, one)]
            whole = [f"{each['block_efficiency']:.2f}" for each in (free, one)]
            prompts = f"{group[0]}, T = {group[1]:g}, {group[2]} at a time"
            lines.append([prompts, f"{method.split()[0]}, B = {budget}", " / ".join(first), " / ".join(whole)])
    if not lines:
        return []
    header = ["prompts", "method", "first level accepted, free / coupled", "block efficiency, free / coupled"]
    return ["What `coupled` costs, against the same shape without it:", table(header, lines)]
