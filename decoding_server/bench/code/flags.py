"""The flags of `decoding-server bench code`. Light: nothing heavy is imported before they are right."""

import argparse
from pathlib import Path

DOCS = Path("docs/strategies")
DEFAULT = ("greedy", "best-of-n", "line", "tree", "sfs")
EXIT_CODES = (
    "Exit codes: 0 all measured, 1 the model, the sandbox or a file can't be had, 2 a wrong flag, 3 time was up or "
    "cells failed (the same command goes on), 130 interrupted (likewise)."
)


def add_flags(parser: argparse.ArgumentParser, engine: tuple[str, ...]) -> None:
    """engine: names of settings of `serve` that are flags here too."""
    parser.description = (
        "HumanEval(+) or MBPP(+) under several searches for programs, on one model: pass@1, pass@any by programs and "
        "by tokens, cost, diversity. Rows go to disk as they come; the same command goes on after a stop."
    )
    parser.epilog = EXIT_CODES
    parser.add_argument(
        "--dataset", type=Path, required=True, metavar="FILE", help="HumanEval's, MBPP's or EvalPlus's .jsonl(.gz)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of rows and results")
    parser.add_argument(
        "--strategy",
        action="append",
        metavar="NAME_OR_JSON",
        help="plain, greedy, best-of-n, line, tree, sfs, a body of `decoding.search` as JSON, or NAME=JSON; may be "
        f"repeated; the first is what the others are compared with (default: {' '.join(DEFAULT)})",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--model", help="run in this process; as `serve` takes it (default: the embedded model)")
    where.add_argument("--base-url", metavar="URL", help="a running server, e.g. http://127.0.0.1:8000/v1")
    parser.add_argument("--served-model", metavar="NAME", help="with --base-url: which one (default: its first)")
    parser.add_argument("--api-key", help="with --base-url: its key")
    parser.add_argument(
        "--count", type=positive, metavar="N", help="so many tasks, a fixed random subset (default: all)"
    )
    parser.add_argument("--subset-seed", type=int, metavar="S", help="of the choice of that subset")
    parser.add_argument(
        "--tests",
        choices=("given", "generated"),
        default="given",
        help="what searches see: the prompt's examples (and --visible asserts), or tests that the model writes "
        "(default %(default)s); hidden tests only judge",
    )
    parser.add_argument(
        "--visible", type=natural, metavar="N", help="first asserts of the data set to show (default: 0, of MBPP 1)"
    )
    parser.add_argument("--n-tests", type=positive, default=6, metavar="N", help="tests to write (default %(default)s)")
    parser.add_argument("--k", type=positive, default=10, help="programs of a search at most (default %(default)s)")
    parser.add_argument("--seed", type=natural, action="append", help="may be repeated (default: 1)")
    parser.add_argument("--max-tokens", type=positive, default=768, help="of one program (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="where a search sets none (default %(default)s)")
    parser.add_argument("--concurrency", type=positive, default=8, help="searches at once (default %(default)s)")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="after which nothing more is begun")
    parser.add_argument(
        "--write-docs",
        nargs="?",
        type=Path,
        const=DOCS,
        metavar="DIR",
        help=f"put numbers, table and plot into the pages of this folder ({DOCS})",
    )
    parser.add_argument("--label", help="of the section there (default: the model's name)")
    for name in engine:
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help="as of `serve`")


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def natural(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number
