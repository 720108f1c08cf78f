"""What a trained head is worth on the test questions, and whether it is accepted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from decoding_server.value_training.dataset import Floats, Prefixes
from decoding_server.value_training.rollout_store import QuestionRollouts
from strategies.scoring.value_metrics import measure
from strategies.search.voting import best_of_n, vote

QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
LEAST_FINISHED_AUC, LEAST_AUC, MOST_ECE = 0.75, 0.65, 0.08


def evaluate(values: Floats, test: Prefixes, rows: Sequence[QuestionRollouts]) -> dict[str, Any]:
    """Figures of the values [N] of the test prefixes: overall, at the root, in quarters of the solution, finished only;
    then how often the best by value is right, the majority, and a solution on average."""
    subsets: dict[str, NDArray[np.bool_]] = {
        "overall": np.ones(len(values), np.bool_),
        "root": test.position == 0,
        **{
            f"steps {int(100 * low)}-{int(100 * high)}%": (test.position > low) & (test.position <= high)
            for low, high in pairwise(QUARTERS)
        },
        "finished": test.finished,
    }
    figures: dict[str, Any] = {
        name: asdict(measure(values[rows_], test.outcomes[rows_], test.weights[rows_]))
        for name, rows_ in subsets.items()
    }
    return figures | {"selection": selection(values[test.last], rows)}


def selection(values: Floats, rows: Sequence[QuestionRollouts]) -> dict[str, Any]:
    """Accuracy over questions of best@R by value, majority@R and a mean solution. values: of whole solutions, in order.

    Solutions that were cut off have no answer to vote with, and are chosen only where all were.
    """
    best, majority, mean, start = [], [], [], 0
    for row in rows:
        scores = values[start : start + len(row.rollouts)]
        start += len(row.rollouts)
        answers = [r.answer_key if r.finish_reason == "stop" else None for r in row.rollouts]
        chosen = best_of_n(scores.tolist(), answers)
        best.append(chosen is not None and row.rollouts[chosen].correct)
        majority.append(vote(answers).answer == row.gold)
        mean.append(float(np.mean([rollout.correct for rollout in row.rollouts])))
    return {
        "questions": len(rows),
        "solutions": start,
        "best": float(np.mean(best)),
        "majority": float(np.mean(majority)),
        "mean": float(np.mean(mean)),
        "any": float(np.mean([any(rollout.correct for rollout in row.rollouts) for row in rows])),
    }


def faults(metrics: Mapping[str, Any], uncalibrated: str | None) -> list[str]:
    """Why a head is not accepted; none if it is."""
    found = [] if uncalibrated is None else [f"not calibrated: {uncalibrated}"]
    finished, overall, chosen = metrics["finished"], metrics["overall"], metrics["selection"]
    for label, value, least in (
        ("finished AUC", finished["auc"], LEAST_FINISHED_AUC),
        ("overall AUC", overall["auc"], LEAST_AUC),
    ):
        if value is None:
            found.append(f"{label} is undefined: the test outcomes are all equal")
        elif value < least:
            found.append(f"{label} {value:.3f} is below {least}")
    if overall["ece"] > MOST_ECE:
        found.append(f"ECE {overall['ece']:.3f} is above {MOST_ECE}")
    if chosen["best"] < chosen["mean"]:
        found.append(f"best@R {chosen['best']:.3f} is below the mean accuracy {chosen['mean']:.3f}")
    return found


def table(metrics: Mapping[str, Any]) -> Table:
    """The figures, for a terminal."""
    shown = Table(title="values on the test questions")
    for name in ("prefixes", "n", "right", "AUC", "Brier", "constant", "ECE"):
        shown.add_column(name, justify="left" if name == "prefixes" else "right")
    for name, one in metrics.items():
        if name != "selection":
            keys = ("positive_rate", "auc", "brier", "constant_brier", "ece")
            shown.add_row(name, str(one["n"]), *("-" if one[key] is None else f"{one[key]:.3f}" for key in keys))
    return shown


def selection_line(metrics: Mapping[str, Any], rollouts: int) -> str:
    one = metrics["selection"]
    return (
        f"{one['questions']} test questions: best@{rollouts} by value {one['best']:.3f}, majority@{rollouts} "
        f"{one['majority']:.3f}, mean {one['mean']:.3f}, any of {rollouts} {one['any']:.3f}"
    )
