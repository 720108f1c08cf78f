"""Tables of a report, as Markdown and as HTML; both hold whatever text they are given."""

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """The first column stands to the left, the others to the right."""

    header: Sequence[str]
    lines: Sequence[Sequence[str]]

    def markdown(self) -> str:
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        head = [_line(self.header), "| " + " | ".join(rule) + " |"]
        return "\n".join([*head, *map(_line, self.lines)])

    def html(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in self.header)
        body = "\n".join(
            "<tr>"
            + "".join(
                f'<th scope="row">{html.escape(text)}</th>' if i == 0 else f"<td>{html.escape(text)}</td>"
                for i, text in enumerate(line)
            )
            + "</tr>"
            for line in self.lines
        )
        return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(cell, cells)) + " |"


def cell(text: str) -> str:
    """Text that neither ends its cell nor its row, nor is markup."""
    flat = " ".join(text.split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def known(value: float | None, how: str, unit: float = 1) -> str:
    """A number of so many units; what a server did not report is not guessed."""
    return "unknown" if value is None else format(value / unit, how)
