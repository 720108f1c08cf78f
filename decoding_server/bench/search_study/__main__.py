"""`python -m decoding_server.bench.search_study`: accuracy and cost of searches on questions with a known answer.

Example: python -m decoding_server.bench.search_study --output build/search --questions test.jsonl --write-docs
A run that was interrupted, or whose time was up, goes on with the same command; finished rows are not measured again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from decoding_server.bench import progress, workload_file
from decoding_server.bench.answer_grading import GradingFailed
from decoding_server.openmp import configure_openmp
from strategies.errors import ModelLoadError

DOCS = Path("docs/strategies")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m decoding_server.bench.search_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 all measured, 1 the model or a file can't be had, 3 time was up, 130 interrupted.",
    )
    result.add_argument("--output", type=Path, required=True, help="folder of rows and results")
    result.add_argument("--questions", type=Path, required=True, help='JSON lines of {"question", "answer"}')
    result.add_argument("--model", help="what `decoding-server serve` takes (default: the embedded model)")
    result.add_argument("--count", type=int, default=40, help="questions, a fixed random subset (default %(default)s)")
    result.add_argument("--only", action="append", default=[], help="this contender only; may be repeated")
    result.add_argument("--samples", type=int, default=16, help="of the largest vote (default %(default)s)")
    result.add_argument("--value", default="auto", help="value function of the searches (default %(default)s)")
    result.add_argument("--value-head", type=Path, help="folder of a trained head")
    result.add_argument("--concurrency", type=int, default=2, help="questions at once (default %(default)s)")
    result.add_argument("--max-tokens", type=int, default=320, help="of one answer (default %(default)s)")
    result.add_argument("--seed", type=int, action="append", help="may be repeated (default: 1)")
    result.add_argument("--time-limit", type=float, help="seconds after which nothing more is begun")
    result.add_argument(
        "--write-docs", nargs="?", type=Path, const=DOCS, help=f"write table and plot to this folder ({DOCS})"
    )
    return result


def main(given: Sequence[str] | None = None) -> int:
    """See the parser's epilog for the exit codes."""
    arguments = workload_file.parsed(parser(), given)
    configure_openmp()
    # After the wait policy is set: these import torch.
    from decoding_server.bench.search_study import documents
    from decoding_server.bench.search_study.scorers import loaded
    from decoding_server.bench.search_study.study import Settings, Study

    console = Console()
    settings = Settings(
        output=arguments.output,
        questions=arguments.questions,
        model=arguments.model,
        count=arguments.count,
        concurrency=arguments.concurrency,
        max_tokens=arguments.max_tokens,
        samples=arguments.samples,
        value=arguments.value,
        only=tuple(arguments.only),
        seeds=tuple(arguments.seed or [1]),
        seconds=arguments.time_limit,
    )
    code = 0
    with progress.shown(console) as show:
        try:
            study = Study(settings, lambda runtime: loaded(runtime, arguments.value_head), show)
            code = 0 if study.run() else 3
        except (ModelLoadError, GradingFailed, OSError, ValueError) as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False)
            return 1
        except KeyboardInterrupt:
            code = 130
    results = study.results()
    if arguments.write_docs is not None and results is not None:
        documents.write(arguments.write_docs, results)
        console.print(f"written to {arguments.write_docs}")
    if code:
        cause = "time is up" if code == 3 else "interrupted"
        console.print(f"{cause}; {len(study.missing())} cells are missing; the same command goes on from here")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
