"""The numbers of `bench code`: intervals, curves, what visible tests are worth, distances."""

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding_server.bench.code import summary
from decoding_server.bench.intervals import Z, paired_difference, wilson
from strategies.scoring.program_metrics import edit_distance

Rows = list[dict[str, Any]]


def row(task: str, programs: list[tuple[bool, float, int]], passed: bool = False, **more: Any) -> dict[str, Any]:
    """programs: (right, score, tokens so far)."""
    return {
        "strategy": "s", "task": task, "passed": passed, "outcome": "pass" if passed else "wrong_value",
        "accepted": None, "source": "x = 1\n", "output_tokens": 7, "target_tokens": 9, "cached_tokens": 0,
        "flops": 1e9, "seconds": 1.0, "search": {"tests": {"given": 2}},
        "programs": [
            {"source": f"def f():\n    return {i}\n", "passed": right, "score": score, "tokens_so_far": tokens}
            for i, (right, score, tokens) in enumerate(programs)
        ],
        **more,
    }  # fmt: skip


PROGRAM = st.tuples(st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 50))
PROGRAMS = st.lists(PROGRAM, min_size=1, max_size=6)


@st.composite
def many_rows(draw: st.DrawFn) -> Rows:
    found = []
    for i, programs in enumerate(draw(st.lists(PROGRAMS, min_size=1, max_size=6))):
        total, spent = 0, []
        for right, score, tokens in programs:
            total += tokens
            spent.append((right, score, total))
        found.append(row(f"t{i}", spent, draw(st.booleans()), accepted=draw(st.sampled_from([None, True, False]))))
    return found


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.floats(0, n), st.just(n))))
def test_wilson_solves_its_equation(case: tuple[float, int]) -> None:
    """Its ends are the shares p0 with (p - p0)^2 = z^2 p0 (1 - p0) / n."""
    successes, trials = case
    p = successes / trials
    low, high = wilson(successes, trials)
    assert 0 <= low <= p + 1e-12
    assert p - 1e-12 <= high <= 1
    for end in (low, high):
        assert (p - end) ** 2 == pytest.approx(Z * Z * end * (1 - end) / trials, abs=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_paired_difference(pairs: list[tuple[bool, bool]]) -> None:
    ours = {str(i): float(a) for i, (a, _) in enumerate(pairs)}
    base = {str(i): float(b) for i, (_, b) in enumerate(pairs)}
    found, other = paired_difference(ours, base), paired_difference(base, ours)
    assert found is not None
    assert other is not None
    assert found == pytest.approx((-other[0], -other[2], -other[1]))
    assert found[1] - 1e-9 <= found[0] <= found[2] + 1e-9
    assert paired_difference(ours, {}) is None


@given(many_rows())
def test_curves_count_what_they_say(rows: Rows) -> None:
    entry, passed = summary.of_strategy("s", rows, 6)
    for j in range(1, 7):
        solved = sum(any(one["passed"] for one in row["programs"][:j]) for row in rows)
        assert entry["pass_any"][j - 1] == pytest.approx(solved / len(rows), abs=1e-4)
    for tokens, share in [*((int(t), s) for t, s in entry["pass_any_tokens"].items()), *entry["tokens_curve"]]:
        solved = sum(any(one["passed"] and one["tokens_so_far"] <= tokens for one in row["programs"]) for row in rows)
        assert share == pytest.approx(solved / len(rows), abs=1e-4)
    if entry["tokens_curve"]:
        assert entry["tokens_curve"][-1][1] == entry["pass_any"][-1]
    assert entry["pass_1"] == pytest.approx(sum(passed.values()) / len(rows), abs=1e-4)


@given(st.lists(st.tuples(st.sampled_from([None, True, False]), st.booleans()), max_size=20))
def test_what_visible_tests_are_worth(pairs: list[tuple[bool | None, bool]]) -> None:
    found = summary.worth(pairs)
    known = [(accepted, right) for accepted, right in pairs if accepted is not None]
    if not known:
        assert found is None
        return
    assert found is not None
    cells = [found[f"{a}_{b}"] for a in ("accepted", "rejected") for b in ("right", "wrong")]
    assert cells == [known.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
    if found["precision"] is not None:
        assert found["precision"] == pytest.approx(cells[0] / (cells[0] + cells[1]), abs=1e-4)
    if found["recall"] is not None:
        assert found["recall"] == pytest.approx(cells[0] / (cells[0] + cells[2]), abs=1e-4)


def test_the_published_confusion_gives_the_published_rates() -> None:
    """Shares of the authors' run on HumanEval in eighths of a per cent: precision 89.8 %, recall 66.7 %."""
    counts = {(True, True): 440, (False, True): 220, (True, False): 50, (False, False): 90}
    found = summary.worth(pair for pair, count in counts.items() for _ in range(count))
    assert found is not None
    assert (found["precision"], found["recall"]) == (0.898, 0.6667)


def test_seeds_of_a_task_share_its_weight() -> None:
    rows = [row("a", [(True, 1.0, 5)], True), row("a", [(False, 1.0, 5)]), row("b", [(False, 0.0, 5)])]
    entry, passed = summary.of_strategy("s", rows, 2)
    assert passed == {"a": 0.5, "b": 0.0}
    assert (entry["tasks"], entry["rows"], entry["pass_1"], entry["pass_any"]) == (2, 3, 0.25, [0.25, 0.25])


def test_a_search_that_runs_nothing_has_one_program() -> None:
    entry, _ = summary.of_strategy("s", [row("a", [], True), row("b", [])], 3)
    assert (entry["pass_any"], entry["programs"], entry["pass_any_tokens"]["250"]) == ([0.5] * 3, 1.0, 0.5)
    assert entry["diversity"] is None


def test_the_table_compares_with_the_first_strategy() -> None:
    rows = [row("a", [], True), row("b", [])]
    rows += [{**row("a", [], True), "strategy": "t"}, {**row("b", [], True), "strategy": "t"}]
    first, second = summary.table(rows, ["t", "missing", "s"], 1)
    assert (first["strategy"], first["difference"]) == ("t", None)
    assert second["difference"][0] == -0.5


def test_only_tasks_that_every_strategy_finished_are_compared() -> None:
    done = [row(task, [], strategy=name, seed=seed) for task in "ab" for name in "st" for seed in (1, 2)]
    begun = [row("c", [], strategy="s", seed=1), row("c", [], strategy="s", seed=2), row("c", [], strategy="t", seed=1)]
    # Of the task that one strategy has not finished, the seed counts that both have.
    assert summary.compared([*done, *begun], ["s", "t"]) == [*done, begun[0], begun[2]]
    assert summary.compared(begun[:2], ["s", "t"]) == []
    assert summary.compared([row("a", [], strategy="s", seed=1)], ["s", "t"]) == []


def test_a_seed_that_has_begun_takes_nothing_away() -> None:
    done = [row(task, [], strategy=name, seed=1) for task in "ab" for name in "st"]
    begun = [row("a", [], strategy="s", seed=2)]
    assert summary.compared([*done, *begun], ["s", "t"]) == done


def plain_edit_distance(a: str, b: str) -> int:
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        line = [i]
        for j, y in enumerate(b, 1):
            line.append(min(above[j] + 1, line[-1] + 1, above[j - 1] + (x != y)))
        above = line
    return above[-1]


@given(st.text("abc", max_size=80), st.text("abc", max_size=80))
def test_edit_distance_cell_by_cell(a: str, b: str) -> None:
    assert edit_distance(a, b) == plain_edit_distance(a, b)


@given(st.lists(st.text("ab \n", min_size=1, max_size=30), min_size=2, max_size=5))
def test_distances_of_programs(sources: list[str]) -> None:
    distance = summary.tfidf_distance(sources)
    assert -1e-9 <= distance <= 1 + 1e-9
    assert summary.tfidf_distance(["return a + bb"] * 3) == pytest.approx(0)
    assert summary.tfidf_distance(["aa bb", "cc dd"]) == pytest.approx(1)
    found = summary.diversity([{**row("t", []), "programs": [{"source": one} for one in sources]}])
    longest = max(map(len, sources))
    pairs = [plain_edit_distance(a, b) / longest for a, b in combinations(sources, 2)]
    assert found is not None
    assert found["levenshtein"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-4)
