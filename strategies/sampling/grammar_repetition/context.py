"""What kind of code repeats: an import block, declarations, a literal or argument list, or other code."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from strategies.sampling.grammar_repetition.policy import Context

if TYPE_CHECKING:
    from tree_sitter import Tree

IMPORTS = frozenset(
    {
        "import_statement",
        "import_from_statement",
        "future_import_statement",
        "import_declaration",
        "import_spec",
        "package_clause",
        "package_declaration",
        "preproc_include",
        "preproc_def",
        "preproc_function_def",
        "using_declaration",
        "use_declaration",
        "extern_crate_declaration",
        "mod_item",
    }
)
DECLARATIONS = frozenset(
    {
        "declaration",
        "field_declaration",
        "lexical_declaration",
        "variable_declaration",
        "local_variable_declaration",
        "constant_declaration",
        "public_field_definition",
        "field_definition",
        "property_signature",
        "type_definition",
        "alias_declaration",
        "var_declaration",
        "var_spec",
        "var_spec_list",
        "const_declaration",
        "const_spec",
        "let_declaration",
        "const_item",
        "static_item",
        "type_item",
    }
)
LITERALS = frozenset(
    {
        "dictionary",
        "dictionary_comprehension",
        "set",
        "set_comprehension",
        "object",
        "object_pattern",
        "named_imports",
        "export_clause",
        "initializer_list",
        "enumerator_list",
        "array_initializer",
        "element_value_array_initializer",
        "literal_value",
        "field_initializer_list",
        "use_list",
        "enum_variant_list",
        "token_tree",
        "enum_body",
        "object_type",
    }
)


def context_of(tree: "Tree", literal: bool, starts: Sequence[int]) -> Context:
    """Context of a repeating unit whose lines begin (first lexeme) at the offsets `starts` of the tree's text.

    literal: whether the text ends inside a literal or an argument or parameter list.
    """
    kinds = {_kind(tree, start) for start in starts}
    if kinds == {"imports"}:
        return "imports"
    if literal:
        return "literals"
    return "declarations" if kinds == {"declarations"} else "code"


def inside_literal(tree: "Tree", closer: bytes, offset: int) -> bool:
    """Whether the innermost open bracket, at an offset of the tree's text, is that of a literal, an argument list or a
    parameter list."""
    leaf = tree.root_node.descendant_for_byte_range(offset, offset + 1)
    container = leaf.parent if leaf is not None else None
    kind = container.type if container is not None else "ERROR"
    if closer.startswith(b"}"):
        return kind in LITERALS
    return kind not in DECLARATIONS


def _kind(tree: "Tree", start: int) -> str:
    """Whether the outermost statement that begins at this offset imports, declares, or does something else."""
    cursor = tree.walk()
    while cursor.goto_first_child_for_byte(start) is not None:
        node = cursor.node
        assert node is not None
        if node.start_byte > start:
            break
        if node.start_byte == start:
            if node.type in IMPORTS:
                return "imports"
            if node.type in DECLARATIONS:
                return "declarations"
            if node.type == "assignment" and node.child_by_field_name("type") is not None:
                return "declarations"  # a Python annotation, as in the fields of a dataclass
    return "other"
