"""From stored solutions to examples: split by question, every prefix labelled with its solution's outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoding_server.value_training.questions import ordered
from decoding_server.value_training.rollout_store import QuestionRollouts
from strategies.scoring.head_training import Examples

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prefixes:
    """All prefixes of some questions' solutions; arrays of [N] but for features [N, d].

    position: steps so far / steps of the solution, 0 at the root. finished: the whole of a solution that was not cut
    off. solution: number of the solution, ascending by question; last: its whole, cut off or not. A prefix weighs
    1 / (number of prefixes of its solution). The root counts once for every solution: its label is their mean.
    """

    features: NDArray[np.float32]
    outcomes: Floats
    weights: Floats
    position: Floats
    finished: NDArray[np.bool_]
    last: NDArray[np.bool_]

    @property
    def examples(self) -> Examples:
        return Examples(self.features, self.outcomes, self.weights)


@dataclass(frozen=True, slots=True)
class Split:
    """Questions by what they are used for."""

    train: list[QuestionRollouts]
    dev: list[QuestionRollouts]
    test: list[QuestionRollouts]


def split(rows: Sequence[QuestionRollouts], held_out: float, seed: int) -> Split:
    """A share `held_out` of the questions, at least one, for dev and as many for test, by a hash of the question.

    Raises ValueError for fewer than three questions with solutions.
    """
    by_id = {row.qid: row for row in rows if row.rollouts}
    if len(by_id) < 3:
        raise ValueError(f"{len(by_id)} questions have solutions; at least three are needed")
    order = [by_id[qid] for qid in ordered(list(by_id), seed)]
    count = max(1, min(round(held_out * len(order)), (len(order) - 1) // 2))
    return Split(order[2 * count :], order[count : 2 * count], order[:count])


def prefixes(rows: Sequence[QuestionRollouts], features: Mapping[str, NDArray[np.float32]]) -> Prefixes:
    """The prefixes of these questions, solution by solution, each from its root to its whole."""
    parts: list[NDArray[np.float32]] = []
    outcomes, weights, position, finished, last = [], [], [], [], []
    for row in rows:
        states = features[row.qid]
        start = 1
        for rollout in row.rollouts:
            steps = len(rollout.step_ends)
            parts += [states[:1], states[start : start + steps]]
            start += steps
            outcomes += [float(rollout.correct)] * (steps + 1)
            weights += [1.0 / (steps + 1)] * (steps + 1)
            position += [k / steps for k in range(steps + 1)]
            finished += [False] * steps + [rollout.finish_reason == "stop"]
            last += [False] * steps + [True]
    return Prefixes(
        np.concatenate(parts),
        np.array(outcomes),
        np.array(weights),
        np.array(position),
        np.array(finished, np.bool_),
        np.array(last, np.bool_),
    )
