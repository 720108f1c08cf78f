"""`decoding-server bench quality`: opens what the flags say, runs the study, shows and writes what came of it."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.markdown import Markdown

from decoding_server.bench import progress
from decoding_server.bench.code.judging import Judge
from decoding_server.bench.dataset import DatasetError
from decoding_server.bench.endpoint import Endpoint, Load
from decoding_server.bench.identity import engine_of, model_of
from decoding_server.bench.quality import documents
from decoding_server.bench.quality.contenders import Strategy, check, strategies
from decoding_server.bench.quality.flags import ANSWER_TOKENS
from decoding_server.bench.quality.graders import CodeGrader, Grader, MathGrader, TextGrader, check_golds
from decoding_server.bench.quality.measuring import Asking
from decoding_server.bench.quality.study import Settings, Study
from decoding_server.bench.quality.tasks import QUESTION, Source, Tasks, load
from decoding_server.bench.subset import SUBSET_SEED
from decoding_server.config import ServerConfig
from decoding_server.programs import ProgramSandbox
from strategies.errors import DecodingError
from strategies.sandbox.outcome import SandboxUnavailable

DEFAULT = ("greedy", "majority")
Opened = tuple[Endpoint, Grader, Callable[[], Awaitable[None]]]


def run(flags: argparse.Namespace, config: ServerConfig, load_runtime: Load) -> int:
    """See the parser's epilog for the exit codes. Raises ValueError for a wrong flag."""
    console = Console()
    settings = settings_of(flags, config)
    chosen = strategies_of(flags, settings)
    try:
        dataset = load(settings.source)
        check_dataset(dataset, chosen, flags)
        code = 0
        with progress.shown(console) as show:
            study = Study(settings, dataset, chosen, show)

            async def opened() -> Opened:
                return await open_all(flags, config, load_runtime, dataset, chosen)

            try:
                code = 0 if asyncio.run(study.run(opened)) else 3
            except (DecodingError, SandboxUnavailable) as error:
                console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
                code = 1
            except KeyboardInterrupt:
                code = 130
    except (DatasetError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    finish(study, console)
    if code:
        causes = {1: "stopped", 3: f"{len(study.failed)} cells failed" if study.failed else "time is up"}
        console.print(
            f"{causes.get(code, 'interrupted')}; {len(study.missing())} cells are missing; the same command goes on "
            "from here",
            highlight=False,
            soft_wrap=True,
        )
    return code


def settings_of(flags: argparse.Namespace, config: ServerConfig) -> Settings:
    """Raises ValueError."""
    prompt = flags.prompt or QUESTION
    if flags.prompt_file is not None:
        try:
            prompt = flags.prompt_file.read_text(encoding="utf-8").rstrip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompt-file: {error}") from None
    if QUESTION not in prompt:
        raise ValueError(f"the prompt must hold {QUESTION}")
    answer_cost = flags.answer_cost
    if answer_cost is None and flags.unit.endswith("tokens"):
        answer_cost = ANSWER_TOKENS
    return Settings(
        output=flags.output,
        source=Source(
            flags.dataset,
            flags.dataset_config,
            flags.split,
            flags.question_field,
            flags.answer_field,
            flags.choices_field,
            prompt,
            flags.grader,
        ),
        model=model_of(config, flags.base_url, flags.served_model),
        engine=engine_of(config, remote=flags.base_url is not None),
        asking=Asking(
            flags.unit,
            flags.max_tokens,
            flags.temperature,
            tuple(flags.stop or ()),
            flags.system,
            answer_cost,
            flags.prompt_cost,
        ),
        budgets=tuple(sorted(set(flags.budget))) if flags.budget else (None,),
        count=flags.count,
        subset=SUBSET_SEED if flags.subset_seed is None else flags.subset_seed,
        seeds=tuple(flags.seed or [1]),
        concurrency=flags.concurrency,
        seconds=flags.time_limit,
        grading=(flags.grader, flags.tolerance, flags.pattern),
        label=flags.label,
    )


def strategies_of(flags: argparse.Namespace, settings: Settings) -> list[Strategy]:
    """Raises ValueError."""
    chosen = strategies(flags.strategy or DEFAULT)
    if flags.base_url is None:
        for one in chosen:
            check(one)
    scaled = [one.name for one in chosen if one.scales]
    if scaled and settings.asking.answer_cost is None and flags.budget:
        raise ValueError(f"--answer-cost is missing: how wide is {scaled[0]!r} under so many {flags.unit}?")
    return chosen


def check_dataset(dataset: Tasks, chosen: list[Strategy], flags: argparse.Namespace) -> None:
    """Raises ValueError for flags that do not go with the data."""
    for one in chosen:
        if one.searches_programs and dataset.grader != "code":
            raise ValueError(f"--strategy {one.name} writes programs, but {dataset.title} asks for none")
    if dataset.grader != "regex" and flags.pattern is not None:
        raise ValueError("--pattern goes with --grader regex")
    if dataset.grader == "regex" and flags.pattern is None:
        raise ValueError("--grader regex needs --pattern")
    check_golds(dataset.grader, list(dataset.tasks))


async def open_all(
    flags: argparse.Namespace, config: ServerConfig, load_runtime: Load, dataset: Tasks, chosen: list[Strategy]
) -> Opened:
    """Raises DecodingError, ValueError for what a server without this project's extensions can't do."""
    if flags.base_url is not None:
        endpoint = await Endpoint.connected(flags.base_url, flags.served_model, flags.api_key)
    else:
        endpoint = await Endpoint.in_process(config, load_runtime)
    programs: ProgramSandbox | None = None
    try:
        if not endpoint.extended:
            check_peer(chosen, flags)
        grader: Grader
        if dataset.grader == "code":
            # In this process, the sandbox of the searches judges as well.
            own = endpoint.app is None
            programs = ProgramSandbox(config) if own else endpoint.app.state.service.sandbox  # type: ignore[union-attr]
            grader = CodeGrader(Judge(await programs.ready()))
            programs = programs if own else None
        elif dataset.grader == "math":
            grader = MathGrader()
        else:
            grader = TextGrader(dataset.grader, tolerance=flags.tolerance, pattern=flags.pattern)
    except BaseException:
        await endpoint.close()
        raise

    async def close() -> None:
        if programs is not None:
            await programs.close()
        await endpoint.close()

    return endpoint, grader, close


def check_peer(chosen: list[Strategy], flags: argparse.Namespace) -> None:
    """Raises ValueError."""
    for one in chosen:
        if not one.plain:
            raise ValueError(f"--strategy {one.name}: the server at {flags.base_url} has no `decoding`")
    if flags.budget and flags.unit != "output_tokens":
        raise ValueError(f"the server at {flags.base_url} can be held to --unit output_tokens only")


def finish(study: Study, console: Console) -> None:
    """Shows what is there; writes results.json, table.md and the plot."""
    results = study.results()
    if results is None:
        return
    if not results["table"]:
        console.print("no task has been answered by every strategy under every budget yet", highlight=False)
        return
    text = documents.section(results, documents.PLOT)
    (study.settings.output / "table.md").write_text(text + "\n", encoding="utf-8")
    documents.draw(results, study.settings.output / documents.PLOT)
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
