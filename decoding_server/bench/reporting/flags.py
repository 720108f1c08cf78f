"""The flags of `decoding-server bench report`."""

import argparse
from pathlib import Path


def describe(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "A report of one run of bench quality, serve or code, from its raw rows: report.html, one file that loads "
        "nothing; report.md and its plots as SVG. With a second run of the same kind, both and their differences."
    )
    parser.epilog = "Exit codes: 0 written, 1 a folder can't be reported on."
    parser.add_argument("run", type=Path, metavar="DIR", help="the --output of a run")
    parser.add_argument("second", type=Path, nargs="?", metavar="DIR", help="a second run, compared with the first")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the report")
    parser.add_argument(
        "--write-docs",
        type=Path,
        metavar="PAGE",
        help="a Markdown page with a block `report`, which gets the tables and the plot; raw rows and a report go into "
        "a folder of the page's name",
    )
    parser.add_argument("--title", help="of the page (default: the runs' names)")


def complete(flags: argparse.Namespace) -> argparse.Namespace:
    """Raises ValueError."""
    if flags.output is None and flags.write_docs is None:
        raise ValueError("--output is missing")
    if flags.second is not None and flags.output is None:
        raise ValueError("--output is missing: a page of the documentation shows one run")
    return flags
