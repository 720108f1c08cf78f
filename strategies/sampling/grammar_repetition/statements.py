"""Statement symbols: one sequence of reduced statements per open container, and one per if/else-if or try chain.

A single flat sequence could not show both a repetition of whole suites and one inside a suite, so every open level has
its own (our reading of the paper's reduction to statement level, section 3).
"""

from typing import TYPE_CHECKING, NamedTuple

from strategies.sampling.grammar_repetition.languages import Language
from strategies.sampling.grammar_repetition.leaves import COMMENTS

if TYPE_CHECKING:
    from tree_sitter import Node, Tree, TreeCursor

EXPRESSION, SUITE = "expr", "suite"

WINDOW = 64
"""Units per level that are looked at, from the last: bounds the cost in long flat programs."""

BRACED = frozenset(
    {
        "statement_block",
        "compound_statement",
        "block",
        "class_body",
        "interface_body",
        "constructor_body",
        "enum_body_declarations",
        "declaration_list",
        "field_declaration_list",
        "switch_body",
        "switch_block",
        "match_block",
        "expression_switch_statement",
        "type_switch_statement",
        "select_statement",
    }
)
UNDELIMITED = frozenset({"module", "program", "translation_unit", "source_file", "statement_list"})
CASES = frozenset(
    {
        "case_statement",
        "switch_case",
        "switch_default",
        "switch_block_statement_group",
        "expression_case",
        "type_case",
        "communication_case",
        "default_case",
    }
)
PREPROCESSOR = frozenset({"preproc_if", "preproc_ifdef", "preproc_else", "preproc_elif"})
IFS = frozenset({"if_statement", "if_expression"})
TRIES = frozenset({"try_statement", "try_with_resources_statement"})
CLAUSES = frozenset(
    {"elif_clause", "else_clause", "except_clause", "except_group_clause", "catch_clause", "finally_clause"}
)
EXPANDED = frozenset(
    {
        "assignment",
        "augmented_assignment",
        "assignment_expression",
        "augmented_assignment_expression",
        "compound_assignment_expr",
        "switch_label",
    }
)
SUITE_ENDINGS = ("_statement", "_declaration", "_definition", "_item", "_clause", "_block", "_body", "_case")
SUITES = BRACED | UNDELIMITED | CASES | {"declaration", "switch_expression"}
# Statements in name only: what they hold is what counts.
TRANSPARENT = frozenset({"expression_statement"})


class Unit(NamedTuple):
    """One statement or clause of a level. start: its first byte."""

    symbol: tuple[str, ...]
    start: int
    node: "Node"


class Level(NamedTuple):
    """Units of one open container, or of one chain, in order (at most the last WINDOW)."""

    container: str
    units: list[Unit]


def open_levels(tree: "Tree", language: Language, end: int, since: int = 0) -> list[Level]:
    """The levels open at byte `end`, outermost first. The text from `end` on is virtual closers.

    since: units that begin before it are left out. Levels with fewer than two units are left out.
    """
    levels: list[Level] = []
    cursor = tree.walk()
    parent = ""
    while True:
        node = cursor.node
        assert node is not None
        kind = node.type
        if kind in IFS or kind in TRIES:
            if not (kind in IFS and (parent == "else_clause" or parent in IFS)):
                levels.append(Level(kind, _chain(node, end, since)))
        elif kind in CASES or kind in PREPROCESSOR:
            levels.append(Level(kind, [unit for unit in _units(node, end, since) if _is_suite(unit.node)]))
        elif (kind in BRACED or kind in UNDELIMITED) and not (kind == "block" and _wraps_list(node)):
            levels.append(Level(kind, _units(node, end, since)))
        parent = kind
        if not _to_last_child(cursor, end):
            break
        last = cursor.node
        assert last is not None
        if not language.indentation and last.end_byte <= end and not _may_go_on(last, end):
            break
    return [level for level in levels if len(level.units) > 1]


def reduce(node: "Node") -> tuple[str, ...]:
    """The node's children: terminals stay, the rest becomes expression or suite, equal neighbours merge."""
    symbols: list[str] = []
    _reduce_into(symbols, node)
    return tuple(symbols)


def _reduce_into(symbols: list[str], node: "Node") -> None:
    for child in node.children:
        if child.start_byte == child.end_byte or child.type in COMMENTS:
            continue
        if child.type in EXPANDED:
            _reduce_into(symbols, child)
            continue
        _append(symbols, _class(child))
    if not node.children:
        _append(symbols, _class(node))


def _class(node: "Node") -> str:
    if not node.is_named:
        return node.type
    if node.is_error:
        children = [child for child in node.children if child.start_byte < child.end_byte]
        return children[0].type if len(children) == 1 and not children[0].is_named else EXPRESSION
    return SUITE if _is_suite(node) else EXPRESSION


def _append(symbols: list[str], symbol: str) -> None:
    if symbol.strip() and (not symbols or symbols[-1] != symbol):
        symbols.append(symbol)


def _is_suite(node: "Node") -> bool:
    return node.type in SUITES or node.type.endswith(SUITE_ENDINGS) or node.type.startswith("preproc_def")


def _units(container: "Node", end: int, since: int) -> list[Unit]:
    """Named children of a node that begin in [since, end)."""
    cursor = container.walk()  # never TreeCursor.copy: in tree-sitter 0.26.1 using the copy can crash the process
    nodes: list[Node] = []
    if cursor.goto_first_child_for_byte(since) is None:
        return []
    while True:
        node = cursor.node
        assert node is not None
        if node.start_byte >= end:
            break
        if node.is_named and since <= node.start_byte < node.end_byte and node.type not in COMMENTS:
            nodes.append(node)
        if not cursor.goto_next_sibling():
            break
    return [Unit(reduce(node), node.start_byte, node) for node in nodes[-WINDOW:]]


def _chain(head: "Node", end: int, since: int) -> list[Unit]:
    """The head of an if or try and its clauses; else-ifs, which most grammars nest, in one row."""
    parts: list[tuple[list[Node], Node]] = []  # nodes that make up a clause, and where it starts
    node: Node | None = head
    while node is not None:
        current: list[Node] = parts[-1][0] if parts and node is not head else []
        if node is head:
            parts.append((current, head))
        following: Node | None = None
        for child in node.children:
            if child.start_byte >= end or child.start_byte == child.end_byte or child.type in COMMENTS:
                continue
            if child.type in CLAUSES:
                nested = child.children[-1] if child.type == "else_clause" and child.children else None
                if nested is not None and nested.type in IFS:
                    parts.append((child.children[:-1], child))
                    following = nested
                else:
                    parts.append(([child], child))
            elif child.type == "else":
                parts.append(([child], child))
                current = parts[-1][0]
            elif child.type in IFS and current and current[-1].type == "else":
                following = child
            else:
                current.append(child)
        node = following
    units = []
    for nodes, first in parts[-WINDOW:]:
        symbols: list[str] = []
        for part in nodes:
            if part.type in CLAUSES:
                _reduce_into(symbols, part)
            elif part.type not in COMMENTS:
                _append(symbols, _class(part))
        if first.start_byte >= since:
            units.append(Unit(tuple(symbols), first.start_byte, first))
    return units


def _wraps_list(node: "Node") -> bool:
    """Whether the statements of a block are in a list of their own (Go)."""
    return any(child.type == "statement_list" for child in node.children[:3])


def _to_last_child(cursor: "TreeCursor", end: int) -> bool:
    """Moves to the last child with text that begins before `end` and is no comment; False if there is none."""
    if not cursor.goto_last_child():
        return False
    while True:
        node = cursor.node
        assert node is not None
        if node.start_byte < min(end, node.end_byte) and node.type not in COMMENTS and node.is_named:
            return True
        if not cursor.goto_previous_sibling():
            cursor.goto_parent()
            return False


def _may_go_on(node: "Node", end: int) -> bool:
    """Whether a construct whose last byte is written can still grow: it has no closing delimiter, or takes an else."""
    if node.type in IFS or node.type in TRIES or node.type in UNDELIMITED or node.type in CASES:
        return True
    if node.type in TRANSPARENT and node.named_child_count == 1:
        return node.named_child(0).type in IFS
    return False
