"""From raw rows to numbers: pass@1, pass@any by programs and tokens, what visible tests are worth, cost, diversity."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from decoding_server.bench.intervals import paired_difference, wilson
from decoding_server.bench.rows import Row
from strategies.scoring.program_metrics import levenshtein_similarity
from strategies.search.tfidf import EmptyVocabulary, tfidf

DIGITS = 4
TOKENS = (250, 500, 1000, 2000, 4000, 8000)
"""Where the curve by generated tokens is read off."""
COSTS = ("output_tokens", "target_tokens", "cached_tokens", "flops", "seconds")

Entry = dict[str, Any]
Right = tuple[int, int]
"""Of a row's first right program: its index, and the tokens generated before it was run."""


def table(rows: Iterable[Row], names: Sequence[str], k: int) -> list[Entry]:
    """One entry per strategy with rows, in this order; differences are to the first of them."""
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["strategy"]].append(row)
    entries = []
    base: dict[str, float] | None = None
    for name in names:
        if not grouped[name]:
            continue
        entry, passed = of_strategy(name, grouped[name], k)
        entry["difference"] = None if base is None else rounded(paired_difference(passed, base))
        base = passed if base is None else base
        entries.append(entry)
    return entries


def compared(rows: Iterable[Row], names: Sequence[str]) -> list[Row]:
    """Those of (task, seed) pairs that every strategy was measured on, so that all means are over the same ones. A
    further seed that has only begun adds what it has, and takes nothing away."""
    rows = list(rows)
    done: dict[tuple[str, int], set[str]] = defaultdict(set)
    for row in rows:
        done[row["task"], row["seed"]].add(row["strategy"])
    return [row for row in rows if done[row["task"], row["seed"]] == set(names)]


def of_strategy(name: str, rows: Sequence[Row], k: int) -> tuple[Entry, dict[str, float]]:
    """Its entry, and by task whether its program was right (the mean over seeds)."""
    tasks: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        tasks[row["task"]].append(row)
    passed = per_task(tasks, lambda row: float(row["passed"]))
    found = [first_right(row) for row in rows]
    weights = [1 / len(tasks[row["task"]]) / len(tasks) for row in rows]
    any_at_k = share(found, weights, k)
    entry = {
        "strategy": name,
        "tasks": len(tasks),
        "rows": len(rows),
        "pass_1": mean(passed.values()),
        "pass_1_interval": rounded(wilson(sum(passed.values()), len(passed))),
        "pass_any": [round(share(found, weights, j), DIGITS) for j in range(1, k + 1)],
        "pass_any_interval": rounded(wilson(any_at_k * len(tasks), len(tasks))),
        "pass_any_tokens": {str(t): round(share_by_tokens(found, weights, t), DIGITS) for t in TOKENS},
        "tokens_curve": [[t, round(share_by_tokens(found, weights, t), DIGITS)] for t in steps(found)],
        "mean_first_right": mean(
            per_task(tasks, lambda row: min(k, first_right(row)[0]) if first_right(row) else k).values()  # type: ignore[index]
        ),
        "submitted": worth((row["accepted"], row["passed"]) for row in rows),
        "evaluated": worth((visible(row, one), one["passed"]) for row in rows for one in row["programs"]),
        "programs": mean(per_task(tasks, lambda row: float(len(candidates(row)))).values()),
        "errors": sum("error" in row for row in rows),
        "outcomes": counted(row["outcome"] for row in rows),
        "stops": counted(row["search"].get("stop_reason", "none") for row in rows),
        **{cost: mean(per_task(tasks, lambda row, cost=cost: row[cost]).values()) for cost in COSTS},  # type: ignore[misc]
        "diversity": diversity(rows),
    }
    return entry, passed


def candidates(row: Row) -> list[Row]:
    """What the row evaluated; a search that runs nothing submits its only program."""
    if row["programs"] or "error" in row:
        return list(row["programs"])
    return [{"source": row["source"], "passed": row["passed"], "tokens_so_far": row["output_tokens"]}]


def first_right(row: Row) -> Right | None:
    """None if no program of the row passes the hidden tests."""
    return next(((i, one["tokens_so_far"]) for i, one in enumerate(candidates(row)) if one["passed"]), None)


def share(found: Sequence[Right | None], weights: Sequence[float], programs: int) -> float:
    """pass@any: the weight of rows with a right one among their first programs."""
    return sum(w for one, w in zip(found, weights, strict=True) if one is not None and one[0] < programs)


def share_by_tokens(found: Sequence[Right | None], weights: Sequence[float], tokens: int) -> float:
    """The same for what had been run before so many tokens were generated."""
    return sum(w for one, w in zip(found, weights, strict=True) if one is not None and one[1] <= tokens)


def steps(found: Sequence[Right | None]) -> list[int]:
    """Where the curve by tokens rises."""
    return sorted({one[1] for one in found if one is not None})


def visible(row: Row, program: Row) -> bool | None:
    """Whether a program passes all visible tests; None where there are none."""
    return bool(program["score"] == 1.0) if sum(row["search"].get("tests", {}).values()) else None


def worth(pairs: Iterable[tuple[bool | None, bool]]) -> Entry | None:
    """How far passing all visible tests tells right programs: counts, precision and recall over (accepted, right)."""
    known = [(accepted, right) for accepted, right in pairs if accepted is not None]
    if not known:
        return None
    both = sum(accepted and right for accepted, right in known)
    all_accepted, all_right = sum(accepted for accepted, _ in known), sum(right for _, right in known)
    return {
        "count": len(known),
        "accepted_right": both,
        "accepted_wrong": all_accepted - both,
        "rejected_right": all_right - both,
        "rejected_wrong": len(known) - all_accepted - all_right + both,
        "precision": round(both / all_accepted, DIGITS) if all_accepted else None,
        "recall": round(both / all_right, DIGITS) if all_right else None,
    }


def diversity(rows: Sequence[Row]) -> Entry | None:
    """Mean distances between the programs of a row: 1 - cosine of TF-IDF rows, 1 - the released code's Levenshtein
    similarity. Over rows with two programs or more."""
    cosine, edits = [], []
    for row in rows:
        sources = [one["source"] for one in row["programs"] if one["source"] is not None]
        if len(sources) > 1:
            cosine.append(tfidf_distance(sources))
            edits.append(1 - levenshtein_similarity(sources))
    if not cosine:
        return None
    return {"rows": len(cosine), "tfidf": mean(cosine), "levenshtein": mean(edits)}


def tfidf_distance(texts: Sequence[str]) -> float:
    """The mean over pairs of 1 - cosine, document frequencies from these texts."""
    try:
        _, rows = tfidf(texts)
    except EmptyVocabulary:
        return 0.0
    similar = rows @ rows.T
    pairs = np.triu_indices(len(texts), 1)
    return float(1 - similar[pairs].mean())


def per_task(tasks: Mapping[str, Sequence[Row]], value: Callable[[Row], float]) -> dict[str, float]:
    return {task: statistics.fmean(value(row) for row in rows) for task, rows in tasks.items()}


def mean(values: Iterable[float]) -> float:
    return round(statistics.fmean(values), DIGITS)


def rounded(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [round(value, DIGITS) for value in values]


def counted(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
