"""Examples and names of functions in prompts, program texts in replies."""

import pytest

from strategies.search.program_replies import lessons_of, normal_form, program_of
from strategies.search.prompt_examples import MAX_EXAMPLES, entry_point_of, literal_calls, parse_examples


@pytest.mark.parametrize(
    ("line", "example"),
    [
        ("assert f(1, x=[2]) == {'a': -1}  # why", ("f(1, x=[2])", "{'a': -1}")),
        ("f(3) returns 4.", ("f(3)", "4")),
        ("e.g. `f(3)` or f(2) should return True, as", ("f(2)", "True")),
        ("f('a)b') => 'c'", ("f('a)b')", "'c'")),
        ("f(x) == 3", None),
        ("g.f(1) == 3", None),
        ("f(1) == g(2)", None),
        ("f(1) is called first", None),
    ],
)
def test_examples(line: str, example: tuple[str, str] | None) -> None:
    assert parse_examples(f"Task.\n    {line}\n", "f") == ([] if example is None else [example])


def test_literal_calls() -> None:
    text = "f(1) is first, then `f( 2 )`,\nassert f(x) == f([3]) and g.f(4) and f(1)\ndef f(a, b):\n>>> f('a)', k={5})"
    assert literal_calls(text, "f") == ["f(1)", "f(2)", "f([3])", "f('a)', k={5})"]


def test_hostile_prompts_are_bounded() -> None:
    """Brackets that never close, calls in calls: what is tried is bounded, in number and in length."""
    assert literal_calls(("f(" + "(" * 400 + ")" * 300 + "\n") * 400, "f") == []
    assert len(literal_calls("".join(f"f({i}) f({i}.5)\n" for i in range(400)), "f")) == MAX_EXAMPLES
    assert parse_examples("f(" * 400 + ")" * 400 + " == 1\n", "f") == []
    assert parse_examples(("f(" + "(" * 400 + ")" * 300 + "\n") * 400, "f") == []
    assert len(parse_examples("".join(f"f({i}) == {i}\n" for i in range(400)), "f")) == MAX_EXAMPLES


@pytest.mark.parametrize(
    ("prompt", "tests", "name"),
    [
        ("def helper(x): ...\ndef wanted(x):\n    '''Doc.'''", [], "wanted"),
        ("def helper(x): ...\ndef wanted(x):", ["assert helper(1) == 2"], "helper"),
        ("Write it.", ["assert len(wanted(1)) == 2", "assert wanted(2) == other(3)"], "wanted"),
        ("Write it.\nassert wanted(1) == 2", [], "wanted"),
        ("Write it.", ["assert a(1) == 2", "assert b(1) == 2"], None),
        ("Write it.", [], None),
    ],
)
def test_entry_points(prompt: str, tests: list[str], name: str | None) -> None:
    assert entry_point_of(prompt, tests) == name


BLOCK = "def f():\n    return 1\n"


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        (f"Sure.\n```python\n{BLOCK}```\nDone.", BLOCK),
        (f"```\nnot this\n```\n```py\n{BLOCK}```", BLOCK),
        (f"```bash\npip\n```\n```\n{BLOCK}```", BLOCK),
        (f"```python\n{BLOCK}", BLOCK),
        (f"Here:\n{BLOCK}\nIt returns one.", BLOCK),
        ("```text\nnothing\n```", None),
        ("I can't.", None),
        ("```python\n```", None),
    ],
)
def test_programs(reply: str, program: str | None) -> None:
    assert program_of(reply) == program


def test_what_is_cut_off_is_no_program() -> None:
    assert program_of(f"```python\n{BLOCK}", cut=True) is None
    assert program_of(BLOCK, cut=True) is None
    assert program_of(f"```python\n{BLOCK}```\nAnd so", cut=True) == BLOCK


def test_lessons() -> None:
    assert lessons_of("Well.\n**Lessons:**\n- a\n\n- b\n") == "- a\n- b"
    assert lessons_of("- no heading") == "- no heading"
    assert lessons_of("Lessons:\n") is None
    assert lessons_of("Lessons: " + "x" * 3000) is None


def test_normal_form() -> None:
    assert normal_form("x = (1)  # one") == normal_form("x=1")
    assert normal_form("x = ") is None
    assert normal_form("(" * 100_000) is None
