"""What a search for programs finds out about a prompt before it begins: which function, by which tests, if it fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from strategies.context_room import check_room
from strategies.errors import InvalidRequest
from strategies.runtime import Runtime
from strategies.sandbox.inside.work import Work
from strategies.search.asking import Question, rendered_text, tokenized
from strategies.search.program_prompts import Prompts
from strategies.search.search import Asked
from strategies.search.visible_tests import GivenTest, VisibleTest, given_tests

if TYPE_CHECKING:
    from strategies.search.coding_search import CodingSearch

TESTS_WORK = 1 << 20
"""Units for all tests of a request: enough for the longest ones that are literal. The tests behind those that use it up
run inside of the sandbox."""
MARKS = 8
"""Tokens that a tokenizer may add to a text."""


@dataclass(frozen=True, slots=True)
class CodingTask:
    """function: its name, "" for a script. tests: those given."""

    text: str
    function: str
    tests: tuple[VisibleTest, ...]


def coding_tasks(
    search: "CodingSearch", asked: Sequence[Asked], runtime: Runtime, prompts: Prompts
) -> list[CodingTask]:
    """Of each prompt of a request. Slow for long ones. Raises InvalidRequest."""
    work, tests, tasks = Work(TESTS_WORK), dict[str, tuple[VisibleTest, ...]](), []
    for one in asked:
        # Before the text is parsed: it may be far longer than the context.
        fit = check_task(one, runtime)
        function = search.function(one.text)
        if function not in tests:
            tests[function] = given(search.tests, function, work)
        task = CodingTask(one.text, function, tests[function])
        check_question(one, first_question(prompts, task), fit, runtime)
        tasks.append(task)
    return tasks


def given(tests: Sequence[GivenTest], function: str, work: Work) -> tuple[VisibleTest, ...]:
    """Raises InvalidRequest, which names the test, for one that can't be used."""
    found: list[VisibleTest] = []
    for place, test in enumerate(tests):
        try:
            found += given_tests([test], function, work)
        except ValueError as error:
            field = f"decoding.search.tests[{place}]"
            raise InvalidRequest(f"'{field}': {error}", field) from None
    return tuple(found)


def first_question(prompts: Prompts, task: CodingTask) -> tuple[tuple[str, str], ...]:
    """The messages that ask for a program, without a theme."""
    system = prompts.coder if task.function else prompts.scripter
    user = prompts.seed.format(task=task.text, entry_point=task.function)
    return (("system", system.format(entry_point=task.function)), ("user", user))


@dataclass(frozen=True, slots=True)
class Fit:
    """Of a text that fits: its size in bytes, and how many tokens it has at most."""

    size: int
    most: int


def check_task(asked: Asked, runtime: Runtime) -> Fit:
    """Of a request's prompt only the task has to fit the context, alone with max_tokens. Encodes it only where that
    isn't certain: no token is less than a byte."""
    limit, text = runtime.info.max_model_len, written((("user", asked.text),), asked, runtime)
    size = len(text.encode("utf-8", "surrogatepass"))
    most = size + MARKS
    if most + max(1, asked.max_tokens or 0) > limit:
        most = len(tokenized(runtime.tokenizer, text, chat=asked.is_chat))
        check_room(most, asked.max_tokens, limit)
    return Fit(size, most)


def check_question(asked: Asked, messages: tuple[tuple[str, str], ...], task: Fit, runtime: Runtime) -> None:
    """The same of the question for a program, which repeats the task and adds its own words."""
    limit, text = runtime.info.max_model_len, written(messages, asked, runtime)
    added = len(text.encode("utf-8", "surrogatepass")) - task.size
    if added < 0 or task.most + added + MARKS >= limit:
        check_room(len(tokenized(runtime.tokenizer, text, chat=asked.is_chat)), None, limit)


def written(messages: tuple[tuple[str, str], ...], asked: Asked, runtime: Runtime) -> str:
    return rendered_text(runtime.tokenizer, Question(messages, seed=0), chat=asked.is_chat)
