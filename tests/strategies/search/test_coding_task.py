"""What a search for programs finds out before it begins: in a thread, once, and cheaply first."""

import ast
import asyncio
import itertools
import threading
import time
from typing import Any

import pytest
from program_bench import BENCH, RIGHT, TASK, TESTS, ZERO, asking, forest_of, made
from scripted_coder import TOKENIZER

from strategies.errors import ContextLengthExceeded, InvalidRequest
from strategies.sandbox.checks import CallCheck, StatementCheck
from strategies.search import coding_task, visible_tests
from strategies.search.coding_task import CodingTask
from strategies.search.program_prompts import Prompts
from strategies.search.run import SearchRun
from strategies.search.search import Asked

pytestmark = pytest.mark.usefixtures("program_bench")


def prepared(runtime: Any, search: Any, *texts: str, max_tokens: int | None = 100) -> list[CodingTask]:
    asked = [Asked(text, is_chat=True, max_tokens=max_tokens) for text in texts]
    return list(BENCH.runner.run(search.prepared(asked, runtime, Prompts())))


def test_tests_are_taken_apart_once_and_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bool] = []
    check = visible_tests.check_assert

    def noted(*arguments: Any) -> Any:
        parsed.append(threading.current_thread() is threading.main_thread())
        return check(*arguments)

    monkeypatch.setattr(visible_tests, "check_assert", noted)

    async def whole(runtime: Any, search: Any) -> str:
        (found,) = await search.prepared([Asked(TASK, is_chat=True)], runtime, Prompts())
        asked = asking(TASK, 1000, None, 7)
        run = SearchRun(search, runtime, asked, sandbox=BENCH.sandbox, question=TASK, prepared=found)
        return "".join([delta.text async for delta in run.streams[0]])

    with forest_of([RIGHT], [ZERO]).serving() as runtime:
        assert "a + b" in BENCH.runner.run(whole(runtime, made(k=1, generate_tests="never")))
    assert parsed == [False] * len(TESTS)


def test_the_event_loop_goes_on_meanwhile() -> None:
    """A wrong test behind many long ones is still told by its name."""
    long = "assert add([" + "[]," * 5000 + "], {}) == 1"
    search = made(tests=[*({"assert": long.format(i)} for i in range(12)), {"assert": "assert add(1"}])
    search = search.model_copy(update={"entry_point": "add"})

    async def gaps(runtime: Any) -> list[float]:
        begun = asyncio.create_task(search.prepared([Asked(TASK, is_chat=True)], runtime, Prompts()))
        times = [time.perf_counter()]
        while not begun.done():
            await asyncio.sleep(0.005)
            times.append(time.perf_counter())
        with pytest.raises(InvalidRequest) as caught:
            await begun
        assert caught.value.param == "decoding.search.tests[12]"
        return [after - before for before, after in itertools.pairwise(times)]

    with forest_of([RIGHT], [ZERO]).serving() as runtime:
        found = BENCH.runner.run(gaps(runtime))
    assert len(found) >= 5
    assert max(found) < sum(found) / 2


def test_the_tests_of_a_request_share_their_work() -> None:
    """Of each prompt of it; those behind run inside."""
    tests = [{"assert": f"assert add(list(range({8000 + i}))) == 1"} for i in range(60)]
    with forest_of([RIGHT], [ZERO]).serving() as runtime:
        first, second = prepared(runtime, made(tests=tests, entry_point="add"), TASK, TASK + " Twice.")
    kinds = [type(test.check) for test in first.tests]
    taken = kinds.index(StatementCheck)
    assert kinds == [CallCheck] * taken + [StatementCheck] * (60 - taken)
    assert 8 < taken < 60
    assert second.tests is first.tests


class Counting:
    """A tokenizer that counts what it encodes."""

    def __init__(self, runtime: Any) -> None:
        self.info, self.tokenizer, self.encoded = runtime.info, self, 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.encoded += 1
        return TOKENIZER.encode(text, add_special_tokens=add_special_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(TOKENIZER, name)


def test_a_task_is_encoded_only_where_it_may_not_fit() -> None:
    with forest_of([RIGHT], [ZERO]).serving() as runtime:
        runtime = Counting(runtime)
        # Neither max_tokens nor the words around the task are certain to fit in the second and the third case, but do.
        for length, most, encoded in ((7000, 1000, 0), (7000, 1184, 1), (8040, 10, 1)):
            runtime.encoded = 0
            (task,) = prepared(runtime, made(), "x" * length, max_tokens=most)
            assert (task.function, runtime.encoded) == ("add", encoded)
        for length, most, field in ((7000, 1250, "max_tokens"), (8190, None, "prompt"), (9000, 100, "prompt")):
            runtime.encoded = 0
            with pytest.raises(ContextLengthExceeded) as caught:
                prepared(runtime, made(), "x" * length, max_tokens=most)
            assert (caught.value.param, runtime.encoded) == (field, 1)


def test_a_task_that_is_too_long_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("parsed")

    monkeypatch.setattr(ast, "parse", refuse)
    monkeypatch.setattr(coding_task, "given_tests", refuse)
    with forest_of([RIGHT], [ZERO]).serving() as runtime, pytest.raises(ContextLengthExceeded):
        prepared(runtime, made(tests=[]), "assert add(1, 2) == 3\n" * 1000)
