"""`decoding-server bench report`: reads the runs, writes the page, the Markdown and the plots."""

import argparse
import sys

from decoding_server.bench.reporting import views
from decoding_server.bench.reporting.blocks import Block, Heading, plain
from decoding_server.bench.reporting.comparison import compared
from decoding_server.bench.reporting.folder import ReportError, load
from decoding_server.bench.reporting.page import page

PAGE, TEXT = "report.html", "report.md"
KINDS = {"quality": "Strategies under equal budgets", "serve": "A server under load", "code": "Searches for programs"}


def run(flags: argparse.Namespace) -> int:
    """See the parser's epilog for the exit codes."""
    try:
        first = load(flags.run)
        blocks: list[Block] = []
        title = f"{KINDS[first.kind]}: {first.title}"
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
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written to {flags.output / PAGE} and {flags.output / TEXT}")
    return 0
