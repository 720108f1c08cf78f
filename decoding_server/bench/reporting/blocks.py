"""What a report is made of. A block can show itself as Markdown and as HTML."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import matplotlib as mpl
from matplotlib.figure import Figure

from decoding_server.bench.figures import STYLE, save
from decoding_server.bench.tables import Table


class Block(Protocol):
    def markdown(self, folder: Path) -> str:
        """folder: where files that the text refers to are written."""
        ...

    def html(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 2

    def markdown(self, folder: Path) -> str:
        return f"{'#' * self.level} {plain(self.text)}"

    def html(self) -> str:
        return f"<h{self.level}>{html.escape(self.text)}</h{self.level}>"


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str

    def markdown(self, folder: Path) -> str:
        return plain(self.text)

    def html(self) -> str:
        return f"<p>{html.escape(self.text)}</p>"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table; with a title, one that a page folds away."""

    table: Table
    title: str | None = None

    def markdown(self, folder: Path) -> str:
        return self.table.markdown() if self.title is None else f"{plain(self.title)}\n\n{self.table.markdown()}"

    def html(self) -> str:
        if self.title is None:
            return self.table.html()
        return f"<details><summary>{html.escape(self.title)}</summary>\n{self.table.html()}\n</details>"


@dataclass(frozen=True, slots=True)
class OnPageOnly:
    """Blocks that would make the Markdown too long: the raw rows."""

    blocks: Sequence[Block]

    def markdown(self, folder: Path) -> str:
        return ""

    def html(self) -> str:
        return "\n".join(block.html() for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Picture:
    """name: of its file, without a suffix. alt: what it shows, in words. salt: makes its bytes the same every time."""

    figure: Figure
    name: str
    alt: str

    def markdown(self, folder: Path) -> str:
        path = folder / f"{self.name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.svg())
        return f"![{plain(self.alt)}]({path.name})"

    def html(self) -> str:
        """As an image, in which nothing could run, whatever its texts say."""
        data = base64.b64encode(self.svg()).decode()
        return f'<figure><img alt="{html.escape(self.alt)}" src="data:image/svg+xml;base64,{data}"></figure>'

    def svg(self) -> bytes:
        sink = io.BytesIO()
        with mpl.rc_context({**STYLE, "svg.hashsalt": self.name}):
            save(self.figure, sink)
        return sink.getvalue()


def plain(text: str) -> str:
    """Text that Markdown shows as it is, but for characters that are harmless."""
    return text.replace("<", "&lt;")
