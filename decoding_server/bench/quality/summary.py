"""From raw rows to numbers: accuracy and cost of each strategy under each budget, paired differences, the frontier of
error against FLOPs, and the best strategy for each budget (arXiv 2408.00724)."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from decoding_server.bench.answer_grading import TIMEOUT
from decoding_server.bench.intervals import paired_difference, wilson
from decoding_server.bench.rows import Row
from strategies.search.compute_frontier import FrontierPoint, best_at_budget, pareto_frontier

DIGITS = 4
COSTS = ("forward_tokens", "output_tokens", "flops", "seconds")
FRONTIER_COSTS = ("flops", "forward_tokens", "output_tokens", "seconds")
"""What the frontier is drawn against: the first of these that every answer knows. A strategy none of whose requests
fits the context has no cost, and no place on it."""

Entry = dict[str, Any]
Cell = tuple[str, float | None]
"""Strategy and budget."""
Scores = dict[str, float]
"""By task: the share of its seeds that were right."""


def results(rows: Sequence[Row], names: Sequence[str]) -> Entry:
    """names: strategies in order; the first is what the others are compared with."""
    shared = compared(rows)
    grouped: dict[Cell, list[Row]] = defaultdict(list)
    for row in shared:
        grouped[row["strategy"], row["budget"]].append(row)
    budgets = sorted({budget for _, budget in grouped}, key=lambda one: (one is None, one or 0))
    cells = [(name, budget) for budget in budgets for name in names if (name, budget) in grouped]
    scores = {cell: per_task(grouped[cell], "correct") for cell in cells}
    table = []
    for name, budget in cells:
        entry = of_cell(name, budget, grouped[name, budget], scores[name, budget])
        base = scores.get((names[0], budget))
        entry["difference"] = (
            None if name == names[0] or base is None else rounded(paired_difference(scores[name, budget], base))
        )
        table.append(entry)
    answered = [entry for entry in table if entry["errors"] < entry["rows"]]
    cost = next((cost for cost in FRONTIER_COSTS if all(entry[cost] is not None for entry in answered)), None)
    cost = cost if answered else None
    return {
        "rows": len(shared),
        "compared_tasks": len({row["task"] for row in shared}),
        "table": table,
        "pairs": pairs(scores),
        "frontier_cost": cost,
        "frontier": [] if cost is None else frontier(answered, cost),
        "optimal": [] if cost is None else optimal(answered, scores, cost),
    }


def compared(rows: Sequence[Row]) -> list[Row]:
    """Those of (task, seed) pairs that every strategy has answered under every budget, so that all means are over the
    same ones. A further seed that has only begun adds what it has, and takes nothing away."""
    wanted = {(row["strategy"], row["budget"]) for row in rows}
    done: dict[tuple[str, int], set[Cell]] = defaultdict(set)
    for row in rows:
        done[row["task"], row["seed"]].add((row["strategy"], row["budget"]))
    return [row for row in rows if done[row["task"], row["seed"]] == wanted]


def of_cell(name: str, budget: float | None, rows: Sequence[Row], scores: Scores) -> Entry:
    widths = [row["width"] for row in rows if "width" in row]
    return {
        "strategy": name,
        "budget": budget,
        "tasks": len(scores),
        "rows": len(rows),
        "accuracy": mean(scores.values()),
        "interval": rounded(wilson(sum(scores.values()), len(scores))),
        **{cost: cost_of(rows, cost) for cost in COSTS},
        "answer_tokens": cost_of(rows, "answer_tokens"),
        "budget_ended": mean(float(row["budget_ended"]) for row in rows),
        "no_answer": mean(float(row["answer"] is None) for row in rows),
        "errors": sum("error" in row for row in rows),
        "grading_timeouts": sum(row.get("grading") == TIMEOUT for row in rows),
        "finish_reasons": counted(str(row.get("finish_reason")) for row in rows),
        "width": {name: mean(float(width[name]) for width in widths) for name in widths[0]} if widths else {},
    }


def cost_of(rows: Sequence[Row], cost: str) -> float | None:
    """The mean over tasks, in which what did not fit the context cost nothing; None where a server did not report it,
    or nothing did fit."""
    answered = [row for row in rows if "error" not in row]
    if not answered or any(row.get(cost) is None for row in answered):
        return None
    return mean(per_task([{**row, cost: row.get(cost, 0)} for row in rows], cost).values())


def pairs(scores: Mapping[Cell, Scores]) -> list[Entry]:
    """Every two strategies under one budget: the difference of the first to the second, by paired bootstrap."""
    found = []
    cells = list(scores)
    for i, (second, budget) in enumerate(cells):
        for first, other in cells[i + 1 :]:
            if other == budget:
                difference = rounded(paired_difference(scores[first, budget], scores[second, budget]))
                found.append({"budget": budget, "first": first, "second": second, "difference": difference})
    return found


def frontier(table: Sequence[Entry], cost: str) -> list[Entry]:
    """The cells that no cheaper or equally cheap one matches in error, by rising cost."""
    points = [FrontierPoint(entry[cost], 1 - entry["accuracy"], str(i)) for i, entry in enumerate(table)]
    return [
        {
            "strategy": table[int(point.label)]["strategy"],
            "budget": table[int(point.label)]["budget"],
            cost: point.flops,
            "error": round(point.error, DIGITS),
        }
        for point in pareto_frontier(points)
    ]


def optimal(table: Sequence[Entry], scores: Mapping[Cell, Scores], cost: str) -> list[Entry]:
    """For each budget, of everything measured under it or a smaller one: the cell of least error, the cheapest among
    equals; and the strategies under that budget whose paired interval to it holds zero, which the data can't tell
    apart from it."""
    found = []
    for budget in dict.fromkeys(entry["budget"] for entry in table):
        limit = float("inf") if budget is None else budget
        within = [entry for entry in table if (entry["budget"] or float("inf")) <= limit]
        points = [FrontierPoint(entry[cost], 1 - entry["accuracy"], str(i)) for i, entry in enumerate(within)]
        best = best_at_budget(points, float("inf"))
        assert best is not None, "a budget has entries"
        winner = within[int(best.label)]
        mine = scores[winner["strategy"], winner["budget"]]
        alike = []
        for name, other in scores:
            difference = paired_difference(scores[name, other], mine) if other == budget else None
            if difference is not None and name != winner["strategy"] and difference[1] <= 0 <= difference[2]:
                alike.append(name)
        found.append(
            {
                "budget": budget,
                "strategy": winner["strategy"],
                "measured_at": winner["budget"],
                "accuracy": winner["accuracy"],
                cost: winner[cost],
                "not_told_apart": alike,
            }
        )
    return found


def per_task(rows: Iterable[Row], field: str) -> Scores:
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        values[row["task"]].append(float(row[field]))
    return {task: statistics.fmean(found) for task, found in values.items()}


def mean(values: Iterable[float]) -> float:
    return round(statistics.fmean(values), DIGITS)


def rounded(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [round(value, DIGITS) for value in values]


def counted(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
