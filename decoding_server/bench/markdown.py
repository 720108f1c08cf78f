"""Markdown that holds what it is given."""

from collections.abc import Sequence


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in (header, rule, *lines))


def cell(text: str) -> str:
    """Text that neither ends its cell nor its row."""
    return " ".join(text.replace("|", "\\|").split())
