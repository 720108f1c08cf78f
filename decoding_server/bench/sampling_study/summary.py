"""From raw rows to numbers: means with bootstrap confidence intervals, and the results that the documentation shows."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from decoding_server.bench.report import percentile
from decoding_server.bench.rows import Row
from decoding_server.bench.sampling_study.distributions import TEMPERATURES, configurations
from decoding_server.bench.sampling_study.humaneval import MODES
from decoding_server.bench.sampling_study.loops import TEMPERATURES as LOOP_TEMPERATURES
from decoding_server.bench.sampling_study.loops import looping
from decoding_server.bench.sampling_study.penalties import NONE, PENALTIES

RESAMPLES = 4000
COVERAGE = 95.0
DIGITS = 4
SEED = 1

Estimate = dict[str, float]
"""mean, low, high: the mean and its bootstrap confidence interval."""


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of at least one value, and its percentile bootstrap interval (Efron 1979), resampling the values."""
    array = np.asarray(values, np.float64)
    picked = np.random.default_rng(SEED).integers(0, len(array), (RESAMPLES, len(array)))
    tail = (100 - COVERAGE) / 2
    low, high = np.percentile(array[picked].mean(-1), [tail, 100 - tail])
    return {name: round(float(value), DIGITS) for name, value in (("mean", array.mean()), ("low", low), ("high", high))}


def mean(values: Iterable[float]) -> float:
    return round(statistics.fmean(values), DIGITS)


def of_distributions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Part `bregman`, one entry per model."""
    return [_distributions(model, own) for model, own in _grouped(rows, lambda row: row["model"]).items()]


def _distributions(model: str, rows: Sequence[Row]) -> dict[str, Any]:
    places = [(row["kind"], place["temperatures"]) for row in rows for place in row["places"]]
    cells = []
    for temperature in TEMPERATURES:
        for name, (facts, _) in configurations().items():
            found = [temperatures[f"{temperature:g}"] for _, temperatures in places]
            k = [one[name][0] for one in found]
            cells.append(
                {
                    **facts,
                    "temperature": temperature,
                    "k_mean": mean(k),
                    "k_median": statistics.median(k),
                    "k_p95": round(percentile(k, 95), 1),
                    "k_max": max(k),
                    "mass_mean": mean(one[name][1] for one in found),
                    "mass_p05": round(percentile([one[name][1] for one in found], 5), DIGITS),
                    "entropy_before": mean(one["none"][2] for one in found),
                    "entropy_after": mean(one[name][2] for one in found),
                }
            )
    kinds = []
    for kind in dict.fromkeys(kind for kind, _ in places):
        own = [temperatures["1"] for one, temperatures in places if one == kind]
        kinds.append(
            {
                "kind": kind,
                "distributions": len(own),
                "entropy_before": mean(one["none"][2] for one in own),
                "k": {name: mean(one[name][0] for one in own) for name in configurations() if name != "none"},
            }
        )
    return {
        "model": model,
        "contexts": len(rows),
        "distributions": len(places),
        "cells": cells,
        "kinds": kinds,
        "example": rows[0]["places"][0]["example"],
    }


def of_loops(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Part `repetition`: one entry per model, temperature and penalty. `change` is the paired difference to "none"."""
    found = []
    rows = [{**row, "looping": not row["ended"] and looping(row["language"], row["text"])} for row in rows]
    for model, own in _grouped(rows, lambda row: row["model"]).items():
        cells = _grouped(own, lambda row: (row["temperature"], row["penalty"]))
        for temperature in LOOP_TEMPERATURES:
            for penalty in PENALTIES:
                cell = cells.get((temperature, penalty))
                if cell:
                    base = {row["number"]: row for row in cells.get((temperature, NONE), [])}
                    found.append({"model": model, **_loops(penalty, temperature, cell, base)})
    return found


def _loops(penalty: str, temperature: float, rows: Sequence[Row], base: Mapping[int, Row]) -> dict[str, Any]:
    pairs = [(row, base[row["number"]]) for row in rows if row["number"] in base]
    batches = {(row["seconds"], row["wave_tokens"]) for row in rows}
    entry: dict[str, Any] = {
        "penalty": penalty,
        "temperature": temperature,
        "programs": len(rows),
        "max_tokens": rows[0]["max_tokens"],
        "tokens_mean": mean(row["tokens"] for row in rows),
        "tokens_per_second": round(sum(tokens for _, tokens in batches) / sum(seconds for seconds, _ in batches)),
        "unchanged": mean(row["text"] == other["text"] for row, other in pairs) if pairs else None,
    }
    for metric in ("tr_n", "tr_s", "raw_lines", "looping", "ended", "eos", "compiles"):
        entry[metric] = estimate([row[metric] for row in rows])
        if penalty != NONE and pairs:
            entry[f"{metric}_change"] = estimate([float(row[metric]) - float(other[metric]) for row, other in pairs])
    return entry


def of_harm(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Part `harm`: one entry per model and mode. same_ended: of the answers that
    ended by themselves, undisturbed. lost, gained: tasks passed only undisturbed, only with the penalty."""
    found = []
    for model, own in _grouped(rows, lambda row: row["model"]).items():
        cells = _grouped(own, lambda row: row["mode"])
        base = {row["task"]: row for row in cells.get(NONE, [])}
        found += [{"model": model, **_harm(mode, cells[mode], base)} for mode in MODES if mode in cells]
    return found


def _harm(mode: str, rows: Sequence[Row], base: Mapping[str, Row]) -> dict[str, Any]:
    pairs = [(row, base[row["task"]]) for row in rows if row["task"] in base]
    entry: dict[str, Any] = {
        "mode": mode,
        "tasks": len(rows),
        "max_tokens": rows[0]["max_tokens"],
        "tokens_mean": mean(row["tokens"] for row in rows),
        "cut": sum(row["cut"] for row in rows),
        "timeouts": sum(row["outcome"] == "timeout" for row in rows),
        "passed": sum(_passed(row) for row in rows),
        "pass_rate": estimate([_passed(row) for row in rows]),
    }
    if mode != NONE and pairs:
        entry["same"] = estimate([row["text"] == other["text"] for row, other in pairs])
        ended = [row["text"] == other["text"] for row, other in pairs if not other["cut"]]
        entry["same_ended"] = estimate(ended) if ended else None
        entry["lost"] = sum(_passed(other) and not _passed(row) for row, other in pairs)
        entry["gained"] = sum(_passed(row) and not _passed(other) for row, other in pairs)
        entry["pass_change"] = estimate([float(_passed(row)) - float(_passed(other)) for row, other in pairs])
    return entry


def _passed(row: Row) -> bool:
    return bool(row["outcome"] == "passed")


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)
