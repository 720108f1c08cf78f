"""From results to SVG files, the same bytes for the same numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from decoding_server.bench.figures import COLOURS, STYLE, save
from decoding_server.bench.sampling_study.distributions import EXAMPLE_TAU, FAMILIES

Result = dict[str, Any]

TICKS = (2, 5, 10, 20, 50)
METRICS = {
    "tr_n": "TR-N (repeated 4-grams)",
    "tr_s": "TR-S (repeated statements)",
    "looping": "cut off in a loop",
}


def of_distributions(result: Result, folder: Path) -> None:
    """bregman-kept.svg: k and mass against lambda; bregman-example.svg: q against p for one context."""
    with mpl.rc_context(STYLE):
        save(_kept(result["results"]), folder / "bregman-kept.svg")
        save(_example(result["results"][0]), folder / "bregman-example.svg")


def _kept(models: Sequence[Result]) -> Figure:
    figure = Figure(figsize=(4.2 * len(models), 5.6), layout="constrained")
    axes = figure.subplots(2, len(models), sharex=True, sharey="row", squeeze=False)
    for column, model in enumerate(models):
        for colour, (mode, alpha) in zip(COLOURS, FAMILIES, strict=True):
            cells = [
                cell
                for cell in model["cells"]
                if cell["temperature"] == 1.0 and (cell.get("mode"), cell.get("alpha")) == (mode, alpha)
            ]
            line = {
                "color": colour,
                "linestyle": "-" if mode == "primal" else "--",
                "marker": "o",
                "markersize": 3,
                "label": f"{mode}, α = {alpha:g}",
            }
            penalties = [cell["lambda"] for cell in cells]
            axes[0][column].plot(penalties, [cell["k_mean"] for cell in cells], **line)
            axes[1][column].plot(penalties, [cell["mass_mean"] for cell in cells], **line)
        axes[0][column].set(title=model["model"], xscale="log", yscale="log")
        axes[0][column].set_yticks(TICKS, labels=map(str, TICKS))
        axes[0][column].yaxis.set_minor_locator(NullLocator())
        axes[1][column].set(xlabel="λ, price of a kept token")
    axes[0][0].set_ylabel("mean k")
    axes[1][0].set_ylabel("mean probability mass kept")
    axes[0][0].legend(fontsize=8)
    return figure


def _example(model: Result) -> Figure:
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    example = model["example"]
    p = example["p"]
    for colour, (mode, alpha) in zip(COLOURS, FAMILIES, strict=True):
        if mode == "primal":
            q = example[f"{alpha:g}"]
            kept = [(x, y) for x, y in zip(p, q, strict=True) if y > 0]
            x, y = zip(*kept, strict=True)
            axes.plot(x, y, "o-", markersize=3, color=colour, label=f"primal, α = {alpha:g}: k = {len(kept)}")
    axes.plot([min(p), max(p)], [min(p), max(p)], color="grey", linewidth=0.8, linestyle=":", label="q = p")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="p, the model's probability",
        ylabel=f"q, what is drawn from (τ = {EXAMPLE_TAU:g})",
    )
    axes.legend(fontsize=8)
    return figure


def of_loops(result: Result, folder: Path) -> None:
    """repetition.svg: TR-N, TR-S and loops with their intervals, per model and temperature."""
    entries = result["results"]
    groups = list(dict.fromkeys((entry["model"], entry["temperature"]) for entry in entries))
    penalties = list(dict.fromkeys(entry["penalty"] for entry in entries))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(groups) + 1.6, 6.6), layout="constrained")
        axes = figure.subplots(len(METRICS), len(groups), sharex=True, sharey="row", squeeze=False)
        for column, group in enumerate(groups):
            own = {entry["penalty"]: entry for entry in entries if (entry["model"], entry["temperature"]) == group}
            for row, metric in enumerate(METRICS):
                for place, (colour, penalty) in enumerate(zip(COLOURS, penalties, strict=False)):
                    if penalty not in own:  # a run that is not finished
                        continue
                    one = own[penalty][metric]
                    errors = [[one["mean"] - one["low"]], [one["high"] - one["mean"]]]
                    axes[row][column].bar(place, one["mean"], color=colour, yerr=errors, capsize=2, label=penalty)
                axes[row][column].set_xticks([])
            how = "greedy" if group[1] == 0 else f"T = {group[1]:g}"
            axes[0][column].set_title(f"{group[0]}\n{how}", fontsize=8)
        for row, name in enumerate(METRICS.values()):
            axes[row][0].set_ylabel(name)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        save(figure, folder / "repetition.svg")
