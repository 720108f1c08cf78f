"""The runtime: many streams on an event loop, one engine thread; cancellation, refusals, death."""

import asyncio
import ctypes
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from stepped_engine import check_slots, direct, random_distribution
from torch import Tensor

from models.scripted import ByteTokenizer, Distribution, ScriptedModel, scripted_runtime
from models.torch_runtime.batch import PackedBatch
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.runtime import Stream, TorchRuntime
from strategies.budget import Budget, Meter
from strategies.errors import ContextLengthExceeded, InvalidRequest, QueueFull, RequestFailed, RuntimeUnavailable
from strategies.runtime import Generation, StopConditions
from strategies.sampling.standard import sampling

ENDLESS = random_distribution(end=-100.0)


@contextmanager
def serving(distribution: Distribution = ENDLESS, **options: float) -> Iterator[TorchRuntime]:
    runtime = scripted_runtime(distribution, ByteTokenizer(), **options)  # type: ignore[arg-type]
    try:
        yield runtime
    finally:
        runtime.close()


def asking(prompt: Sequence[int], max_tokens: int | None = 10, **changes: object) -> Generation:
    return Generation(prompt, stopping=StopConditions(max_tokens=max_tokens), **changes)  # type: ignore[arg-type]


async def tokens_of(stream: Stream, timeout: float = 20.0) -> list[int]:
    async def read() -> list[int]:
        return [token async for delta in stream for token in delta.tokens]

    return await asyncio.wait_for(read(), timeout)


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.002)


async def idle(runtime: TorchRuntime) -> None:
    await until(lambda: runtime.status().running == runtime.status().waiting == 0)


class Gate:
    """Lets the engine take one step per permission, so that a test can act in the middle of a request."""

    def __init__(self, runtime: TorchRuntime) -> None:
        self._permits = threading.Semaphore(0)
        self.entered = 0
        model = runtime.engine.model
        assert isinstance(model, ScriptedModel)
        forward = model.forward

        def gated(batch: PackedBatch, pool: SlotPool) -> Tensor:
            self.entered += 1
            assert self._permits.acquire(timeout=20)
            return forward(batch, pool)

        model.forward = gated  # type: ignore[method-assign]

    def open(self, steps: int = 1_000_000) -> None:
        self._permits.release(steps)

    async def steps(self, count: int) -> None:
        """Lets `count` steps pass; the engine then stands before the next one."""
        if count:
            self.open(count)
        target = self.entered + count
        await until(lambda: self.entered >= target)


@contextmanager
def gated(**options: float) -> Iterator[tuple[TorchRuntime, Gate]]:
    with serving(ENDLESS, **options) as runtime:
        gate = Gate(runtime)
        try:
            yield runtime, gate
        finally:
            gate.open()


async def test_concurrent_streams_get_their_own_answers() -> None:
    generations = [
        Generation([97 + i % 3] * (i + 1), sampling(), StopConditions(max_tokens=1 + i % 9), seed=i) for i in range(40)
    ]
    with serving(max_num_batched_tokens=16, max_num_seqs=7) as runtime:
        streams = [stream for generation in generations for stream in runtime.submit([generation])]
        answers = await asyncio.gather(*map(tokens_of, streams))
        assert answers == [direct(ENDLESS, generation) for generation in generations]
        status = runtime.status()
        assert (status.state, status.running, status.waiting) == ("ready", 0, 0)
        assert status.kv_slots_used == status.kv_slots_cached > 0
        assert status.steps == runtime.engine.steps > 0


async def test_one_submission_may_hold_many_generations_in_order() -> None:
    with serving() as runtime:
        generations = [asking([97, 98], branch=(i,)) for i in range(5)]
        streams = runtime.submit(generations)
        assert [await tokens_of(stream) for stream in streams] == [direct(ENDLESS, g) for g in generations]
        assert runtime.submit([]) == []


async def test_deltas_arrive_while_the_sequence_runs() -> None:
    with gated() as (runtime, gate):
        stream = runtime.submit([asking([97])])[0]
        deltas = aiter(stream)
        for _ in range(3):
            gate.open(1)
            delta = await asyncio.wait_for(anext(deltas), 5)
            assert len(delta.tokens) == 1
            assert delta.finish_reason is None


async def test_an_idle_engine_answers_at_once() -> None:
    with serving() as runtime:
        for _ in range(3):
            await asyncio.sleep(0.05)
            start = time.monotonic()
            await tokens_of(runtime.submit([asking([97], 1)])[0])
            assert time.monotonic() - start < 3


async def test_who_waits_starts_at_once_when_a_budget_ends_the_only_runner() -> None:
    with serving(max_num_seqs=1) as runtime:
        start = time.monotonic()
        streams = runtime.submit([asking([97 + i], None, meter=Meter(Budget(output_tokens=2))) for i in range(4)])
        assert [len(await tokens_of(stream)) for stream in streams] == [2, 2, 2, 2]
        assert time.monotonic() - start < 3


def test_streams_of_two_event_loops() -> None:
    """Each answer goes to the loop that asked."""
    answers: dict[int, list[int]] = {}
    with serving() as runtime:

        def client(number: int) -> None:
            async def ask() -> list[int]:
                return await tokens_of(runtime.submit([asking([97 + number] * 3, 60)])[0])

            answers[number] = asyncio.run(ask())

        threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
    assert answers == {i: direct(ENDLESS, asking([97 + i] * 3, 60)) for i in range(4)}


async def test_an_event_loop_that_is_gone_harms_nobody() -> None:
    with gated() as (runtime, gate):

        def lost_client() -> None:
            async def ask() -> None:
                runtime.submit([asking([98], 5)])

            asyncio.run(ask())

        await asyncio.to_thread(lost_client)
        stream = runtime.submit([asking([97])])[0]
        gate.open()
        assert await tokens_of(stream) == direct(ENDLESS, asking([97]))
        assert runtime.status().state == "ready"


# Cancellation


@pytest.mark.parametrize("moment", ["before admission", "during prefill", "while decoding"])
@pytest.mark.parametrize("prefix_cache", [True, False])
async def test_cancelling_frees_the_slots_within_a_step(moment: str, prefix_cache: bool) -> None:
    with gated(max_num_seqs=2, max_num_batched_tokens=12, prefix_cache=prefix_cache) as (runtime, gate):
        other = runtime.submit([asking([98], 40)])[0]
        await until(lambda: gate.entered == 1)
        if moment == "before admission":
            extra = runtime.submit([asking([99], 40)])[0]
        victim = runtime.submit([asking([97] * 44, None)])[0]
        await gate.steps({"before admission": 2, "during prefill": 3, "while decoding": 8}[moment])
        assert runtime.status().waiting == (moment == "before admission")
        assert victim.sequence is not None
        computed = victim.sequence.computed
        assert (computed == 0, 0 < computed < 44, computed > 44).index(True) == [
            "before admission", "during prefill", "while decoding",
        ].index(moment)  # fmt: skip
        victim.cancel()
        victim.cancel()  # twice is as good as once
        await gate.steps(1)  # the step in progress ends; the next begins without the victim
        scheduler = runtime.engine.scheduler
        assert victim.sequence not in scheduler.running
        assert victim.sequence not in scheduler.waiting
        owned = sum(len(s.slots) - s.shared for s in scheduler.running)
        assert runtime.status().kv_slots_used == owned + scheduler.cache.size
        gate.open()
        assert await tokens_of(other) == direct(ENDLESS, asking([98], 40))
        if moment == "before admission":
            assert await tokens_of(extra) == direct(ENDLESS, asking([99], 40))
        await idle(runtime)
        victim.cancel()  # after the end as well
        check_slots(scheduler)


@pytest.mark.parametrize("steps", [0, 1, 6])
async def test_a_cancelled_stream_is_forgotten_also_when_nothing_else_runs(steps: int) -> None:
    """Before and in the middle of prefill a step has nothing to deliver; while decoding it has."""
    with gated(max_num_batched_tokens=5) as (runtime, gate):
        stream = runtime.submit([asking([97] * 20, None)])[0]
        await until(lambda: gate.entered == 1)
        await gate.steps(steps)
        stream.cancel()
        gate.open()
        await idle(runtime)
        await until(lambda: not runtime._streams, 0.5)


async def test_who_still_reads_a_cancelled_stream_is_told() -> None:
    with gated() as (runtime, gate):
        stream = runtime.submit([asking([97], None)])[0]
        reader = asyncio.create_task(tokens_of(stream))
        await gate.steps(3)
        stream.cancel()
        with pytest.raises(RequestFailed, match="cancelled"):
            await asyncio.wait_for(reader, 5)
        assert runtime.status().state == "ready"


async def test_a_finished_answer_can_be_cancelled_and_still_be_read() -> None:
    with serving() as runtime:
        stream = runtime.submit([asking([97])])[0]
        await idle(runtime)
        stream.cancel()
        assert await tokens_of(stream) == direct(ENDLESS, asking([97]))


async def test_two_hundred_requests_with_random_cancellation_leave_nothing_behind() -> None:
    draw = random.Random(5)
    outcomes = {"read": 0, "left": 0}

    async def client(number: int) -> None:
        await asyncio.sleep(draw.random() * 0.2)
        generation = asking([97 + number % 5] * draw.randrange(1, 40), draw.randrange(1, 20), seed=number)
        stream = runtime.submit([generation])[0]
        leave_after = draw.choice([0, 1, 5, 99, 99])
        got: list[int] = []
        if leave_after:
            async for delta in stream:
                got += delta.tokens
                if len(got) >= leave_after:
                    break
        expected = direct(ENDLESS, generation)
        assert got == expected[: len(got)]
        if len(got) < len(expected):
            stream.cancel()
        outcomes["read" if got == expected else "left"] += 1

    with serving(num_slots=300, max_model_len=100, max_num_seqs=20, max_num_batched_tokens=32) as runtime:
        await asyncio.wait_for(asyncio.gather(*map(client, range(200))), 60)
        await idle(runtime)
        await until(lambda: not runtime._streams, 2.0)
        status = runtime.status()
        assert status.state == "ready"
        assert status.kv_slots_used == status.kv_slots_cached
        check_slots(runtime.engine.scheduler)
    assert min(outcomes.values()) > 40


# Refusals


async def test_a_full_queue_takes_all_of_a_submission_or_nothing() -> None:
    with gated(max_num_seqs=1, max_waiting=2) as (runtime, gate):
        first = runtime.submit([asking([97])])
        await until(lambda: gate.entered == 1)
        with pytest.raises(QueueFull) as refused:
            runtime.submit([asking([98])] * 3)
        assert refused.value.retry_after > 0
        assert runtime.status().waiting == 0
        second = runtime.submit([asking([98]), asking([99])])
        with pytest.raises(QueueFull):
            runtime.submit([asking([100])])
        assert (runtime.status().running, runtime.status().waiting) == (1, 2)
        gate.open()
        assert [await tokens_of(s) for s in (*first, *second)] == [direct(ENDLESS, asking([97 + i])) for i in range(3)]
        assert len(await tokens_of(runtime.submit([asking([100])])[0])) == 10


async def test_draining_refuses_new_work_and_finishes_what_runs_and_waits() -> None:
    with gated(max_num_seqs=1) as (runtime, gate):
        streams = runtime.submit([asking([97]), asking([98])])
        await until(lambda: gate.entered == 1)
        runtime.drain()
        assert runtime.status().state == "draining"
        with pytest.raises(RuntimeUnavailable, match="shutting down"):
            runtime.submit([asking([99])])
        gate.open()
        assert [len(await tokens_of(stream)) for stream in streams] == [10, 10]


LIMIT = 20
STOP_259, STOP_260 = (StopConditions(1, stop_token_ids=frozenset({token})) for token in (259, 260))


@pytest.mark.parametrize(
    ("generation", "error", "param"),
    [
        (asking([]), InvalidRequest, "prompt"),
        (asking([97, 260]), InvalidRequest, "prompt"),
        (asking([-1]), InvalidRequest, "prompt"),
        (asking([97] * (LIMIT - 1), 1), None, None),
        (asking([97] * LIMIT, 1), ContextLengthExceeded, "prompt"),
        (asking([97] * (LIMIT + 1), 1), ContextLengthExceeded, "prompt"),
        (asking([97] * (LIMIT - 1), None), None, None),
        (asking([97] * LIMIT, None), ContextLengthExceeded, "prompt"),
        (asking([97] * LIMIT, 0), None, None),
        (asking([97] * (LIMIT + 1), 0), ContextLengthExceeded, "prompt"),
        (asking([97] * 10, LIMIT - 10), None, None),
        (asking([97] * 10, LIMIT - 9), ContextLengthExceeded, "max_tokens"),
        (asking([97], sampling=sampling(logit_bias={260: 1.0})), InvalidRequest, "logit_bias"),
        (asking([97], sampling=sampling(logit_bias={-1: 1.0})), InvalidRequest, "logit_bias"),
        (asking([97], sampling=sampling(logit_bias={259: 1.0, 0: 1.0})), None, None),
        (Generation([97], stopping=STOP_260), InvalidRequest, "stop_token_ids"),
        (Generation([97], stopping=STOP_259), None, None),
        (asking([0, 259]), None, None),
    ],
)  # fmt: skip
async def test_what_can_not_run_is_refused_at_once(
    generation: Generation, error: type[InvalidRequest] | None, param: str | None
) -> None:
    with serving(max_model_len=LIMIT) as runtime:
        if error is None:
            answer = await tokens_of(runtime.submit([generation])[0])
            assert answer == direct(ENDLESS, generation, max_model_len=LIMIT)
            return
        with pytest.raises(InvalidRequest) as refused:
            runtime.submit([asking([97]), generation])
        assert type(refused.value) is error
        assert refused.value.param == param
        assert runtime.status().waiting == runtime.status().running == runtime.status().steps == 0


# Faults and death


async def test_not_a_number_fails_one_request_and_no_other() -> None:
    def distribution(context: Sequence[int]) -> Tensor:
        logits = ENDLESS(context)
        if context[0] == 120 and len(context) > 5:
            logits[50] = float("nan")
        return logits

    with serving(distribution) as runtime:
        streams = runtime.submit([asking([97] * 3), asking([120] * 3), asking([98] * 3)])
        answers = await asyncio.gather(*map(tokens_of, streams), return_exceptions=True)
        assert isinstance(answers[1], RequestFailed)
        assert [answers[0], answers[2]] == [direct(ENDLESS, asking([letter] * 3)) for letter in (97, 98)]
        assert runtime.status().state == "ready"
        assert len(await tokens_of(runtime.submit([asking([97])])[0])) == 10
        await until(lambda: not runtime._streams)


async def assert_dead(runtime: TorchRuntime, streams: Sequence[Stream], reason: str) -> None:
    for stream in streams:
        with pytest.raises(RuntimeUnavailable, match=reason):
            await tokens_of(stream, 5)
    status = runtime.status()
    assert status.state == "dead"
    assert reason in status.detail
    with pytest.raises(RuntimeUnavailable, match=reason):
        runtime.submit([asking([97])])
    assert not runtime._streams


async def test_a_model_that_raises_kills_the_engine_and_fails_every_stream() -> None:
    def distribution(context: Sequence[int]) -> Tensor:
        if len(context) > 8:
            raise ZeroDivisionError("the script is broken")
        return ENDLESS(context)

    with serving(distribution, max_num_seqs=2) as runtime:
        streams = runtime.submit([asking([97 + i] * (i + 1), None) for i in range(4)])
        seen = await asyncio.wait_for(anext(aiter(streams[0])), 5)
        assert len(seen.tokens) == 1
        await assert_dead(runtime, streams, "ZeroDivisionError: the script is broken")


async def test_a_step_that_hangs_is_found_by_the_watchdog() -> None:
    hang = threading.Event()

    def distribution(context: Sequence[int]) -> Tensor:
        if len(context) > 4:
            hang.wait(10)
        return ENDLESS(context)

    with serving(distribution, step_timeout=0.2, max_num_seqs=2) as runtime:
        start = time.monotonic()
        try:
            streams = runtime.submit([asking([97 + i], None) for i in range(4)])
            await assert_dead(runtime, streams, "0.2 s")
            assert 0.2 <= time.monotonic() - start < 2.0
        finally:
            hung = runtime.engine.steps
            hang.set()
        await asyncio.sleep(0.3)
        assert runtime.engine.steps == hung, "the engine went on after it had been declared dead"


async def test_a_thread_that_ends_without_an_error_is_found_by_the_watchdog() -> None:
    """SystemExit ends a thread silently: raised into it from outside here, by a plug-in perhaps elsewhere."""
    with serving(ENDLESS, step_timeout=1.0, max_model_len=100_000, num_slots=100_000) as runtime:
        streams = runtime.submit([asking([97 + i], None) for i in range(3)])
        await asyncio.wait_for(anext(aiter(streams[0])), 5)
        thread = ctypes.c_ulong(runtime._thread.ident or 0)
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit)) == 1
        await assert_dead(runtime, streams, "its thread has ended")


async def test_steps_shorter_than_the_timeout_do_not_add_up() -> None:
    def distribution(context: Sequence[int]) -> Tensor:
        time.sleep(0.03)
        return ENDLESS(context)

    with serving(distribution, step_timeout=0.4) as runtime:
        assert len(await tokens_of(runtime.submit([asking([97], 25)])[0])) == 25
        await asyncio.sleep(0.6)  # nor does doing nothing
        assert runtime.status().state == "ready"


async def test_closing_fails_what_runs_and_what_waits_and_ends_the_threads() -> None:
    def distribution(context: Sequence[int]) -> Tensor:
        time.sleep(0.005)
        return ENDLESS(context)

    before = set(threading.enumerate())
    runtime = scripted_runtime(distribution, ByteTokenizer(), max_num_seqs=1)
    streams = runtime.submit([asking([97 + i], None) for i in range(3)])
    iterator: AsyncIterator[object] = aiter(streams[0])
    await asyncio.wait_for(anext(iterator), 5)
    assert set(threading.enumerate()) > before
    runtime.close()
    assert set(threading.enumerate()) == before
    await assert_dead(runtime, streams, "closed")
    runtime.close()


async def test_closing_wakes_who_waits_for_a_delta() -> None:
    with gated() as (runtime, gate):
        reader = asyncio.create_task(tokens_of(runtime.submit([asking([97], None)])[0]))
        await gate.steps(2)
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(runtime.close))
        gate.open()
        with pytest.raises(RuntimeUnavailable):
            await asyncio.wait_for(reader, 5)
        await closing
