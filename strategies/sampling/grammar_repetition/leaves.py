"""Line symbols: the class of each lexeme that begins in a line, read off a syntax tree.

The type of an anonymous node is the text of its terminal and that of a named leaf the token's class, so that keywords
and punctuation stand for themselves in every grammar, without tables per language.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tree_sitter import Node, TreeCursor

STRING, COMMENT, NUMBER, NAME = "STRING", "COMMENT", "NUMBER", "NAME"

STRINGS = frozenset(
    {
        "string",
        "string_literal",
        "raw_string_literal",
        "interpreted_string_literal",
        "template_string",
        "char_literal",
        "character_literal",
        "rune_literal",
        "system_lib_string",
        "regex",
    }
)
COMMENTS = frozenset({"comment", "line_comment", "block_comment", "hash_bang_line"})
NUMBERS = frozenset(
    {
        "integer",
        "float",
        "number",
        "number_literal",
        "integer_literal",
        "float_literal",
        "int_literal",
        "imaginary_literal",
        "decimal_integer_literal",
        "hex_integer_literal",
        "octal_integer_literal",
        "binary_integer_literal",
        "decimal_floating_point_literal",
        "hex_floating_point_literal",
    }
)


class Leaf(NamedTuple):
    """A lexeme: its class, its first byte, and its text if it is a keyword or punctuation."""

    symbol: str
    start: int
    lexeme: str | None


def leaf_of(node: "Node") -> Leaf | None:
    """The node as one lexeme, or None if its children are the lexemes."""
    kind = node.type
    if not node.is_named:
        return Leaf(kind, node.start_byte, kind) if node.child_count == 0 else None
    if kind in STRINGS:
        return Leaf(STRING, node.start_byte, None)
    if kind in COMMENTS:
        return Leaf(COMMENT, node.start_byte, None)
    if node.child_count:
        return None
    if kind in NUMBERS:
        return Leaf(NUMBER, node.start_byte, None)
    return Leaf(NAME if kind.endswith("identifier") else kind, node.start_byte, None)


def leaves(cursor: "TreeCursor", start: int, end: int) -> list[Leaf]:
    """Lexemes under the cursor's node that begin in [start, end), in order. Leaves the cursor anywhere.

    Lexemes without text, which the parser made up, are left out.
    """
    found: list[Leaf] = []
    depth = 0
    if not _down(cursor, start):
        return found
    while True:
        node = cursor.node
        assert node is not None
        begin = node.start_byte
        if begin >= end:
            return found
        if node.end_byte > max(begin, start):
            leaf = leaf_of(node)
            if leaf is None:
                if _down(cursor, start):
                    depth += 1
                    continue
            elif begin >= start:
                found.append(leaf)
        while not cursor.goto_next_sibling():
            if depth == 0:
                return found
            cursor.goto_parent()
            depth -= 1


def first_leaf(node: "Node") -> Leaf:
    """The first lexeme of a node."""
    cursor = node.walk()
    while True:
        current = cursor.node
        assert current is not None
        leaf = leaf_of(current)
        if leaf is not None:
            return leaf
        if not cursor.goto_first_child():
            return Leaf(current.type, current.start_byte, None)


def _down(cursor: "TreeCursor", start: int) -> bool:
    """Moves to the first child that ends beyond `start`; False if there is none."""
    return cursor.goto_first_child_for_byte(start) is not None
