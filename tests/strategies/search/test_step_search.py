"""What a step is: where it ends, when it is the last, and when it is worth nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from tree_model import END, PROMPT, TOKENIZER, Found, Scripted, found, solving

from strategies.runtime import StopConditions
from strategies.scoring.answer_options import AnswerOptions
from strategies.search.step_beam import StepBeam
from strategies.search.step_search import MAX_STEP_CHARACTERS, bad_step


def saying(script: bytes) -> Callable[[Sequence[int]], Tensor]:
    """These bytes behind the prompt, then the end."""

    def distribution(context: Sequence[int]) -> Tensor:
        logits = torch.full((TOKENIZER.vocab_size,), -30.0)
        place = len(context) - len(PROMPT)
        logits[script[place] if place < len(script) else END] = 30.0
        return logits

    return distribution


def steps(script: bytes, max_tokens: int | None = 200, **fields: Any) -> tuple[list[str], Found]:
    """The steps that a script is cut into, by a search along one chain."""
    got = found(
        StepBeam(beams=1, samples=1, **fields),
        value=Scripted(),
        distribution=saying(script),
        max_tokens=max_tokens,
        stopping=StopConditions(max_tokens=max_tokens),
    )
    return [node.step_text for node in got.context.nodes[1:]], got


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (b"one\ntwo\nSo the answer is 42.\nmore\n", ["one\n", "two\n", "So the answer is 42.\n"]),
        (b"one\n#### 42\nmore\n", ["one\n", "#### 42\n"]),
        (b"one\nthus \\boxed{4{2}}\nmore\n", ["one\n", "thus \\boxed{4{2}}\n"]),
        (b"one\nit is 42\n", ["one\n", "it is 42\n", ""]),  # a bare number is no mark; the end of sequence is
        (b"\n\n one\n\nAnswer: 42\n\nmore", ["\n\n one\n", "\nAnswer: 42\n"]),
    ],
)
def test_the_step_that_holds_the_answer_is_the_last(script: bytes, expected: list[str]) -> None:
    made, got = steps(script)
    assert made == expected
    assert got.texts == ["".join(expected)]
    assert got.reasons == [("stop", None)]


@pytest.mark.parametrize("step_tokens", [1, 2, 3, 4, 5, 7, 11])
@pytest.mark.parametrize("script", [b"one\n#### 1234\nmore and more\n", b"one\nThe answer is 1234.\nmore and more\n"])
def test_a_step_that_is_cut_never_ends_with_half_an_answer(step_tokens: int, script: bytes) -> None:
    made, got = steps(script, step="chunk", step_tokens=step_tokens)
    assert all(len(text) == step_tokens for text in made[:-1])
    assert AnswerOptions().extract(got.texts[0]).canonical == "1234"
    end = script.index(b"1234") + 4
    assert end <= len(got.texts[0]) < end + 3 + step_tokens  # and it does not go on behind the answer


def test_a_box_is_complete_with_its_braces() -> None:
    made, got = steps(b"thus \\boxed{12} and more, without an end", step="chunk", step_tokens=4)
    assert got.texts[0].startswith("thus \\boxed{12}")
    assert len(got.texts[0]) <= len("thus \\boxed{12}") + 3
    assert len(made) == 4


def test_rules_choose_which_marks_count() -> None:
    script = b"the answer is near\n#### 5\n"
    assert steps(script)[0] == ["the answer is near\n"]
    assert steps(script, answer=AnswerOptions(rules=("hash",)))[0] == ["the answer is near\n", "#### 5\n"]
    own = AnswerOptions(rules=("pattern",), pattern="^RESULT=([0-9]+)$")
    assert steps(b"a\nRESULT=7\nb\n", answer=own)[0] == ["a\n", "RESULT=7\n"]
    assert steps(script, solution_end="sequence")[0] == ["the answer is near\n", "#### 5\n", ""]


def test_blank_lines_as_steps() -> None:
    made, _ = steps(b"a\nb\n\nc\n\nAnswer: 3\n\nd", step="blank_line")
    assert made == ["a\nb\n\n", "c\n\n", "Answer: 3\n\n"]


def test_bad_steps() -> None:
    def bad(script: bytes, **fields: Any) -> list[bool]:
        _, got = steps(script, **fields)
        return [bad_step(node) for node in got.context.nodes[1:]]

    assert bad(b"a\nb\na\n#### 1\n") == [False] * 4
    assert bad(b"a\na\nb\n#### 1\n") == [False, True, False, False]
    assert bad(b"  " * 3 + b"a\n#### 1\n", step="chunk", step_tokens=2)[:3] == [True, True, True]
    assert bad(b"a\n") == [False, False]  # the end alone is the end of a solution
    assert bad(b"abc\ndef", max_tokens=6) == [False, True]  # cut off
    assert bad(b"x" * MAX_STEP_CHARACTERS + b"\n#### 1\n", step_tokens=2000, max_tokens=None)[0] is True


def test_the_tokens_of_a_solution_are_those_that_were_drawn() -> None:
    got = found(StepBeam(beams=4, samples=2), value=Scripted(), seed=3)
    for node in got.context.nodes[1:]:
        assert node.parent is not None
        assert node.tokens == (*node.parent.tokens, *node.step)
    assert solving([*PROMPT, *got.tokens[0]])[END] == 30.0
