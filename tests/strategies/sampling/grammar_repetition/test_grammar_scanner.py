"""Strings, comments, brackets and what would close them, in every language."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.sampling.grammar_repetition.languages import LANGUAGES, parse
from strategies.sampling.grammar_repetition.scanner import Scanner


def scanned(language: str, text: str) -> Scanner:
    scanner = Scanner(LANGUAGES[language])
    scanner.feed(text.encode())
    return scanner


@pytest.mark.parametrize(
    ("language", "text", "inside", "closers"),
    [
        ("python", "x = f('(', [1,\n", False, b"])\n"),
        ("python", 'def f():\n    """ (\n', True, b""),
        ("python", 'def f():\n    """ ( """\n', False, b""),
        ("python", "s = 'it\\'s (' # it's [\n", False, b""),
        ("python", "s = 'unterminated (\nx = (\n", False, b")\n"),
        ("python", "s = 'goes on \\\n", True, b""),
        ("python", "s = '''a\\''' (\n", True, b""),
        ("javascript", "const a = `x ${f({\n", False, b"})}`\n"),
        ("javascript", "const a = `x ${y} (\n", True, b""),
        ("javascript", "const a = `x ${`${1}`} ` + {\n", False, b"}\n"),
        ("javascript", 'const r = /[/"(]\\//.test(x) ? [\n', False, b"]\n"),
        ("javascript", "const q = a / b / (c\n", False, b")\n"),
        ("javascript", "import {\n", False, b"} from ''\n"),
        ("javascript", "try {\n", False, b"} finally {}\n"),
        ("typescript", "import type {\n", False, b"} from ''\n"),
        ("tsx", "function f() {\n  return (\n", False, b")}\n"),
        ("c", "int x = '\\''; /* ( \n", True, b""),
        ("c", "struct s {\n", False, b"};\n"),
        ("c", "#ifdef A\nint f() {\n#else\nint g() {\n", False, b"}\n#endif\n\n"),
        ("c", "#if A\nint f() {\n#endif\n", False, b"}\n"),
        ("c", "do {\n", False, b"} while (0);\n"),
        ("cpp", 'auto s = R"x( ( )" )x"; f(1\'000, {\n', False, b"})\n"),
        ("cpp", 'auto s = R"x( )" \n', True, b""),
        ("java", 'String s = """\n', True, b""),
        ("java", "char c = '\"'; f(\n", False, b")\n"),
        ("go", "s := `\\` + f(`\n", True, b""),
        ("go", "s := `\\` + f(\n", False, b")\n"),
        ("rust", "fn f<'a>(x: &'a str) { let c = '{'; let s = r#\" \" { \"#;\n", False, b"}\n"),
        ("rust", "/* a /* b */ (\n", True, b""),
        ("rust", "/* a /* b */ */ (\n", False, b")\n"),
        ("rust", "use std::{\n", False, b"};\n"),
    ],
)
def test_state_after_a_text(language: str, text: str, inside: bool, closers: bytes) -> None:
    scanner = scanned(language, text)
    assert (scanner.inside is not None) == inside
    if not inside:
        assert scanner.closers() == closers


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("javascript", "function f(a) {\n  if (a) {\n    g(`${a}`, {\n      b: [\n"),
        ("typescript", "import {\n  a,\n"),
        ("c", "#ifndef A\nstruct s {\n  int a;\n"),
        ("c", "static int t[] = {\n  1,\n"),
        ("cpp", "namespace a {\nclass B : public C {\n public:\n  B() {\n    try {\n"),
        ("java", "class A {\n  void f() {\n    try {\n      do {\n        a();\n"),
        ("go", "package a\n\ntype T struct {\n\tx int\n"),
        ("go", "package a\n\nconst (\n\tx = 1\n"),
        ("rust", "use a::{\n    b,\n"),
        ("rust", "fn f() {\n    let x = S {\n        a: 1,\n"),
        ("python", "x = {\n    'a': [\n        (1,\n"),
    ],
)
def test_closers_make_a_prefix_a_program(language: str, text: str) -> None:
    """A raw prefix of a braced language is mostly one error; the completed one has none."""
    scanner = scanned(language, text)
    root = parse(LANGUAGES[language], text.encode() + scanner.closers()).root_node
    assert not any(node.is_error for node in descendants(root))


def descendants(node):  # type: ignore[no-untyped-def]
    yield node
    for child in node.children:
        yield from descendants(child)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(LANGUAGES)), st.text(alphabet="(){}[]'\"`/*#$\\ \nr=R@i", max_size=80))
def test_lines_one_by_one_or_together(language: str, text: str) -> None:
    together = scanned(language, text)
    apart = Scanner(LANGUAGES[language])
    for line in text.encode().splitlines(keepends=True):
        apart.feed(line)
    assert apart.inside == together.inside
    assert apart.brackets == together.brackets


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(LANGUAGES)), st.binary(max_size=200))
def test_any_bytes(language: str, data: bytes) -> None:
    scanner = Scanner(LANGUAGES[language])
    scanner.feed(data)
    assert scanner.offset == len(data)


def test_too_many_brackets_are_given_up() -> None:
    scanner = scanned("c", "(" * 100_000)
    assert scanner.overflow
    assert len(scanner.brackets) <= 64
