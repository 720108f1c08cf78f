"""Medians, paired ratios, targets, and the table in the documentation."""

from pathlib import Path
from typing import Any

import pytest

from decoding_server.bench import report
from decoding_server.bench.peers import OURS
from decoding_server.bench.session import Row
from decoding_server.bench.workloads import MEMORY, START, Workload, decode, first_token

DECODE = decode(1, 37, 128)
FIRST = first_token(512, 3)


def row(engine: str, workload: Workload, repeat: int, value: float | None, error: str | None = None) -> Row:
    return Row(engine, workload.name, repeat, value, workload.unit, 0.0, error=error)


def result(rows: list[Row], engines: list[str]) -> dict[str, Any]:
    return {
        "engines": engines,
        "descriptions": {engine: f"about {engine}" for engine in engines},
        "versions": {engines[0]: {"torch": "2.13.0"}},
        "summaries": report.summaries(rows, (DECODE, FIRST), engines),
        "repeats": 3,
        "model": "smol",
        "commit": "abc",
        "date": "2026-01-01",
        "machine": {
            "processor": "a processor",
            "cores": 2,
            "instruction_sets": ["avx2"],
            "memory_gib": 23.4,
            "python": "3.11",
            "load_average_at_start": 0.5,
        },
    }


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (100, 4.0), (90, 3.7), (25, 1.75)])
def test_percentile_is_linear_between_neighbours(percent: float, expected: float) -> None:
    assert report.percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(expected)


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        report.percentile([], 50)


def test_ratios_pair_the_cells_of_one_repeat() -> None:
    # The machine got twice as slow in repeat 1 for both: the ratio stays 2, while the ratio of medians would not.
    rows = [row(OURS, DECODE, 0, 40.0), row(OURS, DECODE, 1, 20.0), row(OURS, DECODE, 2, 30.0)]
    rows += [row("peer", DECODE, 0, 20.0), row("peer", DECODE, 1, 10.0)]
    assert report.advantages(rows, DECODE, OURS, "peer") == [2.0, 2.0]


def test_an_advantage_in_time_is_the_peers_time_over_ours() -> None:
    rows = [row(OURS, FIRST, 0, 0.5), row("peer", FIRST, 0, 1.5)]
    assert report.advantages(rows, FIRST, OURS, "peer") == [3.0]


def test_start_and_memory_compare_medians() -> None:
    rows = [row(OURS, START, repeat, value) for repeat, value in enumerate([4.0, 5.0, 9.0])]
    rows.append(row("peer", START, 0, 50.0))
    assert report.advantages(rows, START, OURS, "peer") == [10.0]


def test_a_cell_tried_again_counts_once_and_a_failed_one_not_at_all() -> None:
    rows = [row(OURS, DECODE, 0, None, "TimeoutError"), row(OURS, DECODE, 0, 12.0), row(OURS, DECODE, 1, None, "x")]
    assert report.values_by_repeat(rows, OURS, DECODE.name) == {0: 12.0}


def test_summaries_hold_medians_targets_ceilings_and_errors() -> None:
    rows = [row(OURS, DECODE, repeat, value) for repeat, value in enumerate([30.0, 10.0, 20.0])]
    rows += [row("vllm", DECODE, repeat, 10.0) for repeat in range(3)]
    rows += [row("llama-cpp", DECODE, 0, None, "EngineError: gone")]
    rows += [row(OURS, MEMORY, 0, 1700.0), row(OURS, MEMORY, 1, 1000.0), row(OURS, START, 0, 5.0)]
    entries = {entry["workload"]: entry for entry in report.summaries(rows, (DECODE,), [OURS, "vllm", "llama-cpp"])}
    speed = entries[DECODE.name]
    assert speed["engines"][OURS] == {"median": 20.0, "low": 10.0, "high": 30.0, "repeats": 3}
    assert speed["advantages"]["vllm"] == {"median": 2.0, "low": 1.0, "high": 3.0, "target": 1.7, "met": True}
    assert speed["errors"] == {"llama-cpp": "EngineError: gone"}
    assert entries["memory"]["engines"][OURS]["median"] == 1700.0  # the largest, not the median
    assert entries["memory"]["ceiling"]["met"] is False
    assert entries["start"]["ceiling"] == {"value": 6.0, "met": True}


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.01234, "0.0123"), (1.5, "1.50"), (99.95, "100.0"), (1234.5, "1234")]
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert report.number(value) == text


def test_targets_are_for_our_server_only() -> None:
    rows = [row("vllm", DECODE, 0, 30.0), row("llama-cpp", DECODE, 0, 10.0), row("vllm", START, 0, 60.0)]
    speed, start = report.summaries(rows, (DECODE,), ["vllm", "llama-cpp"])
    assert speed["advantages"]["llama-cpp"]["median"] == 3.0
    assert speed["advantages"]["llama-cpp"]["target"] is None
    assert "ceiling" not in start


def test_what_a_strategy_costs_is_paired_within_repeats() -> None:
    """The machine was twice as slow in the second repeat; a repeat without its other half doesn't count."""
    costly = decode(1, 37, 128, "bregman")
    rows = [row("vllm-runtime", DECODE, repeat, value) for repeat, value in enumerate([40.0, 20.0, 30.0])]
    rows += [row("vllm-runtime", costly, repeat, value) for repeat, value in enumerate([36.0, 18.0])]
    assert report.costs(rows, costly, "vllm-runtime") == pytest.approx([0.1, 0.1])
    entry = report.summaries(rows, (DECODE, costly), ["vllm-runtime", "vllm"])[1]
    assert entry["costs"]["vllm-runtime"]["repeats"] == 2
    assert list(entry["costs"]) == ["vllm-runtime"]
    told = result(rows, ["vllm-runtime", "vllm"]) | {"summaries": [entry]}
    assert f"| {costly.title}, vllm-runtime | 10.0 (10.0–10.0) |" in report.markdown(told).splitlines()


def test_the_overhead_over_vllms_own_server_has_a_target() -> None:
    rows = [row("vllm-runtime", DECODE, 0, 19.2), row("vllm", DECODE, 0, 20.0)]
    (speed,) = report.summaries(rows, (DECODE,), ["vllm-runtime", "vllm"])
    assert speed["advantages"]["vllm"]["target"] == 0.95
    assert speed["advantages"]["vllm"]["met"]


def test_the_table_shows_values_ratios_targets_and_failures() -> None:
    rows = [row(OURS, DECODE, repeat, value) for repeat, value in enumerate([15.0, 10.0, 20.0])]
    rows += [row("vllm", DECODE, repeat, 10.0) for repeat in range(3)]
    rows += [row(OURS, FIRST, 0, 0.25), row("vllm", FIRST, 0, None, "TimeoutError")]
    text = report.markdown(result(rows, [OURS, "vllm"]))
    lines = text.splitlines()
    assert f"| workload | {OURS} | vllm |" in lines
    assert f"| {DECODE.title}, tokens/s | 15.0 (10.0–20.0) | 10.0 |" in lines
    assert f"| {FIRST.title}, s | 0.250 | failed |" in lines
    assert f"| {DECODE.title} | 1.50 (1.00–2.00); target ≥ 1.70: missed |" in lines
    assert f"- {OURS}: about {OURS}; torch 2.13.0" in lines


def test_the_table_replaces_what_is_between_the_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "benchmarks.md"
    report.write_between_markers(page, "first")
    assert page.read_text().startswith("# Benchmarks\n")
    page.write_text(page.read_text().replace("# Benchmarks\n", "# Ours\n\nProse before.\n") + "Prose after.\n")
    report.write_between_markers(page, "second")
    text = page.read_text()
    assert text.startswith("# Ours\n\nProse before.\n")
    assert text.endswith("Prose after.\n")
    assert "second" in text
    assert "first" not in text
    assert text.count(report.BEGIN) == text.count(report.END) == 1
