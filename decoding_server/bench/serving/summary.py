"""From raw rows to numbers: latencies, throughput, goodput and errors of each strategy under each load."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from decoding_server.bench.report import percentile
from decoding_server.bench.rows import Row

PERCENTS = (50, 90, 99)
LATENCIES = ("ttft", "itl", "tpot", "e2e")
"""Seconds: to the first token, between chunks of text, mean of a further token, to the end."""
DIGITS = 5

Entry = dict[str, Any]


def results(rows: Sequence[Row], slo: Mapping[str, float]) -> Entry:
    """slo: longest seconds by "ttft", "tpot" and "e2e"; empty: no goodput."""
    grouped: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["load"], row["strategy"]].append(row)
    return {"rows": len(rows), "table": [of_point(found, slo) for found in grouped.values()]}


def of_point(rows: Sequence[Row], slo: Mapping[str, float]) -> Entry:
    """One strategy under one load; repeats are pooled, and their durations added."""
    good = [row for row in rows if row["error"] is None]
    seconds = sum(duration([row for row in rows if row["seed"] == seed]) for seed in {row["seed"] for row in rows})
    first = rows[0]
    entry: Entry = {
        **{name: first[name] for name in ("strategy", "load", "load_kind", "load_value")},
        "requests": len(rows),
        "answered": len(good),
        "errors": counted([row["error"] for row in rows if row["error"] is not None]),
        "seconds": round(seconds, DIGITS),
        "requests_per_second": rate(len(good), seconds),
        "output_tokens_per_second": total(good, "output_tokens", seconds),
        "computed_tokens_per_second": total(good, "target_tokens", seconds),
        "flops_per_second": total(good, "flops", seconds),
        "mean_output_tokens": None if not good else total(good, "output_tokens", len(good)),
        "client_lag": round(max(row["sent"] - row["scheduled"] for row in rows), DIGITS),
    }
    values = {
        "ttft": [row["ttft"] for row in good if row["ttft"] is not None],
        "itl": [gap for row in good for gap in row["gaps"]],
        "tpot": [row["tpot"] for row in good if row["tpot"] is not None],
        "e2e": [row["e2e"] for row in good],
    }
    for name, found in values.items():
        entry[name] = {f"p{p}": round(percentile(found, p), DIGITS) for p in PERCENTS} if found else None
    # A server that does not count its tokens leaves open how long one took.
    judged = bool(slo) and not ("tpot" in slo and any(row["output_tokens"] is None for row in good))
    met = sum(meets(row, slo) for row in good) if judged else 0
    entry["goodput"] = rate(met, seconds) if judged else None
    entry["met"] = round(met / len(rows), DIGITS) if judged else None
    return entry


def duration(rows: Sequence[Row]) -> float:
    """From the first request sent to the last answer's end."""
    return float(max(row["ended"] for row in rows) - min(row["sent"] for row in rows))


def meets(row: Row, slo: Mapping[str, float]) -> bool:
    """An answer of one token has no time per further token, and meets any limit of it; one without text has no first
    token, and meets none."""
    seconds = {name: row[name] for name in slo}
    if "tpot" in slo and row["output_tokens"] <= 1:
        seconds["tpot"] = 0.0
    return all(seconds[name] is not None and seconds[name] <= limit for name, limit in slo.items())


def rate(count: int, seconds: float) -> float:
    return round(count / seconds, DIGITS) if seconds > 0 else 0.0


def total(rows: Sequence[Row], name: str, seconds: float) -> float | None:
    """Per second; None where a server does not say."""
    if any(row[name] is None for row in rows) or seconds <= 0:
        return None
    return round(float(sum(row[name] for row in rows)) / seconds, DIGITS)


def counted(errors: Sequence[str]) -> dict[str, int]:
    return {error: errors.count(error) for error in sorted(set(errors))}
