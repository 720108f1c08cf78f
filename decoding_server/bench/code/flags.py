"""The flags of `decoding-server bench code`. Light: nothing heavy is imported before they are right."""

import argparse
from pathlib import Path
from typing import Any

from decoding_server.bench.flags import (
    EXIT_CODES,
    add_engine,
    add_model,
    add_workload,
    adder,
    check_model,
    natural,
    positive,
    require,
)

ENGINE = (
    *("dtype", "device", "threads", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory"),
    *("chat_template", "config", "program_prompts", "sandbox", "sandbox_test_seconds", "sandbox_memory"),
)
"""Settings of `serve` that say how the model and programs are run."""
DOCS = Path("docs/strategies")
STRATEGIES = ("greedy", "best-of-n", "line", "tree", "sfs")
DEFAULTS: dict[str, Any] = {
    "dataset": None,
    "output": None,
    "strategy": None,
    "model": None,
    "base_url": None,
    "served_model": None,
    "api_key": None,
    "count": None,
    "subset_seed": None,
    "tests": "given",
    "visible": None,
    "n_tests": 6,
    "k": 10,
    "seed": None,
    "max_tokens": 768,
    "temperature": 0.7,
    "concurrency": 8,
    "time_limit": None,
    "write_docs": None,
    "label": None,
}


def describe(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "HumanEval(+) or MBPP(+) under several searches for programs, on one model: pass@1, pass@any by programs and "
        "by tokens, cost, diversity. Rows go to disk as they come; the same command goes on after a stop."
    )
    parser.epilog = EXIT_CODES
    add_flags(parser)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = adder(parser)
    add_workload(add)
    add("--dataset", type=Path, metavar="FILE", help="HumanEval's, MBPP's or EvalPlus's .jsonl(.gz)")
    add("--output", type=Path, metavar="DIR", help="folder of rows and results")
    add(
        "--strategy",
        action="append",
        metavar="NAME_OR_JSON",
        help="plain, greedy, best-of-n, line, tree, sfs, a body of `decoding.search` as JSON, or NAME=JSON; may be "
        f"repeated; the first is what the others are compared with (default: {' '.join(STRATEGIES)})",
    )
    add_model(add)
    add("--count", type=positive, metavar="N", help="so many tasks, a fixed random subset (default: all)")
    add("--subset-seed", type=int, metavar="S", help="of the choice of that subset, and of the order of tasks")
    add(
        "--tests",
        choices=("given", "generated"),
        help="what searches see: the prompt's examples (and --visible asserts), or tests that the model writes "
        "(default: given); hidden tests only judge",
    )
    add("--visible", type=natural, metavar="N", help="first asserts of the data set to show (default: 0, of MBPP 1)")
    add("--n-tests", type=positive, metavar="N", help="tests to write (default: 6)")
    add("--k", type=positive, help="programs of a search at most (default: 10)")
    add("--seed", type=natural, action="append", help="may be repeated (default: 1)")
    add("--max-tokens", type=positive, metavar="N", help="of one program (default: 768)")
    add("--temperature", type=float, metavar="T", help="where a search sets none (default: 0.7)")
    add("--concurrency", type=positive, metavar="N", help="searches at once (default: 8)")
    add("--time-limit", type=float, metavar="SECONDS", help="after which nothing more is begun")
    add(
        "--write-docs",
        nargs="?",
        type=Path,
        const=DOCS,
        metavar="DIR",
        help=f"put numbers, table and plot into the pages of this folder ({DOCS})",
    )
    add("--label", metavar="TEXT", help="of the section there (default: the model's name)")
    add_engine(add, ENGINE)


def complete(flags: argparse.Namespace) -> argparse.Namespace:
    """Flags after the workload file, checked together. Raises ValueError."""
    require(flags, "dataset", "output")
    check_model(flags)
    if not 0 <= flags.temperature <= 2:
        raise ValueError("--temperature must lie between 0 and 2")
    return flags
