"""Python source that comes from requests and models: whatever it is, parsing it ends in a tree or in None."""

import ast

REFUSALS = (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError)
"""What Python's parser and its relatives raise: deep nesting ends in some of these, a NUL or a huge int in others."""


def tree_of(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except REFUSALS:
        return None


def expression_of(source: str) -> ast.expr | None:
    try:
        return ast.parse(source, mode="eval").body
    except REFUSALS:
        return None


def source_of(tree: ast.AST) -> str | None:
    """Source in normal form. None for what is nested too deeply to be written, though it could be parsed."""
    try:
        return ast.unparse(tree)
    except REFUSALS:
        return None


def is_literal(expression: ast.expr) -> bool:
    try:
        ast.literal_eval(expression)
    except REFUSALS:
        return False
    return True
