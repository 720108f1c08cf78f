"""Complete answers seen on the way: what may be sent, and what is left to give when the budget runs out."""

from collections.abc import Iterator

import pytest
from search_stories import END, TOKENIZER, generation, rambling

from models.scripted import scripted_runtime
from models.torch_runtime.runtime import TorchRuntime
from strategies.budget import Budget
from strategies.search.complete_answers import CompleteAnswers
from strategies.search.context import SearchContext
from strategies.search.node import Node


@pytest.fixture(scope="module")
def runtime() -> Iterator[TorchRuntime]:
    runtime = scripted_runtime(rambling, TOKENIZER)
    yield runtime
    runtime.close()


def context_with(runtime: TorchRuntime, budget: Budget | None, n: int = 1) -> SearchContext:
    return SearchContext(runtime, generation(budget=budget), n=n)


def add(context: SearchContext, text: str, *, end: bool = False) -> Node:
    return context.append(context.root, TOKENIZER.encode(text) + [END] * end)


def sent(context: SearchContext) -> str:
    return TOKENIZER.decode(context.committed)


def test_under_a_budget_a_complete_answer_is_never_given_away(runtime: TorchRuntime) -> None:
    """A step may be drawn whose foresight was cut short: without an answer behind it, it is not sent past another's."""
    for budget, expected in ((Budget(output_tokens=100), "ab\n"), (None, "ab\nef\n")):
        context = context_with(runtime, budget)
        answered = CompleteAnswers(context)
        answer, step = add(context, "ab\ncd", end=True), add(context, "ab\nef\n")
        answered.add([answer, None, step])
        assert answered.best is answer
        answered.commit([step])
        assert sent(context) == expected
        assert answered.best is (answer if budget else None)


def test_an_answer_behind_the_step_lets_it_be_sent(runtime: TorchRuntime) -> None:
    context = context_with(runtime, Budget(seconds=100.0))
    answered = CompleteAnswers(context)
    old, step, new = add(context, "ab\ncd", end=True), add(context, "ab\nef\n"), add(context, "ab\nef\ngh", end=True)
    answered.add([old])
    answered.add([new])
    answered.commit([step])
    assert sent(context) == "ab\nef\n"
    assert answered.best is new


def test_different_texts_come_first(runtime: TorchRuntime) -> None:
    context = context_with(runtime, None, n=3)
    answered = CompleteAnswers(context)
    one, same, other, third = (add(context, text, end=True) for text in ("one", "one", "other", "third"))
    answered.add([other, third])
    assert answered.first([one, same]) == [one, other, third, same]
    assert answered.first([]) == [other, third]


def test_without_any_answer_there_is_what_was_proposed_or_the_longest_part(runtime: TorchRuntime) -> None:
    context = context_with(runtime, None)
    answered = CompleteAnswers(context)
    short, long = add(context, "a"), add(context, "abc")
    assert answered.first([]) == [long]
    context.propose(short)
    assert answered.first([]) == [short]
