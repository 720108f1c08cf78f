"""The run: every missing (contender, question) on one model, rows to disk as they come, then the table."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoding_server.bench import provenance
from decoding_server.bench.answer_grading import AnswerGrader
from decoding_server.bench.progress import Show
from decoding_server.bench.rows import RowFile
from decoding_server.bench.search_study import summary
from decoding_server.bench.search_study.asking import Row, ask, key
from decoding_server.bench.search_study.contenders import SAMPLES, Contender, contenders
from decoding_server.bench.search_study.questions import Question, load
from models.loading import resolve
from models.torch_runtime.load import EngineOptions, load_runtime
from strategies.runtime import Runtime
from strategies.scoring.value import ValueFunction

Scorers = Callable[[Runtime], Mapping[str, ValueFunction]]


@dataclass(frozen=True, slots=True)
class Settings:
    """output: the folder of rows. questions: JSON lines. count: how many of them. concurrency: questions at once.
    only: contenders' names; empty is all. seconds: nothing begins after that."""

    output: Path
    questions: Path
    model: str | None = None
    count: int = 40
    concurrency: int = 2
    max_tokens: int = 320
    samples: int = SAMPLES
    value: str = "auto"
    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1,)
    seconds: float | None = None


class Study:
    """Raises ModelLoadError, OSError, ValueError."""

    def __init__(self, settings: Settings, scorers: Scorers, report: Show) -> None:
        self.settings = settings
        self._scorers = scorers
        self._report = report
        settings.output.mkdir(parents=True, exist_ok=True)
        self.questions = load(settings.questions, settings.count)
        every = contenders(settings.value, settings.samples)
        unknown = set(settings.only) - {one.name for one in every}
        if unknown:
            raise ValueError(f"unknown contenders {sorted(unknown)}; there are {[one.name for one in every]}")
        self.contenders = [one for one in every if not settings.only or one.name in settings.only]
        self.rows = RowFile(settings.output / "rows.jsonl")
        self.runs = RowFile(settings.output / "runs.jsonl")

    def missing(self) -> list[tuple[Contender, Question, int]]:
        """Question by question, so that a run that is cut off has compared all contenders on some."""
        return [
            (contender, question, seed)
            for seed in self.settings.seeds
            for question in self.questions
            for contender in self.contenders
            if not self.rows.has([key(contender, question, seed)])
        ]

    def run(self) -> bool:
        """Measures what is missing; False when the time was up before the end."""
        todo = self.missing()
        if not todo:
            return True
        files = resolve(self.settings.model)
        self._report(f"{files.name}: loading", 0, len(todo))
        runtime = load_runtime(files, EngineOptions(max_num_seqs=64, max_model_len=2048))
        self.runs.append([self._facts(runtime.info.name)])
        try:
            with AnswerGrader() as grader:
                return asyncio.run(self._measure(runtime, grader, todo))
        finally:
            runtime.close()

    async def _measure(
        self, runtime: Runtime, grader: AnswerGrader, todo: list[tuple[Contender, Question, int]]
    ) -> bool:
        began, done, total = time.monotonic(), 0, len(todo)
        scorers = self._scorers(runtime)
        places = asyncio.Semaphore(self.settings.concurrency)
        complete = True

        async def one(contender: Contender, question: Question, seed: int) -> None:
            nonlocal done, complete
            async with places:
                limit = self.settings.seconds
                if limit is not None and time.monotonic() - began > limit:
                    complete = False
                    return
                row = await ask(
                    runtime, scorers, grader, contender, question, seed=seed, max_tokens=self.settings.max_tokens
                )
                self.rows.append([row])
                done += 1
                self._report(f"{contender.name}, question {question.number}", done, total)

        # One after the other within the window, in order: a fast contender doesn't run ahead of a slow one.
        await asyncio.gather(*(one(*cell) for cell in todo))
        return complete

    def _facts(self, model: str) -> Row:
        settings = self.settings
        return {
            **provenance.facts(),
            "model": model,
            "questions": len(self.questions),
            "concurrency": settings.concurrency,
            "max_tokens": settings.max_tokens,
            "value": settings.value,
            "contenders": {one.name: {"temperature": one.temperature, "search": one.search} for one in self.contenders},
        }

    def results(self) -> dict[str, Any] | None:
        """The table and what it was measured on; None before the first row. Written to results.json too."""
        if not self.rows.rows or not self.runs.rows:
            return None
        found = {"run": self.runs.rows[-1], "table": summary.table(self.rows.rows)}
        (self.settings.output / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return found
