"""The request's parameters: defaults, ranges, and what happens without a grammar."""

import subprocess
import sys
from typing import Any

import pytest
from piece_tokenizer import PieceTokenizer
from pydantic import ValidationError

from strategies.errors import InvalidRequest
from strategies.sampling.grammar_repetition import languages
from strategies.sampling.grammar_repetition.options import AllowedCopies, GrammarRepetitionOptions
from strategies.sampling.grammar_repetition.state import GrammarRepetitionState


@pytest.mark.parametrize(
    ("mode", "factor", "levels", "eos"),
    [("guarded", 0.5, {"line"}, 1.0), ("paper", 0.9, {"statement"}, 1.0), ("released", 0.9, {"line"}, 1.25)],
)
def test_defaults_of_each_mode(mode: Any, factor: float, levels: set[str], eos: float) -> None:
    options = GrammarRepetitionOptions(mode=mode)
    assert (options.factor, options.levels, options.eos_factor) == (factor, levels, eos)


def test_one_number_or_one_per_context() -> None:
    assert GrammarRepetitionOptions(allowed=7).allowed_copies == AllowedCopies(
        code=7, declarations=7, literals=7, imports=7, statements=7, tokens=7, single_token=7
    )
    options = GrammarRepetitionOptions.model_validate({"allowed": {"code": 2}})
    assert (options.allowed_copies.code, options.allowed_copies.literals) == (2, 32)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"mode": "off"}, "mode"),
        ({"language": "cobol"}, "language"),
        ({"lambda": 0.0}, "lambda"),
        ({"lambda": 1.1}, "lambda"),
        ({"lambda": "0.5"}, "lambda"),
        ({"cap": 0}, "cap"),
        ({"cap": 65}, "cap"),
        ({"max_period": 0}, "max_period"),
        ({"allowed": 0}, "allowed"),
        ({"allowed": {"code": 0}}, "allowed"),
        ({"allowed": {"lines": 3}}, "allowed"),
        ({"eos_boost": 0.5}, "eos_boost"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        GrammarRepetitionOptions.model_validate(values)
    assert raised.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize(
    "values",
    [{"mode": "released", "language": "python"}, {"mode": "released", "scope": "all"}, {"mode": "paper", "cap": 3}],
)
def test_parameters_without_a_use_in_the_mode_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="does not use"):
        GrammarRepetitionOptions.model_validate(values)


def test_importing_loads_no_grammar() -> None:
    program = (
        "import sys; import strategies.sampling.grammar_repetition.state; "
        "sys.exit(any(name.startswith('tree_sitter') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.fixture
def without_rust(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "tree_sitter_rust", None)
    languages.grammar.cache_clear()
    yield
    languages.grammar.cache_clear()


@pytest.mark.usefixtures("without_rust")
def test_a_missing_grammar_is_the_requests_fault() -> None:
    with pytest.raises(InvalidRequest, match="tree-sitter-rust") as raised:
        GrammarRepetitionState(GrammarRepetitionOptions(language="rust"), PieceTokenizer(), [0])
    assert raised.value.param == "decoding.penalty.language"


@pytest.mark.usefixtures("without_rust")
def test_a_fence_without_its_grammar_has_no_structure() -> None:
    tokenizer = PieceTokenizer()
    state = GrammarRepetitionState(GrammarRepetitionOptions(), tokenizer, [0])
    for token in tokenizer.ids([b"```rust\n", *[b"f();\n"] * 9]):
        state.advance(token)
    assert state.language is None
    assert state.penalties() is None
