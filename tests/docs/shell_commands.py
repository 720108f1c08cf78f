"""Commands of the documents: run where that is quick, else read by the parser that the command itself would use."""

import argparse
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from decoding_server import cli
from decoding_server.bench import workload_file
from decoding_server.bench.code import contenders as code_contenders
from decoding_server.bench.code import flags as code_flags
from decoding_server.bench.quality import contenders as quality_contenders
from decoding_server.bench.quality import flags as quality_flags
from decoding_server.bench.reporting import flags as reporting_flags
from decoding_server.bench.serving import flags as serving_flags
from decoding_server.config import load_config

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"


class Unknown(Exception):
    """Nothing here knows how to check that command."""


class Parsed(Exception):
    """A program has read its flags, and is stopped."""

    def __init__(self, flags: argparse.Namespace) -> None:
        super().__init__()
        self.flags = flags


def split(text: str) -> list[list[str]]:
    """The commands of a shell block, as words; a comment, a continued line or a text over several lines is no end."""
    commands, pending = [], ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # inside of quotation marks
            pending += "\n"
            continue
        pending = ""
        if words:
            commands.append(words)
    if pending:
        raise Unknown(f"a command has no end: {pending!r}")
    return commands


def check(words: Sequence[str], server: str) -> None:
    """Fails for what a reader could not run as it is written. server: the address in place of the default one."""
    program, *arguments = words
    if program == "decoding-server" or program.endswith("/bin/decoding-server"):
        check_server_flags(arguments)
    elif program in ("python", "python3") and arguments[:1] == ["-m"]:
        parsed(lambda: runpy.run_module(arguments[1], run_name="__main__"), arguments[1:])
    elif program == "curl":
        run(["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "120", *arguments], server)
    elif program == "make":
        run(["make", "--dry-run", "--directory", str(ROOT), *arguments], server)
    elif program == "pip" and arguments[:1] == ["install"]:
        check_install(arguments[1:])
    else:
        raise Unknown(f"no test knows how to check {shlex.join(words)!r}: run it, or mark the block")


def run(command: Sequence[str], server: str) -> str:
    """Standard output of what has to succeed."""
    words = [word.replace(ADDRESS, server) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def parsed(program: Any, arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a program that is stopped when its own parser has read them; a wrong one ends it with code 2."""
    read = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        raise Parsed(read(parser, args, namespace))

    with patch.object(argparse.ArgumentParser, "parse_args", stop), patch.object(sys, "argv", list(arguments)):
        try:
            program()
        except Parsed as found:
            return found.flags
        except SystemExit as error:
            raise AssertionError(f"the program ends with code {error.code} for {shlex.join(arguments)}") from error
    raise AssertionError(f"{arguments[0]} reads no flags")


def check_server_flags(arguments: Sequence[str]) -> None:
    """By the command line's parser; the settings of `serve` by the configuration as well, and what a benchmark is told
    as far as that goes without its data and its model: the workload file, flags together, strategies."""
    flags = parsed(lambda: cli.main(list(arguments)), ["decoding-server", *arguments])
    given: Mapping[str, Any] = {name: value for name, value in vars(flags).items() if name != "command"}
    if flags.command == "serve":
        load_config(given, {})
    if flags.command == "bench":
        check_bench(flags)


def check_bench(flags: argparse.Namespace) -> None:
    """Raises ValueError."""
    if flags.bench == "report":
        reporting_flags.complete(flags)
        return
    module = {"code": code_flags, "quality": quality_flags, "serve": serving_flags}[flags.bench]
    if "workload" in flags:
        flags.workload = ROOT / flags.workload
    flags = module.complete(workload_file.merged(flags, module.add_flags, module.DEFAULTS))
    if flags.bench == "code":
        for text in flags.strategy or ():
            code_contenders.parsed(text)
    else:
        quality_contenders.strategies(flags.strategy or ("greedy",))


def check_install(arguments: Sequence[str]) -> None:
    """Folders exist, and so do extras of this project; other packages are not looked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in arguments:
        if word.startswith("-"):
            continue
        if word.startswith((".", "examples/")):
            assert (ROOT / word.partition("[")[0]).exists(), word
        name, _, extras = word.partition("[")
        for extra in extras.rstrip("]").split(",") if extras and name in (project["name"], ".") else ():
            assert extra in project["optional-dependencies"], extra
