"""Searches for programs where no test is: the first program that loads, or that most others behave like."""

from collections.abc import Sequence
from typing import Any

import pytest
from program_bench import FIRST, RIGHT, TASK, ZERO, Reply, fenced, forest_of, made, searched
from scripted_coder import code

pytestmark = pytest.mark.usefixtures("program_bench")

SAME = "```python\n# the same\ndef add(a,b):\n    return a\n```"
SUMS = [RIGHT, code("return sum((a, b))")]
RAISES = code("return a + b + missing")


def test_without_any_test_the_first_program_that_loads() -> None:
    broken, other = "```python\ndef add(a, b:\n```", code("return 1", "sub")
    coder = forest_of([broken, other, FIRST, RIGHT, SAME], [RIGHT], tests=["I'd rather not."], inputs=["Nor here."])
    reply = searched(coder, made(tests=[], k=6, seeds=5, entry_point="add"))
    assert len(coder.prompts("tests")) == 1  # asked three times, in the same words
    assert len(coder.prompts("inputs")) == 1
    assert reply.texts == [fenced(FIRST)]
    assert (reply.facts["verified"], reply.facts["stop_reason"]) == ("none", "no_tests")
    assert (reply.facts["inputs"], reply.facts["votes"]) == (0, None)
    assert reply.facts["programs"] == 5


def without_tests(
    name: str = "scattered-forest",
    programs: Sequence[str] = (ZERO, *SUMS),
    written: str = "Well.",
    task: str = TASK,
    **parameters: Any,
) -> tuple[Reply, int]:
    """The reply, and how often the model was asked for inputs. written: for tests."""
    inputs = ["```\nadd(1, 2)\nadd(5, 5) -> 10\nadd(x, 1)\n```"]
    coder = forest_of(programs, [ZERO], tests=[written], inputs=inputs, reflection=["Hm."])
    fields = {"tests": [], "k": 6, "entry_point": "add", **parameters}
    if name == "scattered-forest":
        fields["seeds"] = len(programs)
    return searched(coder, made(name, **fields), task=task), len(coder.prompts("inputs"))


def test_without_any_test_programs_that_do_alike_win() -> None:
    """The second and the third program return the same values for the calls that the model wrote."""
    reply, asked = without_tests()
    assert reply.texts == [fenced(RIGHT)]
    assert (asked, reply.facts["inputs"], reply.facts["votes"]) == (1, 2, 2)
    assert [node["tried"] for node in reply.programs] == [["0", "0"], ["3", "10"], ["3", "10"]]
    assert (reply.facts["verified"], reply.facts["solved_at"]) == ("none", None)
    assert set(reply.scores) == {0.0}


def test_inputs_of_tests_that_cannot_be_used() -> None:
    """Tests that contradict one another still say what to call."""
    reply, asked = without_tests(written="assert add(2, 2) == 4\nassert add(2, 2) == 5\nassert add(n, 2) == 1")
    assert (asked, reply.facts["inputs"], reply.facts["votes"]) == (0, 1, 2)
    assert reply.texts == [fenced(RIGHT)]


def test_programs_that_fail_alike_do_not_win() -> None:
    """Three that raise the same error are more than the two that agree, and no better for it."""
    others = [RAISES.replace("missing", name) for name in ("here", "there", "nowhere")]
    reply, _ = without_tests(programs=[*others, *SUMS])
    assert [node["tried"][0].partition(":")[0] for node in reply.programs[:3]] == ["NameError"] * 3
    assert (reply.texts, reply.facts["votes"]) == ([fenced(RIGHT)], 2)
    reply, _ = without_tests(programs=others)
    assert reply.texts == [fenced(others[0])]


def test_when_votes_are_not_asked_for() -> None:
    """The official choice, no tests wanted, or nothing to choose from."""
    cases: list[dict[str, Any]] = [
        *({"final": "official"}, {"generate_tests": "never"}, {"programs": [ZERO]}),
        *({"name": "code-line"}, {"name": "code-tree"}),
    ]
    for case in cases:
        reply, asked = without_tests(**case)
        assert (reply.texts, asked, reply.facts["inputs"]) == ([fenced(ZERO)], 0, 0)


def test_calls_in_the_prompt_need_no_question() -> None:
    task = "Write add(a, b). It should cope with add(7, 8) and with add(-1, 0)."
    reply, asked = without_tests(generate_tests="never", task=task)
    assert (asked, reply.facts["inputs"], reply.texts) == (0, 2, [fenced(RIGHT)])
    reply, _ = without_tests(generate_tests="never", task=task, examples_from_prompt=False)
    assert (reply.facts["inputs"], reply.texts) == (0, [fenced(ZERO)])


def test_best_of_n_votes_too() -> None:
    """The scripted model writes the same program for the same prompt."""
    reply, asked = without_tests("code-best-of-n", k=3)
    assert (reply.texts, asked, reply.facts["votes"]) == ([fenced(ZERO)], 1, 3)
    _, asked = without_tests("code-best-of-n", k=1)
    assert asked == 0
