"""Fits a calibration file for a value function that needs no training, to the same solutions."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoding_server.value_training.dataset import Split, prefixes
from decoding_server.value_training.questions import Question
from decoding_server.value_training.report import evaluate
from decoding_server.value_training.rollout_store import QuestionRollouts
from decoding_server.value_training.rollouts import RolloutSettings, prefix_nodes, search_context
from strategies.runtime import Runtime
from strategies.scoring.calibration import Platt, fit_platt, logit
from strategies.scoring.value import ValueFunction

AT_ONCE = 4
"""Questions whose prefixes are valued at the same time."""


async def all_values(
    runtime: Runtime,
    scorer: ValueFunction,
    rows: Sequence[QuestionRollouts],
    questions: Mapping[str, Question],
    settings: RolloutSettings,
    on_question: Callable[[], None] = lambda: None,
) -> dict[str, NDArray[np.float32]]:
    """The value of every prefix, in the order of the features: [num_features, 1] by question."""
    found: dict[str, NDArray[np.float32]] = {}
    waiting = iter(rows)

    async def work() -> None:
        for row in waiting:
            context = search_context(runtime, questions[row.qid], settings)
            nodes = [context.root]
            for rollout in row.rollouts:
                nodes += prefix_nodes(context, rollout.token_ids, rollout.step_ends)
            found[row.qid] = np.array(await scorer.values(context, nodes), np.float32)[:, None]
            on_question()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return found


def calibrate(values: Mapping[str, NDArray[np.float32]], parts: Split) -> tuple[Platt, dict[str, Any]]:
    """The scaling fitted on the training and dev questions, and its figures on the test questions. Raises ValueError
    where the values rank right answers no higher than wrong ones, or all have one outcome."""
    fitted, test = (prefixes(part, values) for part in ([*parts.train, *parts.dev], parts.test))
    if fitted.examples.one_sided:
        raise ValueError("every solution has the same outcome: there is nothing to fit")
    platt = fit_platt(logit(fitted.features[:, 0].astype(np.float64)), fitted.outcomes, fitted.weights)
    scaled = platt(logit(test.features[:, 0].astype(np.float64)))
    return platt, evaluate(scaled, test, parts.test)


def write_calibration(path: Path, kind: str, model: str, platt: Platt, metrics: Mapping[str, Any]) -> None:
    """The file that `--value-calibration` reads."""
    overall = metrics["overall"]
    content = {"kind": kind, "model": model, "method": "platt", "a": platt.a, "b": platt.b}
    content |= {name: overall[name] for name in ("n", "auc", "ece", "brier")}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
