"""The flags of `decoding-server bench quality`. Light: nothing heavy is imported before they are right."""

import argparse
from pathlib import Path
from typing import Any

from decoding_server.bench.flags import (
    EXIT_CODES,
    add_engine,
    add_model,
    add_workload,
    adder,
    amount,
    check_model,
    natural,
    positive,
    require,
)

UNITS = ("forward_tokens", "output_tokens", "flops", "seconds")
GRADERS = ("auto", "math", "numeric", "exact", "choice", "regex", "contained", "code")
ENGINE = (
    *("dtype", "device", "threads", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory"),
    *("chat_template", "config", "program_prompts", "sandbox", "sandbox_test_seconds", "sandbox_memory"),
    *("draft_model", "draft_dtype", "early_exit_layers", "value_head", "allow_head_mismatch", "reward_model"),
    *("reward_protocol", "reward_dtype", "value_calibration", "runtime"),
)
"""Settings of `serve` that say how model, values and programs are run."""
SWITCHES = ("allow_head_mismatch",)

DEFAULTS: dict[str, Any] = {
    "dataset": None,
    "dataset_config": None,
    "split": "test",
    "question_field": "question",
    "answer_field": "answer",
    "choices_field": None,
    "prompt": None,
    "prompt_file": None,
    "system": None,
    "grader": "auto",
    "pattern": None,
    "tolerance": 0.0,
    "strategy": None,
    "budget": None,
    "unit": "forward_tokens",
    "answer_cost": None,
    "prompt_cost": None,
    "temperature": 0.7,
    "max_tokens": 512,
    "stop": None,
    "seed": None,
    "count": None,
    "subset_seed": None,
    "concurrency": 4,
    "time_limit": None,
    "output": None,
    "label": None,
    "model": None,
    "base_url": None,
    "served_model": None,
    "api_key": None,
}
ANSWER_TOKENS = 160.0
"""What an answer is taken to cost where the unit is tokens and nothing else is said."""


def describe(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Strategies under equal budgets on one data set: accuracy with confidence intervals, cost, the frontier of "
        "error against FLOPs, and the best strategy for each budget. Rows go to disk as they come; the same command "
        "goes on after a stop. docs/bench.md says what each flag means."
    )
    parser.epilog = EXIT_CODES
    add_flags(parser)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = adder(parser)
    add_workload(add)
    add("--dataset", metavar="FILE_OR_HF", help="JSON lines (.gz too), HumanEval's or MBPP's file, or hf:NAME")
    add("--dataset-config", metavar="NAME", help="of a data set of the hub")
    add("--split", help="of a data set of the hub (default: test)")
    add("--question-field", metavar="FIELD", help="of a record (default: question); outer.inner goes deeper")
    add("--answer-field", metavar="FIELD", help="the right answer (default: answer); of GSM8K, what stands behind ####")
    add("--choices-field", metavar="FIELD", help="a list, which {choices} in the prompt shows as A), B), ...")
    add("--prompt", metavar="TEXT", help="text around {question} and {choices} (default: the question alone)")
    add("--prompt-file", type=Path, metavar="FILE", help="that text from a file")
    add("--system", metavar="TEXT", help="system message")
    add("--grader", choices=GRADERS, help="how answers are judged (default: auto, for HumanEval, MBPP and GSM8K)")
    add("--pattern", metavar="REGEX", help="with --grader regex: its last match's first group is the answer")
    add("--tolerance", type=float, metavar="X", help="with --grader numeric: largest difference (default: 0)")
    add(
        "--strategy",
        action="append",
        metavar="NAME_OR_JSON",
        help="a preset, NAME=PRESET, or NAME={request fields, maybe scale}; may be repeated; the first is what the "
        "others are compared with (default: greedy majority)",
    )
    add("--budget", action="append", type=amount, metavar="B", help="of one answer; may be repeated (default: none)")
    add("--unit", choices=UNITS, help="of the budgets (default: forward_tokens)")
    add(
        "--answer-cost",
        type=amount,
        metavar="X",
        help="what a plain answer costs in that unit: searches are as wide as their budget pays for (default: "
        f"{ANSWER_TOKENS:g} tokens)",
    )
    add("--prompt-cost", type=float, metavar="X", help="what a prompt costs (default: its tokens; 0 in other units)")
    add("--temperature", type=float, metavar="T", help="where a strategy says none (default: 0.7)")
    add("--max-tokens", type=positive, metavar="N", help="of one answer (default: 512)")
    add("--stop", action="append", metavar="TEXT", help="ends an answer; may be repeated")
    add("--seed", type=natural, action="append", metavar="S", help="may be repeated (default: 1)")
    add("--count", type=positive, metavar="N", help="so many tasks, a fixed random subset (default: all)")
    add("--subset-seed", type=int, metavar="S", help="of the choice of that subset")
    add("--concurrency", type=positive, metavar="N", help="answers at once (default: 4)")
    add("--time-limit", type=float, metavar="SECONDS", help="after which nothing more is begun")
    add("--output", type=Path, metavar="DIR", help="folder of rows and results")
    add("--label", metavar="TEXT", help="a name for this run in reports (default: the model's)")
    add_model(add)
    add_engine(add, ENGINE, SWITCHES)


def complete(flags: argparse.Namespace) -> argparse.Namespace:
    """Flags after the workload file, checked together. Raises ValueError."""
    require(flags, "dataset", "output")
    check_model(flags)
    if flags.prompt is not None and flags.prompt_file is not None:
        raise ValueError("--prompt and --prompt-file exclude each other")
    if not 0 <= flags.temperature <= 2:
        raise ValueError("--temperature must lie between 0 and 2")
    if flags.tolerance < 0:
        raise ValueError("--tolerance must not be negative")
    if flags.unit.endswith("tokens") and any(budget != int(budget) for budget in flags.budget or ()):
        raise ValueError(f"--budget must be whole numbers of {flags.unit}")
    return flags
