"""The languages: their names, grammars (loaded on first use), and what the scanner has to know of their lexemes."""

import importlib
import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from strategies.errors import InvalidRequest

if TYPE_CHECKING:
    from tree_sitter import Language as Grammar
    from tree_sitter import Parser, Tree

PARAM = "decoding.penalty.language"


@dataclass(frozen=True, slots=True)
class Quote:
    """A string literal's lexical form. closer: None for a raw string whose closer depends on its opener."""

    closer: bytes | None
    multiline: bool = False
    escapes: bool = True
    interpolates: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Language:
    """One language; compared and hashed by identity.

    package, function: the tree-sitter wheel's module and what it exports. tags: Markdown fence tags that name it.
    line_comment: opener, or None. block_comment: (opener, closer), or None; nested_comments: whether they nest.
    quotes: opener -> form. indentation: whether blocks are delimited by it rather than by braces.
    skipped: regular expression of lexemes that only look like openers (digit separators, Rust characters).
    endings: (regular expression of the line before a `{`, what has to follow the `}`), the first match counts.
    regex_literals: whether `/` may open one. preprocessor: whether `#if` opens what `#endif` closes.
    """

    name: str
    package: str
    tags: tuple[str, ...]
    line_comment: bytes
    quotes: dict[bytes, Quote]
    function: str = "language"
    block_comment: tuple[bytes, bytes] | None = (b"/*", b"*/")
    nested_comments: bool = False
    indentation: bool = False
    raw_opener: bytes | None = None
    skipped: bytes | None = None
    endings: tuple[tuple[bytes, bytes], ...] = ()
    regex_literals: bool = False
    preprocessor: bool = False


ONE_LINE = {b'"': Quote(b'"'), b"'": Quote(b"'")}
ECMASCRIPT = ONE_LINE | {b"`": Quote(b"`", multiline=True, interpolates=True)}
DIGIT_SEPARATOR = rb"(?<=[0-9A-Fa-f])'(?=[0-9A-Fa-f])"
DO = (rb"\bdo\s*$", b" while (0);")
TRY = (rb"\btry\b[^;{}]*$", b" finally {}")
C_ENDINGS = (
    DO,
    (rb"^\s*typedef\b[^;(){}]*$", b" _;"),
    (rb"\b(?:struct|class|union|enum)\b[^;(){}]*$", b";"),
    (rb"^\s*[^.\[\s{,/*][^;{]*=\s*$", b";"),
)
CPP_ENDINGS = ((rb"\btry\s*$", b" catch (...) {}"), *C_ENDINGS)
JAVA_ENDINGS = (DO, TRY, (rb"=\s*(?:new\b[^;{}]*)?$", b";"))
ECMASCRIPT_ENDINGS = (
    DO,
    TRY,
    (rb"^\s*(?:import(?:\s+type|\s+\w+\s*,)?|export(?:\s+type)?)\s*$", b" from ''"),
)
RUST_ENDINGS = ((rb"^\s*(?:pub\b[^;{}]*)?(?:use\b|(?:static|const|let)\b[^;{}()]*=)[^;{}()]*$", b";"),)
RUST_CHARACTER = rb"'(?:\\[^\n][^'\n]{0,10}|[^'\\\n]{1,4})'|'"

LANGUAGES = {
    language.name: language
    for language in (
        Language(
            "python",
            "tree_sitter_python",
            ("python", "py", "python3", "py3", "pyi"),
            b"#",
            ONE_LINE | {b'"""': Quote(b'"""', multiline=True), b"'''": Quote(b"'''", multiline=True)},
            block_comment=None,
            indentation=True,
        ),
        Language(
            "javascript",
            "tree_sitter_javascript",
            ("javascript", "js", "jsx", "mjs", "cjs", "node"),
            b"//",
            ECMASCRIPT,
            endings=ECMASCRIPT_ENDINGS,
            regex_literals=True,
        ),
        Language(
            "typescript",
            "tree_sitter_typescript",
            ("typescript", "ts", "mts", "cts"),
            b"//",
            ECMASCRIPT,
            function="language_typescript",
            endings=ECMASCRIPT_ENDINGS,
            regex_literals=True,
        ),
        Language(
            "tsx",
            "tree_sitter_typescript",
            ("tsx",),
            b"//",
            ECMASCRIPT,
            function="language_tsx",
            endings=ECMASCRIPT_ENDINGS,
            regex_literals=True,
        ),
        Language("c", "tree_sitter_c", ("c", "h"), b"//", ONE_LINE, endings=C_ENDINGS, preprocessor=True),
        Language(
            "cpp",
            "tree_sitter_cpp",
            ("cpp", "c++", "cc", "cxx", "hpp", "hh", "hxx"),
            b"//",
            ONE_LINE,
            raw_opener=rb'R"([^()\\\s]{0,16})\(',
            skipped=DIGIT_SEPARATOR,
            endings=CPP_ENDINGS,
            preprocessor=True,
        ),
        Language(
            "java",
            "tree_sitter_java",
            ("java",),
            b"//",
            ONE_LINE | {b'"""': Quote(b'"""', multiline=True)},
            endings=JAVA_ENDINGS,
        ),
        Language(
            "go",
            "tree_sitter_go",
            ("go", "golang"),
            b"//",
            ONE_LINE | {b"`": Quote(b"`", multiline=True, escapes=False)},
        ),
        Language(
            "rust",
            "tree_sitter_rust",
            ("rust", "rs"),
            b"//",
            {b'"': Quote(b'"', multiline=True)},
            nested_comments=True,
            raw_opener=rb'(?<![A-Za-z0-9_])b?c?r(#{0,16})"',
            skipped=RUST_CHARACTER,
            endings=RUST_ENDINGS,
        ),
    )
}

TAGS = {tag: language for language in LANGUAGES.values() for tag in language.tags}


def by_tag(tag: str) -> Language | None:
    """The language that a Markdown fence's tag names, or None."""
    return TAGS.get(tag.lower())


@cache
def grammar(language: Language) -> "Grammar":
    """The tree-sitter grammar. Raises InvalidRequest (naming the language field) when its wheel is not installed."""
    try:
        tree_sitter = importlib.import_module("tree_sitter")
        module = importlib.import_module(language.package)
    except ImportError as fault:
        package = language.package.replace("_", "-")
        raise InvalidRequest(
            f"the language {language.name} needs the packages tree-sitter and {package}, not installed here", PARAM
        ) from fault
    loaded: Grammar = tree_sitter.Language(getattr(module, language.function)())
    return loaded


_parsers = threading.local()


def parse(language: Language, text: bytes, old: "Tree | None" = None) -> "Tree":
    """Syntax tree of a text; old: an edited tree of an earlier version, whose unchanged parts are reused.

    Parsers keep no state between calls, so that each thread needs only one per language.
    """
    parsers: dict[str, Parser] = _parsers.__dict__
    parser = parsers.get(language.name)
    if parser is None:
        tree_sitter = importlib.import_module("tree_sitter")
        parser = parsers[language.name] = tree_sitter.Parser(grammar(language))
    return parser.parse(text) if old is None else parser.parse(text, old)
