"""The repetition metrics, against hand-counted programs."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding_server.bench.repetition import (
    compile_share,
    compiles,
    end_share,
    ngrams,
    raw_line_repetition,
    raw_token_repetition,
    repeated_share,
    statement_repetition,
    symbols,
    token_repetition,
)

# Text, G(x), TR-N for n = 4, TR-S.
PROGRAMS: list[tuple[str, str, float, float]] = [
    ("a = 1\nb = 2\nc = 3\n", "NAME = NUMBER NAME = NUMBER NAME = NUMBER", 0.5, 0.666667),
    ("x = 1\n" * 5, " ".join(["NAME = NUMBER"] * 5), 0.75, 0.8),
    (
        "import os\n\ndef f(p):\n    return os.stat(p)\n",
        "import NAME def NAME ( NAME ) : return NAME . NAME ( NAME )",
        0.083333,
        0.0,
    ),
]


@pytest.mark.parametrize(("text", "classes", "tr_n", "tr_s"), PROGRAMS)
def test_paper_metrics(text: str, classes: str, tr_n: float, tr_s: float) -> None:
    assert [symbol for line in symbols(text, "python") for symbol in line] == classes.split()
    assert token_repetition(text, "python") == pytest.approx(tr_n, abs=1e-6)
    assert statement_repetition(text, "python") == pytest.approx(tr_s, abs=1e-6)


def test_grammar_metrics_see_through_names_comments_and_strings() -> None:
    text = "f('a')  # one\n# two\n\ng('''b''')\n"
    assert statement_repetition(text, "python") == 0.5
    assert raw_line_repetition(text) == 0.0
    assert statement_repetition("f(1);\ng(2);\n", "c") == 0.5


def test_raw_metrics() -> None:
    assert raw_line_repetition("a\nb\na\na\n") == 0.5
    assert raw_token_repetition([["a", "b", "a", "b", "a"]], 2) == 0.5
    # Summed over programs, not averaged: 2 + 1 distinct of 4 + 1.
    assert raw_token_repetition([["a", "b", "a", "b", "a"], ["a", "b"]], 2) == pytest.approx(1 - 3 / 5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repeated_share(items: list[int], n: int) -> None:
    runs = ngrams(items, n)
    assert len(runs) == max(0, len(items) - n + 1)
    earlier = sum(run in runs[:place] for place, run in enumerate(runs))
    assert repeated_share(runs) == pytest.approx(earlier / len(runs) if runs else 0.0)


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "x\n"])
def test_short_programs_have_no_repetition(text: str) -> None:
    assert token_repetition(text, "python") == statement_repetition(text, "python") == 0.0


def test_end_share() -> None:
    assert end_share([[1, 2], [2, 9], [7, 3]], {9, 7}) == pytest.approx(2 / 3)
    assert end_share([], {9}) == 0.0


@pytest.mark.parametrize(
    ("program", "language", "expected"),
    [
        ("x = 1\n", "python", True),
        ("x = = 1\n", "python", False),
        ("return 1\n", "python", False),
        ("x = '\\d'\n", "python", True),
        ("x = '\0'\n", "python", False),
        ("(" * 5000 + ")" * 5000, "python", False),
        ("int f(void) { return 1; }\n", "c", True),
        ("int f(void) { return 1;\n", "c", False),
        ("class A { void f() {} }\n", "java", True),
        ("class A { void f( {} }\n", "java", False),
    ],
)
def test_compiles(program: str, language: Any, expected: bool) -> None:
    assert compiles(program, language) == expected


def test_compile_share_runs_nothing() -> None:
    assert compile_share(["raise SystemExit\n", "x = (\n"], "python") == 0.5
    assert compile_share([], "python") == 0.0
