"""`decoding-server bench report`: reads the runs, writes the page, the Markdown and the plots."""

import argparse
import sys

from decoding_server.bench.reporting import views
from decoding_server.bench.reporting.blocks import Block, Heading, plain
from decoding_server.bench.reporting.comparison import compared
from decoding_server.bench.reporting.folder import ReportError, Run, load
from decoding_server.bench.reporting.page import page
from decoding_server.bench.reporting.publishing import folder_of, publish

PAGE, TEXT = "report.html", "report.md"
KINDS = {"quality": "Strategies under equal budgets", "serve": "A server under load", "code": "Searches for programs"}


def run(flags: argparse.Namespace) -> int:
    """See the parser's epilog for the exit codes."""
    try:
        if flags.output is not None:
            report(flags)
            print(f"written to {flags.output / PAGE} and {flags.output / TEXT}")
        if flags.write_docs is not None:
            publish(flags.run, flags.write_docs, flags.title or title_of(load(flags.run)))
            print(f"written to {flags.write_docs} and {folder_of(flags.write_docs)}")
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def report(flags: argparse.Namespace) -> None:
    """Raises ReportError, OSError."""
    first = load(flags.run)
    title = title_of(first)
    blocks: list[Block] = []
    if flags.second is None:
        blocks += views.of_run(first, "run")
    else:
        second = load(flags.second)
        title += f" and {second.title}"
        blocks += compared(first, second)
        blocks += [Heading("The first run"), *views.of_run(first, "first")]
        blocks += [Heading("The second run"), *views.of_run(second, "second")]
    title = flags.title or title
    flags.output.mkdir(parents=True, exist_ok=True)
    (flags.output / PAGE).write_text(page(title, blocks), encoding="utf-8")
    parts = [f"# {plain(title)}", *(text for block in blocks if (text := block.markdown(flags.output)))]
    (flags.output / TEXT).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def title_of(run: Run) -> str:
    return f"{KINDS[run.kind]}: {run.title}"
