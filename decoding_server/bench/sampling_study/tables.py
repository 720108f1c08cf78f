"""From results to Markdown: the generated blocks of the documentation's pages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from decoding_server.bench.report import number
from decoding_server.bench.sampling_study.humaneval import MODES
from decoding_server.bench.sampling_study.penalties import NONE

Result = dict[str, Any]
Results = Mapping[str, Result]
"""Part -> what `Study.results` gives."""

NOT_MEASURED = "Not measured yet."
HOT_TAUS = (0.05, 0.02, 0.01)
"""Of the table at the higher temperature."""
KINDS = ("primal alpha=1 tau=0.02", "primal alpha=1.5 tau=0.02", "primal alpha=2 tau=0.02", "top_p 0.95", "min_p 0.05")
"""Configurations in the table by kind of text."""


def blocks(results: Results) -> dict[str, Callable[[], str]]:
    """Name of a block -> what makes its text."""
    return {
        "bregman-kept": lambda: _with(results, "bregman", lambda result: kept(result, 1.0)),
        "bregman-hot": lambda: _with(results, "bregman", lambda result: kept(result, 1.5, HOT_TAUS)),
        "bregman-kinds": lambda: _with(results, "bregman", kinds),
        "bregman-facts": lambda: _with(results, "bregman", facts),
        "repetition-metrics": lambda: _with(results, "repetition", repetition),
        "repetition-facts": lambda: _with(results, "repetition", facts),
        "harm-passed": lambda: _with(results, "harm", harm),
        "harm-facts": lambda: _with(results, "harm", facts),
    }


def _with(results: Results, part: str, text: Callable[[Result], str]) -> str:
    return text(results[part]) if part in results else NOT_MEASURED


def table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def interval(estimate: Mapping[str, float]) -> str:
    """Mean and confidence interval."""
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def change(estimate: Mapping[str, float] | None) -> str:
    """A difference, in bold where its interval leaves out zero."""
    if estimate is None:
        return ""
    text = signed(estimate["mean"])
    text = f"**{text}**" if estimate["low"] > 0 or estimate["high"] < 0 else text
    return f"{text} [{signed(estimate['low'])}, {signed(estimate['high'])}]"


def share(entry: Result, metric: str) -> str:
    """A share, in bold where its paired difference to no penalty has an interval without zero."""
    text, difference = f"{entry[metric]['mean']:.2f}", entry.get(f"{metric}_change")
    return f"**{text}**" if difference and (difference["low"] > 0 or difference["high"] < 0) else text


def label(cell: Mapping[str, Any]) -> str:
    """How a table names a sampler."""
    if cell["sampler"] == "bregman":
        return f"{cell['mode']}, α = {cell['alpha']:g}"
    values = [f"{value:g}" for name, value in cell.items() if name in ("p", "k")]
    return " ".join([cell["sampler"], *values])


def kept(result: Result, temperature: float, taus: Sequence[float] | None = None) -> str:
    """k, kept mass and entropy of every configuration, all models side by side. taus: only these."""
    models: list[Result] = result["results"]
    header = ["sampler", "τ", "λ"]
    for model in models:
        header += [f"{model['model']}: k mean / median / p95", "mass kept", "entropy"]
    lines = []
    for cells in zip(*(model["cells"] for model in models), strict=True):
        first = cells[0]
        tau, penalty = first.get("tau"), first.get("lambda")
        if first["temperature"] != temperature or (taus is not None and tau is not None and tau not in taus):
            continue
        line = [label(first), "" if tau is None else f"{tau:g}", "" if penalty is None else f"{penalty:.3g}"]
        for cell in cells:
            line += [
                f"{number(cell['k_mean'])} / {cell['k_median']:g} / {cell['k_p95']:g}",
                f"{cell['mass_mean']:.3f}",
                f"{cell['entropy_after']:.2f}",
            ]
        lines.append(line)
    counts = ", ".join(f"{model['distributions']} distributions of {model['model']}" for model in models)
    return f"{table(header, lines)}\n\nTemperature {temperature:g}; {counts}. Entropy in nats, of what is drawn from."


def kinds(result: Result) -> str:
    """Mean k by kind of text."""
    header = ["text", "model", "entropy", *KINDS]
    lines = [
        [
            kind["kind"],
            model["model"],
            f"{kind['entropy_before']:.2f}",
            *(f"{kind['k'][name]:.1f}" for name in KINDS),
        ]
        for model in result["results"]
        for kind in model["kinds"]
    ]
    return table(header, lines, left=2)


def repetition(result: Result) -> str:
    """One table per model and temperature."""
    parts = []
    groups: dict[tuple[str, float], list[Result]] = {}
    for entry in result["results"]:
        groups.setdefault((entry["model"], entry["temperature"]), []).append(entry)
    for (model, temperature), entries in groups.items():
        header = ["penalty", "TR-N", "change", "TR-S", "change", "in a loop", "change"]
        header += ["ended (EOS)", "compiles", "same text", "tokens"]
        lines = [
            [
                entry["penalty"],
                interval(entry["tr_n"]),
                change(entry.get("tr_n_change")),
                interval(entry["tr_s"]),
                change(entry.get("tr_s_change")),
                f"{entry['looping']['mean']:.2f}",
                change(entry.get("looping_change")),
                f"{share(entry, 'ended')} ({entry['eos']['mean']:.2f})",
                share(entry, "compiles"),
                "" if entry["penalty"] == NONE else f"{entry['unchanged']:.2f}",
                f"{entry['tokens_mean']:.0f}",
            ]
            for entry in entries
        ]
        how = "greedy" if temperature == 0 else f"temperature {temperature:g}"
        first = entries[0]
        parts.append(
            f"**{model}, {how}** ({first['programs']} programs, up to {first['max_tokens']} new tokens)\n\n"
            + table(header, lines)
        )
    return "\n\n".join(parts)


def harm(result: Result) -> str:
    """One table for all models."""
    header = [
        "model",
        "penalty",
        "same text",
        "of ended ones",
        "passed",
        "pass rate",
        "change",
        "lost",
        "gained",
        "cut",
        "tokens",
    ]
    lines = [
        [
            entry["model"],
            entry["mode"],
            f"{entry['same']['mean']:.3f}" if "same" in entry else "",
            f"{entry['same_ended']['mean']:.3f}" if entry.get("same_ended") else "",
            f"{entry['passed']} of {entry['tasks']}",
            interval(entry["pass_rate"]),
            change(entry.get("pass_change")),
            str(entry.get("lost", "")),
            str(entry.get("gained", "")),
            str(entry["cut"]),
            f"{entry['tokens_mean']:.0f}",
        ]
        for entry in sorted(result["results"], key=lambda entry: MODES.index(entry["mode"]))
    ]
    order = list(dict.fromkeys(entry["model"] for entry in result["results"]))
    lines.sort(key=lambda line: order.index(line[0]))
    return table(header, lines, left=2)


def facts(result: Result) -> str:
    """What it was measured on."""
    machine = result["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    missing = f" {result['missing']} more rows are missing." if result["missing"] else ""
    return (
        f"Measured at commit {', '.join(result['commits'])} on {', '.join(result['dates'])}: {result['rows']} rows."
        f"{missing} {machine['processor']}, {machine['cores']} cores ({', '.join(machine['instruction_sets'])}), "
        f"Python {machine['python']}; {versions}."
    )
