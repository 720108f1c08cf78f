"""`decoding-server bench serve`: opens what the flags say, runs the study, shows and writes what came of it."""

import argparse
import asyncio
import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.markdown import Markdown

from decoding_server.bench import progress
from decoding_server.bench.dataset import DatasetError, read_dataset, title
from decoding_server.bench.endpoint import Endpoint
from decoding_server.bench.own_server import server
from decoding_server.bench.quality.contenders import Strategy, strategies
from decoding_server.bench.serving import documents
from decoding_server.bench.serving.flags import own
from decoding_server.bench.serving.loads import Load
from decoding_server.bench.serving.requests import Questions, questions_of
from decoding_server.bench.serving.study import Settings, Study
from strategies.errors import DecodingError

DEFAULT = ("greedy",)


def run(flags: argparse.Namespace) -> int:
    """See the parser's epilog for the exit codes. Raises ValueError for a wrong flag."""
    console = Console()
    chosen = strategies(flags.strategy or DEFAULT)
    code = 0
    try:
        settings, questions = settings_of(flags), questions_from(flags)
        with progress.shown(console) as show:
            study = Study(settings, questions, chosen, show)
            try:
                with address(study, flags) as url:
                    code = 0 if asyncio.run(measure(study, flags, chosen, url)) else 3
            except DecodingError as error:
                console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
                code = 1
            except KeyboardInterrupt:
                code = 130
    except (DatasetError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    finish(study, console)
    if code:
        cause = {1: "stopped", 3: "time is up"}.get(code, "interrupted")
        missing = len(study.missing())
        console.print(f"{cause}; {missing} loads are missing; the same command goes on from here", highlight=False)
    return code


@contextlib.contextmanager
def address(study: Study, flags: argparse.Namespace) -> Iterator[str | None]:
    """Of the server, which is started where none is given; None where nothing is left to measure. Raises NotReady."""
    if flags.base_url is not None or not study.missing():
        yield flags.base_url
        return
    model = [] if flags.model is None else [flags.model]
    quiet = ("--no-playground", "--no-log-requests")
    with server(study.settings.output / "server.log", [*model, *quiet, *own(flags)]) as (url, _):
        yield url


async def measure(study: Study, flags: argparse.Namespace, chosen: list[Strategy], url: str | None) -> bool:
    """Raises DecodingError, ValueError for what a server without this project's extensions can't do."""
    if url is None or not study.missing():
        return True
    endpoint = await Endpoint.connected(url, flags.served_model, flags.api_key)
    try:
        for one in chosen:
            if not endpoint.extended and not one.plain:
                raise ValueError(f"--strategy {one.name}: the server at {url} has no `decoding`")
        return await study.run(endpoint)
    finally:
        await endpoint.close()


def settings_of(flags: argparse.Namespace) -> Settings:
    loads = [
        *(Load("closed", value) for value in flags.concurrency or ()),
        *(Load("poisson", value) for value in flags.rate or ()),
        *(Load("constant", value) for value in flags.constant_rate or ()),
    ]
    limits = {"ttft": flags.slo_ttft, "tpot": flags.slo_tpot, "e2e": flags.slo_e2e}
    started = " ".join([flags.model or "embedded", *own(flags)])
    passages = f"passages of {flags.input_words} words"
    return Settings(
        output=flags.output,
        server=started if flags.base_url is None else f"{flags.base_url} {flags.served_model or ''}",
        data=passages if flags.dataset is None else f"questions of {title(flags.dataset)}",
        loads=tuple(dict.fromkeys(loads)),
        requests=flags.requests,
        warm_up=flags.warm_up,
        max_tokens=flags.max_tokens,
        ignore_eos=flags.ignore_eos,
        temperature=flags.temperature,
        seeds=tuple(flags.seed or [1]),
        timeout=flags.timeout,
        seconds=flags.time_limit,
        slo=tuple((name, limit) for name, limit in limits.items() if limit is not None),
        label=flags.label,
        own=flags.base_url is None,
    )


def questions_from(flags: argparse.Namespace) -> Questions:
    """Raises DatasetError, ValueError."""
    if flags.dataset is None:
        return Questions(None, flags.input_words)
    records = read_dataset(flags.dataset, config=flags.dataset_config, split=flags.split)
    return Questions(questions_of(records, flags.question_field, title(flags.dataset)), 0)


def finish(study: Study, console: Console) -> None:
    """Shows what is there; writes results.json, table.md and the plot."""
    results = study.results()
    if results is None:
        return
    text = documents.section(results, documents.PLOT)
    (study.settings.output / "table.md").write_text(text + "\n", encoding="utf-8")
    documents.draw(results, study.settings.output / documents.PLOT)
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
