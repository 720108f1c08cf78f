"""From raw rows to the table: accuracy with intervals, and cost, of every contender and every vote on the samples."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from decoding_server.bench.intervals import paired_difference, wilson
from decoding_server.bench.search_study.contenders import SAMPLES_NAME
from strategies.scoring.answers import extract
from strategies.search.voting import best_of_n, vote

BASE = "greedy"

Row = dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """One contender's results by question (means over seeds): whether right (0..1), and costs."""

    right: dict[int, float] = field(default_factory=dict)
    target_tokens: dict[int, float] = field(default_factory=dict)
    cached_tokens: dict[int, float] = field(default_factory=dict)
    output_tokens: dict[int, float] = field(default_factory=dict)
    flops: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float | None] = field(default_factory=dict)


def outcomes(rows: Sequence[Row]) -> dict[str, Outcome]:
    """Contenders in order of appearance; the samples become one contender for every vote and size."""
    found: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in map(alone, compared(rows)):
        for name, part in expanded(row):
            found[name][row["question"]].append(part)
    results: dict[str, Outcome] = {}
    for name, questions in found.items():
        outcome = results[name] = Outcome()
        for question, parts in questions.items():
            outcome.right[question] = statistics.fmean(part["right"] for part in parts)
            for cost in ("target_tokens", "cached_tokens", "output_tokens", "flops"):
                getattr(outcome, cost)[question] = statistics.fmean(part[cost] for part in parts)
            timed = [part["seconds"] for part in parts if part["seconds"] is not None]
            outcome.seconds[question] = statistics.fmean(timed) if timed else None
    return results


def compared(rows: Sequence[Row]) -> list[Row]:
    """Those of questions that every contender has answered, so that all means are over the same ones."""
    names = {row["contender"] for row in rows}
    done: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        done[row["question"]].add(row["contender"])
    return [row for row in rows if done[row["question"]] == names]


def alone(row: Row) -> Row:
    """The row as if nobody had asked before: the first contender of a question leaves its prompt in the cache, and each
    question the worked examples. The whole prompt is computed once."""
    found = row["prompt_tokens"] - max(1, row["prompt_tokens"] - row["cached_tokens"])
    target = row["target_tokens"] + found
    return {
        **row,
        "target_tokens": target,
        "cached_tokens": row["cached_tokens"] - found,
        "flops": row["flops"] * target / row["target_tokens"],
    }


def expanded(row: Row) -> list[tuple[str, Row]]:
    """The contenders that a row stands for. Votes on the first k samples cost the prompt, those samples, and for votes
    with values their share of the scoring; nobody timed them."""
    if row["contender"] != SAMPLES_NAME:
        return [(row["contender"], row)]
    samples = row["samples"]
    answers = [extract(sample["text"]).canonical for sample in samples]
    values = [sample["value"] for sample in samples]
    scoring = row["target_tokens"] - row["prompt_tokens"] - sum(sample["tokens"] for sample in samples)
    made = [("sampling", _part(row, samples[:1], statistics.fmean(sample["right"] for sample in samples), 0))]
    size = 4
    while size <= len(samples):
        share = max(0, scoring) * size / len(samples)
        choices: list[tuple[str, int | None, float]] = [
            ("majority", vote(answers[:size]).representative, 0.0),
            ("best of", best_of_n(values[:size]), share),
            ("weighted majority", vote(answers[:size], values[:size]).representative, share),
        ]
        for name, chosen, extra in choices:
            right = float(chosen is not None and samples[chosen]["right"])
            made.append((f"{name} {size}", _part(row, samples[:size], right, extra)))
        made.append((f"any of {size}", _part(row, samples[:size], float(any(s["right"] for s in samples[:size])), 0)))
        size *= 2
    return made


def _part(row: Row, samples: Sequence[Row], right: float, scoring: float) -> Row:
    output = sum(sample["tokens"] for sample in samples)
    target = row["prompt_tokens"] + output + scoring
    return {
        "right": right,
        "target_tokens": target,
        "cached_tokens": row["prompt_tokens"] * (len(samples) - 1),
        "output_tokens": output,
        "flops": row["flops"] * target / row["target_tokens"],
        "seconds": row["seconds"] if len(samples) == len(row["samples"]) else None,
    }


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry per contender, by rising FLOPs."""
    found = outcomes(rows)
    base = found.get(BASE)
    entries = []
    for name, outcome in found.items():
        count = len(outcome.right)
        low, high = wilson(sum(outcome.right.values()), count)
        difference = None if base is None or name == BASE else paired_difference(outcome.right, base.right)
        seconds = [value for value in outcome.seconds.values() if value is not None]
        entries.append(
            {
                "contender": name,
                "questions": count,
                "accuracy": round(statistics.fmean(outcome.right.values()), 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "difference": None if difference is None else [round(value, 4) for value in difference],
                "output_tokens": round(statistics.fmean(outcome.output_tokens.values()), 1),
                "target_tokens": round(statistics.fmean(outcome.target_tokens.values()), 1),
                "cached_tokens": round(statistics.fmean(outcome.cached_tokens.values()), 1),
                "gflops": round(statistics.fmean(outcome.flops.values()) / 1e9, 1),
                "seconds": round(statistics.fmean(seconds), 2) if seconds else None,
            }
        )
    order: Callable[[dict[str, Any]], float] = lambda entry: entry["gflops"]  # noqa: E731
    return sorted(entries, key=order)
