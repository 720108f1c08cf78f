"""`decoding-server bench`: its subcommands, one measurement each. Light: each imports its own when it runs."""

import argparse
import sys
from typing import TYPE_CHECKING

from decoding_server.bench import workload_file
from decoding_server.bench.code import flags as code_flags
from decoding_server.bench.quality import flags as quality_flags
from decoding_server.bench.reporting import flags as reporting_flags
from decoding_server.bench.serving import flags as serving_flags

if TYPE_CHECKING:
    from decoding_server.config import ServerConfig


def add_bench(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measure this server's decoding."
    commands = parser.add_subparsers(dest="bench", required=True, metavar="BENCHMARK")
    code_flags.describe(commands.add_parser("code", help="HumanEval or MBPP under searches for programs"))
    quality_flags.describe(
        commands.add_parser("quality", help="strategies under equal budgets on a data set: accuracy against cost")
    )
    serving_flags.describe(
        commands.add_parser("serve", help="latency and throughput of a running server under load, by strategy")
    )
    reporting_flags.describe(commands.add_parser("report", help="a page from the raw rows of one run, or of two"))


def bench(flags: argparse.Namespace) -> int:
    """Exit codes: see the subcommand."""
    from decoding_server.config import ConfigError

    try:
        return {"code": code, "quality": quality, "serve": serve, "report": report}[flags.bench](flags)
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error}; install the extra: pip install 'decoding-server[bench]'", file=sys.stderr)
        return 1


def configured(flags: argparse.Namespace, engine: tuple[str, ...]) -> "ServerConfig":
    """To be called before torch is imported. Raises ConfigError."""
    from decoding_server.config import load_config
    from decoding_server.openmp import configure_openmp

    configure_openmp()
    given = {name: value for name, value in vars(flags).items() if name in engine}
    return load_config(given if flags.model is None else {**given, "model": flags.model}).config


def code(flags: argparse.Namespace) -> int:
    flags = workload_file.merged(flags, code_flags.add_flags, code_flags.DEFAULTS)
    flags = code_flags.complete(flags)
    config = configured(flags, code_flags.ENGINE)
    from decoding_server.bench.code.command import run
    from decoding_server.cli import load_runtime

    return run(flags, config, load_runtime)


def quality(flags: argparse.Namespace) -> int:
    flags = workload_file.merged(flags, quality_flags.add_flags, quality_flags.DEFAULTS)
    flags = quality_flags.complete(flags)
    config = configured(flags, quality_flags.ENGINE)
    from decoding_server.bench.quality.command import run
    from decoding_server.cli import load_runtime

    return run(flags, config, load_runtime)


def serve(flags: argparse.Namespace) -> int:
    flags = workload_file.merged(flags, serving_flags.add_flags, serving_flags.DEFAULTS)
    flags = serving_flags.complete(flags)
    from decoding_server.bench.serving.command import run

    return run(flags)


def report(flags: argparse.Namespace) -> int:
    flags = reporting_flags.complete(flags)
    from decoding_server.bench.reporting.command import run

    return run(flags)
