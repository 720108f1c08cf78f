"""The run: every missing (strategy, task, budget, seed) on one model, rows to disk as they come, then the results."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from decoding_server.bench import identity, provenance
from decoding_server.bench.answer_grading import verifies
from decoding_server.bench.endpoint import Endpoint, Unusable
from decoding_server.bench.progress import Show
from decoding_server.bench.quality import summary
from decoding_server.bench.quality.contenders import Strategy
from decoding_server.bench.quality.graders import Grader
from decoding_server.bench.quality.measuring import Asking, measure
from decoding_server.bench.quality.tasks import Source, Task, Tasks
from decoding_server.bench.rows import Row, RowFile
from decoding_server.bench.subset import SUBSET_SEED
from decoding_server.bench.workers import Workers
from strategies.errors import InvalidRequest

ROWS, RUNS, RESULTS = "rows.jsonl", "runs.jsonl", "results.json"
KIND = "quality"

Open = Callable[[], Awaitable[tuple[Endpoint, Grader, Callable[[], Awaitable[None]]]]]
"""Opens what a run needs: whom to ask, who judges, and how to close both."""
Chain = tuple[Strategy, Task, int]
"""A strategy's answers to a task with one seed: one for each budget, in rising order."""


@dataclass(frozen=True, slots=True)
class Settings:
    """output: the folder of rows. model, engine: what is measured, of `identity.model_of` and `engine_of`. budgets:
    None alone is no budget. concurrency: answers at once. seconds: nothing begins after that. grading: the grader's
    name, tolerance and pattern."""

    output: Path
    source: Source
    model: str
    asking: Asking
    budgets: tuple[float | None, ...] = (None,)
    count: int | None = None
    subset: int = SUBSET_SEED
    seeds: tuple[int, ...] = (1,)
    concurrency: int = 4
    seconds: float | None = None
    grading: tuple[Any, ...] = ()
    label: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Study:
    """Raises OSError where the folder can't be made."""

    settings: Settings
    dataset: Tasks
    strategies: list[Strategy]
    show: Show
    tasks: list[Task] = field(init=False)
    rows: RowFile = field(init=False)
    runs: RowFile = field(init=False)
    failed: list[str] = field(init=False, default_factory=list)
    _prompts: dict[str, int] = field(init=False, default_factory=dict)
    _data: str = field(init=False)
    _verifies: bool | None = field(init=False)
    _digests: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.tasks = self.dataset.subset(settings.count, settings.subset)
        data = json.dumps([[task.name, task.prompt, task.gold] for task in self.dataset.tasks])
        self._verifies = verifies() if self.dataset.grader == "math" else None
        self._data = hashlib.sha256(data.encode()).hexdigest()
        self._digests = {one.name: self.digest(one) for one in self.strategies}
        settings.output.mkdir(parents=True, exist_ok=True)
        self.rows = RowFile(settings.output / ROWS)
        self.runs = RowFile(settings.output / RUNS)

    def digest(self, strategy: Strategy) -> str:
        settings = self.settings
        return identity.digest(
            [
                settings.model,
                settings.engine,
                strategy.body,
                [asdict(scale) for scale in strategy.scales],
                asdict(settings.asking),
                settings.grading,
                self._verifies,
                self.dataset.sha256,
                self._data,
            ]
        )

    def key(self, strategy: Strategy, task: Task, budget: float | None, seed: int) -> str:
        shown = "-" if budget is None else str(budget)
        return f"{strategy.name}|{shown}|{task.name}|{seed}|{self._digests[strategy.name]}"

    def keys(self, chain: Chain) -> list[str]:
        strategy, task, seed = chain
        return [self.key(strategy, task, budget, seed) for budget in self.settings.budgets]

    def chains(self) -> list[Chain]:
        """Task by task, so that a run that is cut off has compared all strategies on some."""
        return [
            (strategy, task, seed)
            for seed in self.settings.seeds
            for task in self.tasks
            for strategy in self.strategies
        ]

    def all_keys(self) -> list[str]:
        return [key for chain in self.chains() for key in self.keys(chain)]

    def missing(self) -> list[str]:
        return [key for key in self.all_keys() if not self.rows.has([key])]

    async def run(self, opened: Open) -> bool:
        """Measures what is missing; False when the time was up, or cells failed, before the end.

        Raises DecodingError where nothing can be measured like this.
        """
        total, missing = len(self.all_keys()), len(self.missing())
        if not missing:
            return True
        self.show("opening", total - missing, total)
        endpoint, grader, close = await opened()
        try:
            digests = self._digests.values()
            identity.check_model(endpoint.model, digests, self.rows.rows, self.runs.rows, self.settings.output)
            facts = self._facts(endpoint.model, extended=endpoint.extended)
            run = {**await provenance.facts_of(endpoint), **facts}
            self.runs.append([run])
            workers = Workers(self.settings.concurrency, self.settings.seconds, self.show, total - missing, total)
            todo = [chain for chain in self.chains() if not self.rows.has(self.keys(chain))]
            try:
                await workers.each(todo, lambda chain: self._measure(chain, workers, endpoint, grader, run["key"]))
            finally:
                self.failed = workers.failed
            return not workers.late and not workers.failed
        finally:
            grader.close()
            await close()

    async def _measure(self, chain: Chain, workers: Workers, endpoint: Endpoint, grader: Grader, run: str) -> None:
        strategy, task, seed = chain
        for budget, key in zip(self.settings.budgets, self.keys(chain), strict=True):
            if self.rows.has([key]):
                continue
            shown = "" if budget is None else f" @ {budget:g}"
            what = f"{strategy.name}{shown}, {task.name}"

            async def cell(budget: float | None = budget, key: str = key, what: str = what) -> str:
                try:
                    row = self._known(chain, budget, key) or await self._asked(chain, budget, key, endpoint, grader)
                except (InvalidRequest, Unusable) as error:
                    raise Unusable(f"{what}: {error}") from error
                self.rows.append([{**row, "seed": seed, "run": row.get("run", run)}])
                return "right" if row["correct"] else "does not fit the context" if "error" in row else "wrong"

            await workers.cell(what, cell)

    async def _asked(self, chain: Chain, budget: float | None, key: str, endpoint: Endpoint, grader: Grader) -> Row:
        strategy, task, seed = chain
        return await measure(
            endpoint,
            grader,
            self.settings.asking,
            strategy,
            task,
            budget,
            key=key,
            seed=seed_of(seed, task),
            prompt_tokens=await self._prompt_tokens(endpoint, strategy, task),
        )

    def _known(self, chain: Chain, budget: float | None, key: str) -> Row | None:
        """The row of a smaller budget, where it was no limit and the strategy does not look at it: it is measured once,
        and `same_as` says where. Not for seconds, which are never the same twice."""
        strategy, _, _ = chain
        if not strategy.budget_blind or self.settings.asking.unit == "seconds" or budget is None:
            return None
        by_key = {row["key"]: row for row in self.rows.rows}
        for smaller, other in zip(self.settings.budgets, self.keys(chain), strict=True):
            row = by_key.get(other)
            if row is None or smaller is None or smaller >= budget or row["budget_ended"] or "error" in row:
                continue
            return {**row, "key": key, "budget": budget, "same_as": row.get("same_as", other)}
        return None

    async def _prompt_tokens(self, endpoint: Endpoint, strategy: Strategy, task: Task) -> int:
        """Asked once for each task, and only where a width depends on it."""
        asking = self.settings.asking
        if not strategy.scales or asking.unit != "forward_tokens" or asking.prompt_cost is not None:
            return 0
        if task.name not in self._prompts:
            self._prompts[task.name] = await endpoint.tokens(asking.messages(task))
        return self._prompts[task.name]

    def _facts(self, model: str, *, extended: bool) -> Row:
        settings, asking = self.settings, self.settings.asking
        return {
            "kind": KIND,
            "model": model,
            "label": settings.label or model,
            "extended": extended,
            "dataset": self.dataset.title,
            "dataset_sha256": self.dataset.sha256,
            "grader": self.dataset.grader,
            **({} if self._verifies is None else {"math_verify": self._verifies}),
            "tasks": len(self.tasks),
            "of": len(self.dataset.tasks),
            "subset_seed": settings.subset,
            "prompt": settings.source.prompt,
            "unit": asking.unit,
            "budgets": list(settings.budgets),
            "answer_cost": asking.answer_cost,
            "max_tokens": asking.max_tokens,
            "temperature": asking.temperature,
            "stop": list(asking.stop),
            "seeds": list(settings.seeds),
            "concurrency": settings.concurrency,
            "engine": identity.shown(settings.engine),
            "strategies": {
                one.name: {**one.body, **({"scale": [asdict(scale) for scale in one.scales]} if one.scales else {})}
                for one in self.strategies
            },
        }

    def results(self) -> dict[str, Any] | None:
        """The numbers and what they were measured on; None before the first row. Written to results.json too."""
        keys = set(self.all_keys())
        rows = [row for row in self.rows.rows if row["key"] in keys]
        if not rows:
            return None
        last = identity.made_by(rows, self.runs.rows)
        if last is None:
            return None
        run = {
            **last,
            **self._facts(last["model"], extended=last["extended"]),
            "concurrency": last["concurrency"],
            "missing": len(keys) - len(rows),
            "digests": self._digests,
            "task_names": [task.name for task in self.tasks],
        }
        found = {"run": run, **summary.results(rows, [one.name for one in self.strategies])}
        (self.settings.output / RESULTS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return found


def seed_of(seed: int, task: Task) -> int:
    """Of a task's request: 63 bits, other ones for every task, the same for every strategy and budget."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{task.name}".encode()).digest()[:8], "big") >> 1
