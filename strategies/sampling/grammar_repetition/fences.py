"""Markdown code fences, line by line (CommonMark 4.5, but with any indentation, as in lists)."""

import re
from typing import NamedTuple

FENCE = re.compile(rb"([ \t]*)(`{3,}|~{3,})[ \t]*(.*?)[ \t\r]*\n?")
TAG = re.compile(rb"\{?[ \t]*\.?([A-Za-z0-9_+#-]+)")


class Fence(NamedTuple):
    """An open fence. tag: the language it names, "" for none."""

    indent: int
    marker: bytes
    tag: str


def opening(line: bytes) -> Fence | None:
    """The fence that this line opens, if it does."""
    match = FENCE.fullmatch(line)
    if match is None or (match[2][:1] == b"`" and b"`" in match[3]):
        return None
    tag = TAG.match(match[3])
    return Fence(len(match[1].expandtabs(4)), match[2], tag[1].decode() if tag else "")


def closes(line: bytes, fence: Fence) -> bool:
    """Whether this line closes the fence: at least as many markers and nothing else, not much deeper than it opened."""
    match = FENCE.fullmatch(line)
    return (
        match is not None
        and not match[3]
        and match[2].startswith(fence.marker)
        and len(match[1].expandtabs(4)) <= fence.indent + 3
    )
