"""The command: sample, split, fit, calibrate, report, write."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from decoding_server.value_training.calibration import all_values, calibrate, write_calibration
from decoding_server.value_training.dataset import prefixes, split
from decoding_server.value_training.questions import Question, ordered, read_questions
from decoding_server.value_training.report import evaluate, faults, selection_line, table
from decoding_server.value_training.rollout_store import QuestionRollouts, RolloutStore
from decoding_server.value_training.rollouts import RolloutSettings, collect
from decoding_server.values import Scorers
from strategies.runtime import Runtime
from strategies.scoring.head_training import train_head
from strategies.scoring.value import ValueFunction
from strategies.scoring.value_head_file import Origin, save_head

UNFINISHED = 3
"""Exit code: time ran out, or it was interrupted; the same command goes on."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """held_out: share of the questions for dev, and as many for test. questions: how many, None for all. calibrate: a
    value function to fit a calibration file for, instead of training a head."""

    settings: RolloutSettings
    questions: int | None
    held_out: float
    arch: Literal["linear", "mlp"]
    batch: int
    time_limit: float | None
    calibrate: str | None = None


def train_value(
    path: Path, output: Path, plan: TrainingPlan, load: Callable[[], Runtime], scorers: Callable[[Runtime], Scorers]
) -> int:
    """Returns an exit code. scorers: loads the value functions, one of which is to be calibrated. Raises
    QuestionsError, StoreError, ModelLoadError, ValueError for what can't be learnt from."""
    console = Console()
    questions = chosen(read_questions(path), plan.questions, plan.settings.seed)
    runtime = load()
    try:
        scorer = None if plan.calibrate is None else scorers(runtime)[plan.calibrate]
        origin = Origin.of(runtime.info, runtime.tokenizer)
        settings = asdict(plan.settings) | {"model": runtime.info.name, **origin.as_json()["model"]}
        with RolloutStore(output, settings, runtime.info.hidden_size) as store:
            if not sample(runtime, questions, plan, store, console):
                console.print(f"{len(store.rows)} questions are done; the same command goes on")
                return UNFINISHED
            wanted = {question.qid for question in questions}
            rows = [row for row in store.rows if row.qid in wanted]
            if scorer is None:
                fit(rows, store, plan, origin, output, console)
            else:
                fit_calibration(runtime, scorer, questions, rows, plan, output, console)
    finally:
        runtime.close()
    return 0


def chosen(questions: list[Question], count: int | None, seed: int) -> list[Question]:
    """So many of them at random; more of them only add to fewer."""
    by_id = {question.qid: question for question in questions}
    return [by_id[qid] for qid in ordered(list(by_id), seed)[:count]]


def sample(
    runtime: Runtime, questions: list[Question], plan: TrainingPlan, store: RolloutStore, console: Console
) -> bool:
    """All solutions that are missing; False where it ended before."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("questions, {task.description}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        wanted = {question.qid for question in questions}
        task = progress.add_task("", total=len(questions), completed=len(store.done & wanted))

        def on_question(_: QuestionRollouts) -> None:
            outcomes = [rollout.correct for row in store.rows for rollout in row.rollouts]
            right = sum(outcomes) / max(1, len(outcomes))
            progress.update(task, advance=1, description=f"{len(outcomes)} solutions, {right:.1%} right")

        async def run() -> bool:
            loop, this = asyncio.get_running_loop(), asyncio.current_task()
            assert this is not None
            with contextlib.suppress(NotImplementedError, RuntimeError):  # outside the main thread
                loop.add_signal_handler(signal.SIGTERM, this.cancel)
            limit = plan.time_limit
            return await collect(
                runtime, questions, plan.settings, store, batch=plan.batch, time_limit=limit, on_question=on_question
            )

        try:
            return asyncio.run(run())
        except (KeyboardInterrupt, asyncio.CancelledError):
            return False


def fit(
    rows: list[QuestionRollouts],
    store: RolloutStore,
    plan: TrainingPlan,
    origin: Origin,
    output: Path,
    console: Console,
) -> None:
    """Trains, reports and writes. Raises ValueError."""
    features = store.features()
    parts = split(rows, plan.held_out, plan.settings.seed)
    train, dev, test = (prefixes(part, features) for part in (parts.train, parts.dev, parts.test))
    console.print(
        f"{len(parts.train)} questions to train on ({len(train.outcomes)} prefixes), {len(parts.dev)} dev, "
        f"{len(parts.test)} test"
    )
    rate = float(train.outcomes[train.last].mean())
    if not 0.05 <= rate <= 0.95:
        console.print(f"warning: {rate:.1%} of the training solutions are right; a head has little to learn from")
    trained = train_head(train.examples, dev.examples, [plan.arch], plan.settings.seed)
    metrics = evaluate(trained.head.values(test.features), test, parts.test)
    reasons = faults(metrics, trained.uncalibrated)
    solutions = [rollout for row in rows for rollout in row.rollouts]
    console.print(table(metrics))
    console.print(selection_line(metrics, plan.settings.rollouts))
    settings = plan.settings
    save_head(
        output,
        trained.head,
        origin,
        train={
            "questions": len(rows),
            "train_questions": len(parts.train),
            "dev_questions": len(parts.dev),
            "test_questions": len(parts.test),
            "rollouts": settings.rollouts,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "seed": settings.seed,
            "prompt": settings.prompt,
            "system": settings.system,
            "positive_rate": sum(rollout.correct for rollout in solutions) / len(solutions),
            "cut_off": sum(rollout.finish_reason == "length" for rollout in solutions) / len(solutions),
            "setting": trained.setting,
            "target": "outcome",
        },
        metrics=metrics,
        accepted=not reasons,
    )
    console.print(f"{trained.setting}; written to {output}")
    if reasons:
        console.print('not accepted, so that the value "auto" skips it: ' + "; ".join(reasons))


def fit_calibration(
    runtime: Runtime,
    scorer: ValueFunction,
    questions: list[Question],
    rows: list[QuestionRollouts],
    plan: TrainingPlan,
    output: Path,
    console: Console,
) -> None:
    """Values every prefix, fits, reports and writes. Raises ValueError."""
    assert plan.calibrate is not None
    parts = split(rows, plan.held_out, plan.settings.seed)
    by_id = {question.qid: question for question in questions}
    valued = [row for row in rows if row.rollouts]
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("questions valued"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(valued))
        values = asyncio.run(
            all_values(runtime, scorer, valued, by_id, plan.settings, lambda: progress.update(task, advance=1))
        )
    platt, metrics = calibrate(values, parts)
    console.print(table(metrics))
    console.print(selection_line(metrics, plan.settings.rollouts))
    path = output / f"calibration-{plan.calibrate}.json"
    write_calibration(path, plan.calibrate, runtime.info.name, platt, metrics)
    console.print(f"sigmoid({platt.a:.3f} logit(v) {platt.b:+.3f}); written to {path}")
