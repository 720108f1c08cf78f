"""Generated blocks of a Markdown file: the text between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

import re
from collections.abc import Callable, Mapping

BLOCK = re.compile(r"<!-- (?P<name>[a-z0-9.-]+):begin -->\n(?P<text>.*?)<!-- (?P=name):end -->", re.DOTALL)
BEGIN = re.compile(r"<!-- ([a-z0-9.-]+):begin -->")


class MarkerError(Exception):
    """A block's name is unknown, or its end is missing."""


def block(name: str, text: str) -> str:
    """One block, markers included."""
    return f"<!-- {name}:begin -->\n{text.strip()}\n<!-- {name}:end -->"


def names(document: str) -> list[str]:
    """The names of the blocks, in order. Raises MarkerError."""
    found = [match["name"] for match in BLOCK.finditer(document)]
    begun = BEGIN.findall(document)
    if found != begun:
        raise MarkerError(f"blocks begin as {begun} and are complete as {found}")
    return found


def replaced(document: str, generators: Mapping[str, Callable[[], str]], *, foreign: bool = False) -> str:
    """The document with every block as its generator makes it. foreign: blocks without a generator are another
    program's and stay as they are. Raises MarkerError."""
    for name in names(document):
        if name not in generators and not foreign:
            raise MarkerError(f"there is no block {name!r}; there are: {', '.join(sorted(generators))}")

    def made(match: re.Match[str]) -> str:
        generator = generators.get(match["name"])
        return match[0] if generator is None else block(match["name"], generator())

    return BLOCK.sub(made, document)


def with_block(document: str, name: str, text: str) -> str:
    """The document with this block replaced and all others as they are. Raises MarkerError where it is missing."""
    if name not in names(document):
        raise MarkerError(f"there is no block {name!r} to write to")
    return BLOCK.sub(lambda match: block(name, text) if match["name"] == name else match[0], document)
