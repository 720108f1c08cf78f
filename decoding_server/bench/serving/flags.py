"""The flags of `decoding-server bench serve`. Light: nothing heavy is imported before they are right."""

import argparse
from pathlib import Path
from typing import Any

from decoding_server.bench.flags import add_engine, add_workload, adder, amount, check_model, natural, positive, require
from decoding_server.bench.quality.flags import ENGINE, SWITCHES

EXIT_CODES = (
    "Exit codes: 0 all measured, 1 the server or a file can't be had, 2 a wrong flag, 3 time was up (the same command "
    "goes on), 130 interrupted (likewise). Requests that fail are counted, not a failure of the run."
)
DEFAULTS: dict[str, Any] = {
    "model": None,
    "base_url": None,
    "served_model": None,
    "api_key": None,
    "dataset": None,
    "dataset_config": None,
    "split": "test",
    "question_field": "question",
    "input_words": 64,
    "max_tokens": 128,
    "ignore_eos": False,
    "temperature": 0.0,
    "strategy": None,
    "concurrency": None,
    "rate": None,
    "constant_rate": None,
    "requests": 64,
    "warm_up": 4,
    "seed": None,
    "slo_ttft": None,
    "slo_tpot": None,
    "slo_e2e": None,
    "timeout": 600.0,
    "time_limit": None,
    "output": None,
    "label": None,
}


def describe(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Load on a server, over HTTP with streamed answers: time to first token, gaps between tokens, "
        "end-to-end time, tokens per second, goodput, errors by kind; for each strategy under each load. A load is "
        "measured as a whole, its rows go to disk, and the same command goes on after a stop. docs/bench.md says more."
    )
    parser.epilog = EXIT_CODES
    add_flags(parser)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = adder(parser)
    add_workload(add)
    add("--base-url", metavar="URL", help="a running server, e.g. http://127.0.0.1:8000/v1")
    add("--served-model", metavar="NAME", help="with --base-url: which of its models (default: its first)")
    add("--api-key", metavar="KEY", help="with --base-url: its key")
    add("--model", help="instead a server process of its own, with this model (default: the embedded model)")
    add("--dataset", metavar="FILE_OR_HF", help="questions to ask: JSON lines or hf:NAME (default: passages of a text)")
    add("--dataset-config", metavar="NAME", help="of a data set of the hub")
    add("--split", help="of a data set of the hub (default: test)")
    add("--question-field", metavar="FIELD", help="of a record (default: question)")
    add("--input-words", type=positive, metavar="N", help="without a data set: words of a prompt (default: 64)")
    add("--max-tokens", type=positive, metavar="N", help="of one answer (default: 128)")
    add("--ignore-eos", action="store_true", help="every answer has exactly so many tokens, where the server can")
    add("--temperature", type=float, metavar="T", help="where a strategy says none (default: 0)")
    add(
        "--strategy",
        action="append",
        metavar="NAME_OR_JSON",
        help="as in bench quality; may be repeated; one after the other under every load (default: greedy)",
    )
    add("--concurrency", type=positive, action="append", metavar="C", help="closed loop: C at any time; repeatable")
    add("--rate", type=amount, action="append", metavar="R", help="open loop: Poisson, R a second; repeatable")
    add("--constant-rate", type=amount, action="append", metavar="R", help="open loop: evenly spaced; repeatable")
    add("--requests", type=positive, metavar="N", help="of one load (default: 64)")
    add("--warm-up", type=natural, metavar="N", help="untimed requests before each (default: 4)")
    add("--seed", type=natural, action="append", metavar="S", help="of prompts and arrivals; each is a repeat")
    add("--slo-ttft", type=amount, metavar="SECONDS", help="goodput: longest time to the first token")
    add("--slo-tpot", type=amount, metavar="SECONDS", help="goodput: longest mean time per further token")
    add("--slo-e2e", type=amount, metavar="SECONDS", help="goodput: longest time to the last token")
    add("--timeout", type=amount, metavar="SECONDS", help="after which a request is given up (default: 600)")
    add("--time-limit", type=float, metavar="SECONDS", help="after which no load is begun")
    add("--output", type=Path, metavar="DIR", help="folder of rows and results")
    add("--label", metavar="TEXT", help="a name for this run in reports (default: the model's)")
    add_engine(add, ENGINE, SWITCHES)


def complete(flags: argparse.Namespace) -> argparse.Namespace:
    """Flags after the workload file, checked together. Raises ValueError."""
    require(flags, "output")
    check_model(flags)
    if flags.base_url is not None and (given := own(flags)):
        raise ValueError(f"{given[0]} is of a server of its own, --base-url is another")
    if not (flags.concurrency or flags.rate or flags.constant_rate):
        raise ValueError("say what load: --concurrency, --rate or --constant-rate")
    if not 0 <= flags.temperature <= 2:
        raise ValueError("--temperature must lie between 0 and 2")
    return flags


def own(flags: argparse.Namespace) -> list[str]:
    """What `serve` is told for a server of the benchmark's own: its settings, as flags."""
    found: list[str] = []
    for name in ENGINE:
        if (value := getattr(flags, name, None)) is not None:
            flag = "--" + name.replace("_", "-")
            found += [flag] if name in SWITCHES else [flag, str(value)]
    return found
