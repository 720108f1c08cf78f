"""What the flags of several benchmarks have in common. Light: nothing heavy is imported before they are right."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXIT_CODES = (
    "Exit codes: 0 all measured, 1 the model, the sandbox or a file can't be had, 2 a wrong flag, 3 time was up or "
    "cells failed (the same command goes on), 130 interrupted (likewise)."
)

Add = Callable[..., None]


def adder(parser: argparse.ArgumentParser) -> Add:
    """Adds flags without defaults, so that a workload file can tell what the command line says."""

    def add(*names: str, **options: Any) -> None:
        parser.add_argument(*names, default=argparse.SUPPRESS, **options)

    return add


def add_workload(add: Add) -> None:
    add("--workload", type=Path, metavar="FILE", help="YAML file with any of these flags; the command line wins")


def add_model(add: Add) -> None:
    add("--model", help="run in this process; as `serve` takes it (default: the embedded model)")
    add("--base-url", metavar="URL", help="instead a running server, e.g. http://127.0.0.1:8000/v1")
    add("--served-model", metavar="NAME", help="with --base-url: which one (default: its first)")
    add("--api-key", metavar="KEY", help="with --base-url: its key")


def add_engine(add: Add, names: tuple[str, ...], switches: tuple[str, ...] = ()) -> None:
    """names: settings of `serve` that are flags here too. switches: those without a value."""
    for name in names:
        flag = "--" + name.replace("_", "-")
        if name in switches:
            add(flag, action="store_true", help="as of `serve`")
        else:
            add(flag, metavar="VALUE", help="as of `serve`")


def check_model(flags: argparse.Namespace) -> None:
    """Raises ValueError."""
    if flags.model is not None and flags.base_url is not None:
        raise ValueError("--model and --base-url exclude each other")
    if flags.base_url is None and (flags.served_model is not None or flags.api_key is not None):
        raise ValueError("--served-model and --api-key go with --base-url")


def require(flags: argparse.Namespace, *names: str) -> None:
    """Raises ValueError."""
    for name in names:
        if getattr(flags, name) is None:
            raise ValueError(f"--{name.replace('_', '-')} is missing")


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def natural(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def amount(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return int(number) if number.is_integer() else number
