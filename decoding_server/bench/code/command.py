"""`decoding-server bench code`: opens what the flags say, runs the study, shows and writes what came of it."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from decoding_server.bench import progress
from decoding_server.bench.code import documents
from decoding_server.bench.code.contenders import VisibleTests
from decoding_server.bench.code.flags import STRATEGIES
from decoding_server.bench.code.study import Settings, Study
from decoding_server.bench.endpoint import Endpoint, Load
from decoding_server.bench.identity import engine_of, model_of
from decoding_server.bench.subset import SUBSET_SEED
from decoding_server.config import ServerConfig
from decoding_server.programs import ProgramSandbox
from strategies.errors import DecodingError
from strategies.sandbox.sandbox import Sandbox

Opened = tuple[Endpoint, Sandbox, Callable[[], Awaitable[None]]]


def settings_of(flags: argparse.Namespace, config: ServerConfig) -> Settings:
    return Settings(
        output=flags.output,
        dataset=flags.dataset,
        strategies=tuple(flags.strategy or STRATEGIES),
        model=model_of(config, flags.base_url, flags.served_model),
        engine=engine_of(config, remote=flags.base_url is not None),
        count=flags.count,
        subset=SUBSET_SEED if flags.subset_seed is None else flags.subset_seed,
        tests=VisibleTests(flags.tests, wanted=flags.n_tests),
        visible=flags.visible,
        k=flags.k,
        seeds=tuple(flags.seed or [1]),
        max_tokens=flags.max_tokens,
        temperature=flags.temperature,
        concurrency=flags.concurrency,
        seconds=flags.time_limit,
    )


async def in_process(config: ServerConfig, load: Load) -> Opened:
    """The model of the configuration in this process, with the sandbox of its searches. Raises DecodingError."""
    endpoint = await Endpoint.in_process(config, load)
    try:
        assert endpoint.app is not None
        sandbox = await endpoint.app.state.service.sandbox.ready()
    except BaseException:
        await endpoint.close()
        raise
    return endpoint, sandbox, endpoint.close


async def over_http(config: ServerConfig, base_url: str, model: str | None, api_key: str | None) -> Opened:
    """A running server; programs are judged in a sandbox of this process. Raises DecodingError."""
    programs = ProgramSandbox(config)
    try:
        sandbox = await programs.ready()
        endpoint = await Endpoint.connected(base_url, model, api_key)
    except BaseException:
        await programs.close()
        raise

    async def close() -> None:
        await programs.close()
        await endpoint.close()

    return endpoint, sandbox, close


def run(flags: argparse.Namespace, config: ServerConfig, load: Load) -> int:
    """See the parser's epilog for the exit codes. Raises ValueError for a wrong flag."""
    console = Console()
    code = 0
    with progress.shown(console) as show:

        async def opened() -> Opened:
            if flags.base_url is not None:
                return await over_http(config, flags.base_url, flags.served_model, flags.api_key)
            return await in_process(config, load)

        try:
            study = Study(settings_of(flags, config), show)
        except OSError as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False)
            return 1
        try:
            code = 0 if asyncio.run(study.run(opened)) else 3
        except (DecodingError, OSError) as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False)
            code = 1
        except KeyboardInterrupt:
            code = 130
    finish(study, flags, console)
    if code:
        causes = {1: "stopped", 3: f"{len(study.failed)} cells failed" if study.failed else "time is up"}
        cause = causes.get(code, "interrupted")
        console.print(f"{cause}; {len(study.missing())} cells are missing; the same command goes on from here")
    return code


def finish(study: Study, flags: argparse.Namespace, console: Console) -> None:
    """Shows what is there, writes results.json, table.md and the plot, and the pages where that is asked for."""
    results: Mapping[str, Any] | None = study.results()
    if results is None:
        console.print("no task has been measured with every strategy yet", highlight=False)
        return
    label = flags.label or results["run"]["model"]
    text = documents.section({**results, "run": {**results["run"], "label": label}})
    (flags.output / "table.md").write_text(text + "\n", encoding="utf-8")
    documents.draw(dict(results), flags.output / "pass-any.svg")
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if flags.write_docs is not None:
        documents.write(flags.write_docs, label, dict(results), study.measured())
        console.print(f"written to {flags.write_docs}")
