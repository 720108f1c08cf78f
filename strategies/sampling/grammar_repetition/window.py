"""The part of a long program that is parsed: its last lines, inside the headers of what encloses them.

Parsing the whole text, even incrementally, takes time proportional to the statements of a long flat run, which is what
a repetition is. The enclosing headers are enough for the last lines to parse as they do in the full text.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from strategies.sampling.grammar_repetition.languages import Language, parse
from strategies.sampling.grammar_repetition.leaves import COMMENTS
from strategies.sampling.grammar_repetition.scanner import ENDIF, INTERPOLATION, Bracket
from strategies.sampling.grammar_repetition.statements import BRACED, CASES, CLAUSES, IFS, UNDELIMITED

if TYPE_CHECKING:
    from tree_sitter import Node, Tree

MAX_HEADER = 1024
OPENERS = {b")": b"(", b"]": b"[", b"}": b"{"}
BODIES = BRACED | UNDELIMITED | CASES | {"block"}


class SourceWindow:
    """A text that grows at its end, whose beginning may be replaced by headers, and its syntax tree.

    shift: offset in the whole text minus offset here, of everything from `head` on. tree: as of the last `parse`.
    Trees and texts are never changed in place, so forks share them.
    """

    __slots__ = ("_brackets", "_closers", "_language", "_parsed", "_row", "head", "shift", "text", "tree")

    def __init__(self, language: Language) -> None:
        self._language = language
        self.text = b""
        self.head = self.shift = 0
        self._brackets: dict[int, int] = {}  # of the headers: offset in the whole text -> here
        self.tree: Tree | None = None
        self._parsed = self._row = 0
        self._closers = b""

    def append(self, data: bytes) -> None:
        """Adds complete lines."""
        self.text += data

    def parse(self, closers: bytes) -> "Tree":
        """The tree of the text, completed by what closes its open brackets. Reuses the tree before.

        Without the closers an unfinished program in a braced language is one long error, slow to parse and without
        statements.
        """
        end = len(self.text)
        row = self._row + self.text.count(b"\n", self._parsed)
        old = self.tree
        if old is not None:
            old = old.copy()  # forks share the tree, and an edit changes it in place
            old.edit(
                self._parsed,
                self._parsed + len(self._closers),
                end + len(closers),
                (self._row, 0),
                _point(self._row, self._closers),
                _point(row, closers),
            )
        self.tree = tree = parse(self._language, self.text + closers, old)
        self._parsed, self._row, self._closers = end, row, closers
        return tree

    def place(self, offset: int) -> int | None:
        """Offset here of an offset in the whole text, if it is still here."""
        here = offset - self.shift
        return here if here >= self.head else self._brackets.get(offset)

    def restart(self, whole: bytes, offset: int, brackets: Sequence[Bracket]) -> bool:
        """Keeps only the lines from `offset` of the whole text on, under the headers of what encloses them.

        brackets: those open there. False if the line there can't be a beginning; nothing changes then.
        """
        places = [self.place(bracket.offset) for bracket in brackets]
        start = self.place(offset)
        if self.tree is None or start is None:
            return False
        found = enclosing_headers(
            self.tree,
            self.text,
            start,
            [Bracket(b.closer, at) for b, at in zip(brackets, places, strict=True) if at is not None],
        )
        if found is None or None in places:
            return False
        self._brackets = dict(zip([bracket.offset for bracket in brackets], found.brackets, strict=True))
        self.text = found.text + whole[offset:]
        self.head, self.shift = len(found.text), offset - len(found.text)
        self.forget()
        return True

    def forget(self) -> None:
        """Drops the tree; the next is built anew. (Reused trees can drift from fresh ones: tree-sitter issue 1444.)"""
        self.tree, self._parsed, self._row, self._closers = None, 0, 0, b""

    def fork(self) -> "SourceWindow":
        """An independent copy."""
        copy = SourceWindow.__new__(SourceWindow)
        for name in SourceWindow.__slots__:
            setattr(copy, name, getattr(self, name))
        return copy


class Headers(NamedTuple):
    """Text that opens what encloses a place, and where in it the open brackets are."""

    text: bytes
    brackets: list[int]


def enclosing_headers(tree: "Tree", text: bytes, place: int, brackets: Sequence[Bracket]) -> Headers | None:
    """Headers of the blocks (by indentation) and brackets that enclose the line that begins at `place`.

    Offsets, those of `brackets` too, are of the tree's text. None where no statement or element begins with the line,
    or where one needs what is before it (a case's label).
    """
    line = text[place : text.index(b"\n", place)]
    visible = place + len(line) - len(line.lstrip())
    leaf = tree.root_node.descendant_for_byte_range(visible, visible + 1) if line.strip() else None
    if leaf is None or not _begins(tree, leaf, brackets):
        return None
    found = b"".join(_indented(node, text) for node in _ancestors(leaf) if node.type == "block" and _by_colon(node))
    offsets: list[int] = []
    previous = -1
    for bracket in brackets:
        header = _header(tree, text, bracket, previous)
        offsets.append(len(found) + len(header) - 1)
        found += header
        previous = bracket.offset
    return Headers(found + b"\n" if offsets else found, offsets)


def _begins(tree: "Tree", leaf: "Node", brackets: Sequence[Bracket]) -> bool:
    """Whether a line's first leaf begins a statement of a body, or an element of what the innermost bracket opens."""
    opener = (
        tree.root_node.descendant_for_byte_range(brackets[-1].offset, brackets[-1].offset + 1) if brackets else None
    )
    container = None if opener is None else opener.parent
    if leaf.type in COMMENTS:
        return False
    node, parent = leaf, leaf.parent
    while parent is not None and parent.start_byte == leaf.start_byte and parent.parent is not None:
        if parent == container or parent.type in BODIES - CASES:
            break
        node, parent = parent, parent.parent
    if parent is None or node.type in CLAUSES or node.type in ("else", "catch", "finally"):
        return False
    if parent.type == "statement_list" and parent.parent is not None and parent.parent.type in CASES:
        return False
    return parent == container or parent.type in BODIES - CASES


def _ancestors(node: "Node") -> list["Node"]:
    """The nodes that enclose a node, outermost first."""
    found = []
    current = node.parent
    while current is not None:
        found.append(current)
        current = current.parent
    return found[::-1]


def _by_colon(block: "Node") -> bool:
    """Whether the block is Python's, which has no braces."""
    first = block.child(0)
    return first is None or first.type != "{"


def _indented(block: "Node", text: bytes) -> bytes:
    """The header line of a Python block; a clause becomes a statement that can stand alone."""
    owner = block.parent
    if owner is None:
        return b""
    column = owner.start_point[1]
    margin = text[owner.start_byte - column : owner.start_byte]
    header = text[owner.start_byte : block.start_byte].rstrip()
    if owner.type == "elif_clause":
        header = header[2:]
    elif owner.type in ("else_clause", "finally_clause"):
        header = b"if 1:"
    elif owner.type in CLAUSES:
        header = b"try:"
    return (margin if not margin.strip() else b" " * column) + header + b"\n" if len(header) <= MAX_HEADER else b""


def _header(tree: "Tree", text: bytes, bracket: Bracket, previous: int) -> bytes:
    """The text that leads from the bracket before (or the statement's beginning) to this bracket, itself included."""
    if bracket.closer == ENDIF:
        return b"\n#if 1\n"
    if bracket.closer == INTERPOLATION:
        return b"`${"
    opener = OPENERS[bracket.closer[:1]]
    leaf = tree.root_node.descendant_for_byte_range(bracket.offset, bracket.offset + 1)
    node = None if leaf is None else leaf.parent
    if node is None or node.is_error:
        return opener
    while (parent := node.parent) is not None:
        nested_if = node.type in IFS and parent.type in IFS
        if parent.start_byte <= previous or parent.type in BODIES or parent.type in CLAUSES or nested_if:
            break
        if parent.is_error or parent.parent is None:
            break
        node = parent
    start = max(node.start_byte, previous + 1)
    if bracket.offset - start > MAX_HEADER:
        return opener
    margin = b" " * node.start_point[1] if previous < 0 else b""
    return margin + text[start : bracket.offset + 1]


def _point(row: int, text: bytes) -> tuple[int, int]:
    """(row, column) of the end of a text that begins a row."""
    return row + text.count(b"\n"), len(text) - 1 - text.rfind(b"\n")
