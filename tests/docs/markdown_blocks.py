"""The code blocks of the documents, and what the comment in front of one says about it.

A comment of its own, directly before a block, is read where it begins with one of these:

    <!-- not run: REASON -->                 needs what a test can't have; the reason is for the reader too
    <!-- checked by: tests/FILE -->          a test of its own reads the block from the document
    <!-- same as: FILE -->                   the block is a copy of a file of the repository, which has tests
    <!-- reply to: METHOD PATH BODY -->      the server answers this to that request
    <!-- content of: KIND -->                a file or message of that kind, read by what reads it in the product
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
MARKS = ("not run", "checked by", "same as", "reply to", "content of")
MARK = re.compile(rf"<!-- ({'|'.join(MARKS)}): (.+?) -->\s*", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block. line: of its first line of text, from 1. mark, about: of the comment in front; or empty."""

    document: str
    line: int
    language: str
    text: str
    mark: str = ""
    about: str = ""

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


def documents() -> list[str]:
    """Everything that a reader gets, by its path in the repository."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    found = [*top, *sorted((ROOT / "examples").rglob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in found]


@cache
def blocks(document: str) -> tuple[Block, ...]:
    return tuple(read_blocks(document, (ROOT / document).read_text(encoding="utf-8")))


def read_blocks(document: str, text: str) -> list[Block]:
    """A block that is made by indentation has the language "indented"."""
    found = []
    before = ""
    for token in MarkdownIt("commonmark").parse(text):
        if token.type in ("fence", "code_block") and token.map is not None:
            match = MARK.fullmatch(before)
            fenced = token.type == "fence"
            language = token.info.strip() if fenced else "indented"
            mark, about = (match[1], " ".join(match[2].split())) if match else ("", "")
            found.append(Block(document, token.map[0] + 1 + fenced, language, token.content, mark, about))
        before = token.content if token.type == "html_block" else ""
    return found


def all_blocks() -> list[Block]:
    return [block for document in documents() for block in blocks(document)]
