"""Source that Python's own parser stumbles over."""

import sys
from collections.abc import Iterator

import pytest
from program_bench import RIGHT, TASK, ZERO, fenced, forest_of, made, searched

from strategies.search.program_replies import normal_form
from strategies.search.prompt_examples import called_names, entry_point_of, literal_calls, parse_examples
from strategies.search.source_text import expression_of, source_of, tree_of
from strategies.search.visible_tests import generated_tests, inputs_of

pytestmark = pytest.mark.usefixtures("program_bench", "usual_recursion_limit")

DEPTHS = (90, 150, 190, 195, 300)
NESTED = [
    opening * depth + "1" + closing * depth
    for opening, closing in (("{1:", "}"), ("[", "]"), ("-", ""), ("(", ",)"), ("not ", ""), ("1+", ""))
    for depth in DEPTHS
]
ODD = ["'\0'", "'\ud800'", "0x" + "f" * 900, "1e999", "9" * 900, "{[]: 1}", "f'{x}'", "b'\u00e9'", "\\", "1 if"]


@pytest.fixture
def usual_recursion_limit() -> Iterator[None]:
    """Python's own. Libraries that other tests import raise it, and then more can be written."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("value", [*NESTED, *ODD], ids=range(len(NESTED) + len(ODD)))
def test_it_is_no_example_rather_than_an_error(value: str) -> None:
    for line in (f">>> f({value})\n1\n", f"f(1) == {value}", f"f({value}) returns {value}"):
        assert len(parse_examples(line, "f")) <= 1
    assert len(literal_calls(f"f({value})", "f")) <= 1
    assert len(inputs_of([f"f({value})"], "f", 6)) <= 1
    for test in (f"f({value}) == 1", f"f(1) == {value}", f"{value} == f(1)", f"{'not ' * 150}f({value})"):
        assert len(generated_tests([f"assert {test}"], "f", [], 6)[0]) <= 1
        called_names(f"assert {test}")
        entry_point_of(f"assert {test}", [f"assert {test}"])
        normal_form(f"assert {test}")


def test_what_can_be_parsed_but_not_written() -> None:
    deep = expression_of("{1:" * 190 + "1" + "}" * 190)
    assert deep is not None
    assert source_of(deep) is None
    assert tree_of("a\0b") is expression_of("a\0b") is None


def test_a_search_with_such_an_example_in_its_prompt() -> None:
    nested = "{1:" * 190 + "1" + "}" * 190
    task = f"{TASK}\n>>> add({nested}, 1)\n1\n>>> add(1, 1)\n2\n"
    reply = searched(forest_of([RIGHT], [ZERO]), made(tests=[], k=1, entry_point="add"), task=task)
    assert reply.texts == [fenced(RIGHT)]
    assert reply.facts["tests"] == {"given": 0, "prompt": 1, "generated": 0}
