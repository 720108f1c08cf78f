"""`python -m decoding_server.bench.sampling_study`: what the samplers and penalties do to real models.

Example: python -m decoding_server.bench.sampling_study --output build/study --humaneval HumanEval.jsonl.gz --write-docs
A run that was interrupted, or whose time was up, goes on with the same command; finished rows are not measured again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from decoding_server.bench import workload_file
from decoding_server.openmp import configure_openmp
from strategies.errors import ModelLoadError

DOCS = Path("docs/strategies")
PARTS = ("bregman", "repetition", "harm")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m decoding_server.bench.sampling_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 all measured, 1 the model or a file can't be had, 3 time was up, 130 interrupted.",
    )
    result.add_argument("--output", type=Path, required=True, help="folder of rows and results")
    result.add_argument(
        "--model",
        action="append",
        help="what `decoding-server serve` takes; may be repeated (default: the embedded model)",
    )
    result.add_argument("--embedded", action="store_true", help="the embedded model too, beside those of --model")
    result.add_argument("--only", action="append", choices=PARTS, help="this part only; may be repeated")
    result.add_argument("--humaneval", type=Path, help="HumanEval.jsonl or .jsonl.gz; without it, `harm` is left out")
    result.add_argument("--limit", type=int, help="at most so many prompts of each part: checks that everything works")
    result.add_argument("--concurrency", type=int, default=32, help="requests of a batch (default %(default)s)")
    result.add_argument("--max-tokens", type=int, default=256, help="of `repetition` (default %(default)s)")
    result.add_argument("--harm-tokens", type=int, default=300, help="of `harm` (default %(default)s)")
    result.add_argument("--time-limit", type=float, help="seconds after which nothing more is begun")
    result.add_argument(
        "--write-docs",
        nargs="?",
        type=Path,
        const=DOCS,
        help=f"write numbers, tables and plots to this folder ({DOCS})",
    )
    return result


def main(given: Sequence[str] | None = None) -> int:
    """See the parser's epilog for the exit codes."""
    arguments = workload_file.parsed(parser(), given)
    configure_openmp()
    # After the wait policy is set: these import torch.
    from decoding_server.bench.sampling_study import documents
    from decoding_server.bench.sampling_study.study import Settings, Study

    console = Console()
    parts = tuple(part for part in PARTS if not arguments.only or part in arguments.only)
    if "harm" in parts and arguments.humaneval is None:
        console.print("harm is left out: no --humaneval")
    models: list[str | None] = list(arguments.model or [None])
    if arguments.embedded and arguments.model:
        models.insert(0, None)
    settings = Settings(
        output=arguments.output,
        models=tuple(models),
        parts=parts,
        humaneval=arguments.humaneval,
        limit=arguments.limit,
        concurrency=arguments.concurrency,
        max_tokens=arguments.max_tokens,
        harm_tokens=arguments.harm_tokens,
        seconds=arguments.time_limit,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    code = 0
    with Progress(*columns, console=console, refresh_per_second=1, auto_refresh=console.is_terminal) as progress:
        bar = progress.add_task("starting")

        def show(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)
            if not console.is_terminal:
                console.print(f"[{done}/{total}] {what}", highlight=False, markup=False, soft_wrap=True)

        try:
            study = Study(settings, show)
            code = 0 if study.run() else 3
        except (ModelLoadError, OSError, ValueError) as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False)
            return 1
        except KeyboardInterrupt:
            code = 130
    results = study.results()
    if arguments.write_docs is not None and results:
        documents.write(arguments.write_docs, results)
        console.print(f"written to {arguments.write_docs}")
    if code:
        cause = "time is up" if code == 3 else "interrupted"
        console.print(f"{cause}; {study.missing()} batches are missing; the same command goes on from here")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
