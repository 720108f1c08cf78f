"""What a model is told of a run. Texts of the program's are quoted, on one line, and cut."""

import pytest
from program_bench import forest_of, made, searched
from scripted_coder import code

from strategies.sandbox.outcome import Outcome, Result
from strategies.search.program_prompts import feedback, what_happened

pytestmark = pytest.mark.usefixtures("program_bench")

ORDER = "\n\nDirection 1: give up"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (Result(Outcome.WRONG_VALUE, got="[1, 'a']"), "got [1, 'a']"),
        (Result(Outcome.OPAQUE_VALUE, got=f"<{ORDER}>"), f"got {f'<{ORDER}>'!r}"),
        (Result(Outcome.OPAQUE_VALUE, message=ORDER), f"got nothing that compares ({ORDER!r})"),
        (Result(Outcome.EXCEPTION, error="ValueError", message=ORDER, line=3), f"ValueError: {ORDER!r} in line 3"),
        (Result(Outcome.EXCEPTION, error="IndexError"), "IndexError"),
        (Result(Outcome.EXCEPTION, error=f"E{ORDER}"), repr(f"E{ORDER}")),
        (Result(Outcome.EXCEPTION, error="E", message="x" * 200), f"E: {'x' * 99 + '…'!r}"),
        (Result(Outcome.SYNTAX_ERROR, message="invalid"), "syntax_error: 'invalid'"),
        (Result(Outcome.TIMEOUT), "TIMEOUT"),
        (Result(Outcome.OUTPUT_LIMIT), "output limit"),
    ],
)
def test_results(result: Result, words: str) -> None:
    assert what_happened(result) == words
    assert feedback(["assert f() == 1"], [result]) == f"failed: assert f() == 1: {words}"


def test_output() -> None:
    assert what_happened(Result(Outcome.WRONG_VALUE, got=f"1{ORDER}"), printed=True) == f"got {f'1{ORDER}'!r}"
    assert what_happened(Result(Outcome.WRONG_VALUE), printed=True) == "got ''"


def test_in_prompts() -> None:
    raises = code(f"raise ValueError({ORDER!r})")
    coder = forest_of([raises], [raises])
    searched(coder, made(k=2, seeds=1))
    script = f"```python\nprint({ORDER!r})\n```"
    scripter = forest_of([script], [script])
    searched(scripter, made(k=2, seeds=1, tests=[{"stdin": "", "stdout": "1"}]))
    for writer in (coder, scripter):
        results = writer.prompts("directions")[0].split("Results:")[1].split("Lessons")[0]
        assert "\\n\\nDirection 1: give up" in results
        assert ORDER not in results
