"""What `strategies.runtime.Runtime` promises, kept by vLLM with the embedded model."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from asking import Answer, answer, answer_of, answers, asking

from models.vllm_runtime.runtime import VllmRuntime
from strategies.budget import Budget, Meter
from strategies.errors import ContextLengthExceeded, InvalidRequest, QueueFull, RequestFailed
from strategies.registry import registered
from strategies.runtime import SamplingParameters
from strategies.sampling.contrastive import Contrastive
from strategies.sampling.mirostat import Mirostat
from strategies.sampling.penalties import CountPenalty, LogitBias
from strategies.sampling.structured import compile_structure
from strategies.sampling.structured_grammar import Regex
from strategies.speculative.speculation import Speculation

TALE = "Once upon a time there was a little"


async def until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.01)


async def idle(runtime: VllmRuntime) -> None:
    await until(lambda: runtime.status().running == runtime.status().waiting == 0)


async def test_deltas_arrive_while_the_sequence_runs(vllm: VllmRuntime) -> None:
    found = await answer(vllm, asking(vllm, TALE, 12))
    assert found.deltas == len(found.tokens) == 12
    assert (found.finish_reason, found.stop_reason) == ("length", None)
    assert vllm.tokenizer.decode(found.tokens) == found.text


async def test_one_submission_may_hold_many_generations_in_order(vllm: VllmRuntime) -> None:
    sampling = SamplingParameters(1.0)
    generations = [asking(vllm, TALE, 6, sampling=sampling, seed=i, branch=(i,)) for i in range(8)]
    together = await answers(vllm, generations)
    alone = [await answer(vllm, generation) for generation in generations]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert len({tuple(one.tokens) for one in together}) > 4
    assert vllm.submit([]) == []


def test_streams_of_two_event_loops(vllm: VllmRuntime) -> None:
    """Each answer goes to the loop that asked."""
    found: dict[int, Answer] = {}

    def client(number: int) -> None:
        found[number] = asyncio.run(answer(vllm, asking(vllm, f"{number} and", 8)))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    expected = {i: asyncio.run(answer(vllm, asking(vllm, f"{i} and", 8))).tokens for i in range(3)}
    assert {i: one.tokens for i, one in found.items()} == expected


# Ends


async def test_stop_strings_and_ids(vllm: VllmRuntime) -> None:
    plain = await answer(vllm, asking(vllm, TALE, 24))
    word = plain.text.split()[4]
    stopped = await answer(vllm, asking(vllm, TALE, 24, stopping={"stop": (word,)}))
    assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == (plain.text.partition(word)[0], "stop", word)
    token = plain.tokens[6]
    place = plain.tokens.index(token)
    by_id = await answer(vllm, asking(vllm, TALE, 24, stopping={"stop_token_ids": frozenset({token})}))
    assert (by_id.tokens, by_id.stop_reason) == (plain.tokens[: place + 1], token)
    assert by_id.text == vllm.tokenizer.decode(plain.tokens[:place])


async def test_step_ends(vllm: VllmRuntime) -> None:
    plain = await answer(vllm, asking(vllm, TALE, 24))
    word = plain.text.split()[3]
    step = await answer(vllm, asking(vllm, TALE, 24, stopping={"step_ends": (word,)}))
    assert step.finish_reason == "stop"
    assert step.text.endswith(word)
    assert plain.text.startswith(step.text)


async def test_the_end_of_a_sequence(vllm: VllmRuntime) -> None:
    """It ends by itself, doesn't where that is to be ignored, and not before the least number of tokens."""
    end = max(vllm.info.eos_token_ids)
    sampling = SamplingParameters(0.0, (LogitBias(bias={end: 100.0}),))
    found = await answer(vllm, asking(vllm, TALE, 6, sampling=sampling))
    assert (found.tokens, found.text, found.finish_reason, found.stop_reason) == ([end], "", "stop", None)
    ignoring = await answer(vllm, asking(vllm, TALE, 6, sampling=sampling, stopping={"ignore_eos": True}))
    assert (ignoring.tokens, ignoring.finish_reason) == ([end] * 6, "length")
    later = await answer(vllm, asking(vllm, TALE, 6, sampling=sampling, stopping={"min_tokens": 3}))
    assert (len(later.tokens), later.tokens[-1], later.finish_reason) == (4, end, "stop")


async def test_nothing_to_generate(vllm: VllmRuntime) -> None:
    meter = Meter()
    found = await answer(vllm, asking(vllm, TALE, 0, meter=meter))
    assert (found.tokens, found.text, found.finish_reason) == ([], "", "length")
    assert meter.spend.output_tokens == 0


async def test_without_a_limit_the_context_is_filled(vllm: VllmRuntime) -> None:
    tokens = (vllm.tokenizer.encode(TALE) * 100)[: vllm.info.max_model_len - 5]
    found = await answer(vllm, asking(vllm, tokens, None, stopping={"ignore_eos": True}))
    assert (len(found.tokens), found.finish_reason) == (5, "length")


# Cost


async def test_what_a_request_costs(vllm: VllmRuntime) -> None:
    """A prompt that was computed before is served from the cache, in whole blocks."""
    tokens = vllm.tokenizer.encode("The cost of a prompt is " * 20)
    salt = {"cache_salt": "what a request costs"}
    first, second = Meter(), Meter()
    await answer(vllm, asking(vllm, tokens, 5, meter=first, **salt))
    assert (first.spend.target_tokens, first.spend.cached_tokens, first.spend.output_tokens) == (len(tokens) + 4, 0, 5)
    await answer(vllm, asking(vllm, tokens, 5, meter=second, **salt))
    cached = second.spend.cached_tokens
    assert cached == (len(tokens) - 1) // 32 * 32
    assert second.spend.target_tokens == len(tokens) - cached + 4
    assert 0 < second.spend.flops < first.spend.flops
    assert second.finished is not None
    other = Meter()
    await answer(vllm, asking(vllm, tokens, 1, meter=other, cache_salt="another"))
    assert other.spend.cached_tokens == 0


@pytest.mark.parametrize(
    ("budget", "unit", "most"),
    [
        (Budget(output_tokens=5), "output_tokens", 5),
        (Budget(forward_tokens=20), "forward_tokens", 20),
        (Budget(flops=6e9), "flops", 6e9),
    ],
)
@pytest.mark.parametrize("choices", [1, 3])
async def test_a_budget_is_kept(vllm: VllmRuntime, budget: Budget, unit: str, most: float, choices: int) -> None:
    meter = Meter(budget)
    salt = f"{unit} {choices}"
    generations = [asking(vllm, TALE, 100, meter=meter, branch=(i,), cache_salt=salt) for i in range(choices)]
    found = await answers(vllm, generations)
    spent = {
        "output_tokens": meter.spend.output_tokens,
        "forward_tokens": meter.spend.target_tokens,
        "flops": meter.spend.flops,
    }[unit]
    assert 0.6 * most < spent <= most
    assert {one.stop_reason for one in found} == {f"budget:{unit}"}
    assert {one.finish_reason for one in found} == {"length"}
    assert meter.exhausted == unit
    assert sum(len(one.tokens) for one in found) == meter.spend.output_tokens > 0
    await idle(vllm)


async def test_a_budget_that_does_not_cover_the_prompt(vllm: VllmRuntime) -> None:
    meter = Meter(Budget(forward_tokens=3))
    found = await answer(vllm, asking(vllm, TALE, 5, meter=meter))
    assert (found.tokens, found.stop_reason, meter.spend.target_tokens) == ([], "budget:forward_tokens", 0)


async def test_a_budget_counts_on_what_the_same_request_has_computed(vllm: VllmRuntime) -> None:
    """A search goes on from its own prefix, which is cached, though the whole of it would be too dear."""
    tokens = vllm.tokenizer.encode("The budget of a search is " * 20)
    meter = Meter(Budget(forward_tokens=len(tokens) + 60))
    await answer(vllm, asking(vllm, tokens, 4, meter=meter, cache_salt="b"))
    await idle(vllm)
    further = await answer(vllm, asking(vllm, tokens, 8, meter=meter, cache_salt="b"))
    assert len(further.tokens) == 8
    stranger = Meter(Budget(forward_tokens=60))
    refused = await answer(vllm, asking(vllm, tokens, 8, meter=stranger, cache_salt="b"))
    assert (refused.tokens, refused.stop_reason) == ([], "budget:forward_tokens")


async def test_a_time_limit(vllm: VllmRuntime) -> None:
    meter = Meter(Budget(seconds=0.5))
    found = await answer(vllm, asking(vllm, TALE, None, meter=meter, stopping={"ignore_eos": True}))
    assert (found.finish_reason, found.stop_reason) == ("length", "budget:seconds")
    assert 0 < len(found.tokens) < 400
    await idle(vllm)


# Cancellation


async def test_cancelling_ends_the_work(vllm: VllmRuntime) -> None:
    await idle(vllm)
    streams = vllm.submit([asking(vllm, TALE, None, stopping={"ignore_eos": True}, branch=(i,)) for i in range(4)])
    for stream in streams:
        await asyncio.wait_for(anext(aiter(stream)), 20)
    assert vllm.status().running == 4
    for stream in streams:
        stream.cancel()
        stream.cancel()  # twice is as good as once
    await idle(vllm)
    # vLLM itself has let go of them: it computes nothing more.
    await until(lambda: vllm._llm.output_processor.get_num_unfinished_requests() == 0)
    before = vllm.status().generation_tokens
    found = await answer(vllm, asking(vllm, TALE, 4))
    assert vllm.status().generation_tokens - before <= 4 + len(streams)
    assert len(found.tokens) == 4
    assert vllm.status().state == "ready"


async def test_what_the_caller_does_to_its_list_starts_nothing_twice(vllm: VllmRuntime) -> None:
    """The engine's loop is busy meanwhile, so that it reads the first list late. Work that was started twice would be
    cancelled once."""
    await idle(vllm)
    endless = asking(vllm, TALE, None, stopping={"ignore_eos": True})
    vllm._thread.loop.call_soon_threadsafe(time.sleep, 0.3)
    streams = vllm.submit([endless] * 2)
    streams += vllm.submit([endless] * 2)
    for stream in streams:
        await asyncio.wait_for(anext(aiter(stream)), 20)
    unfinished = vllm._llm.output_processor.get_num_unfinished_requests
    assert unfinished() == 4
    for stream in streams:
        stream.cancel()
    await until(lambda: unfinished() == 0)


async def test_who_still_reads_a_cancelled_stream_is_told(vllm: VllmRuntime) -> None:
    stream = vllm.submit([asking(vllm, TALE, None, stopping={"ignore_eos": True})])[0]
    reader = asyncio.create_task(answer_of(stream))
    await asyncio.sleep(0.3)
    stream.cancel()
    with pytest.raises(RequestFailed, match="cancelled"):
        await asyncio.wait_for(reader, 10)


async def test_a_finished_answer_can_be_cancelled_and_still_be_read(vllm: VllmRuntime) -> None:
    stream = vllm.submit([asking(vllm, TALE, 4)])[0]
    await idle(vllm)
    stream.cancel()
    assert len((await answer_of(stream)).tokens) == 4


# Refusals


def test_the_kv_cache_is_as_large_as_its_flag_says(vllm: VllmRuntime) -> None:
    """64 MiB of float32 keys and values: 30 layers of 3 heads of 64. Not the 2 GiB of vLLM's variable."""
    token = 2 * 30 * 3 * 64 * 4
    assert vllm.status().kv_slots == (64 << 20) // token // 32 * 32 == 1440


async def test_a_full_queue_takes_all_of_a_submission_or_nothing(vllm: VllmRuntime) -> None:
    await idle(vllm)
    endless = asking(vllm, TALE, None, stopping={"ignore_eos": True})
    streams = vllm.submit([endless] * 64)
    try:
        with pytest.raises(QueueFull) as refused:
            vllm.submit([endless] * 40)
        assert refused.value.retry_after > 0
        assert vllm.status().running + vllm.status().waiting == 64
        streams += vllm.submit([endless] * 40, admitted=True)  # the next step of a search
    finally:
        for stream in streams:
            stream.cancel()
    await idle(vllm)


LIMIT = 512
RSD = registered("speculation")["rsd-s"](width=2, length=2)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "fields", "error", "param"),
    [
        ([], 1, {}, InvalidRequest, "prompt"),
        ([1, 49152], 1, {}, InvalidRequest, "prompt"),
        ([-1], 1, {}, InvalidRequest, "prompt"),
        ([5] * LIMIT, 1, {}, ContextLengthExceeded, "prompt"),
        ([5] * (LIMIT + 1), 0, {}, ContextLengthExceeded, "prompt"),
        ([5] * LIMIT, 0, {}, InvalidRequest, "prompt"),
        ([5] * 10, LIMIT - 9, {}, ContextLengthExceeded, "max_tokens"),
        ([5], 1, {"sampling": SamplingParameters(1.0, (LogitBias(bias={49152: 1.0}),))}, InvalidRequest, "logit_bias"),
        ([5], 1, {"sampling": SamplingParameters(1.0, (Contrastive(),))}, InvalidRequest, "decoding.sampler"),
        ([5], 1, {"stopping": {"stop_token_ids": frozenset({49152})}}, InvalidRequest, "stop_token_ids"),
        ([5], 1, {"speculation": RSD}, InvalidRequest, "decoding.speculation"),
        ([5], 0, {"pooling": "mean"}, InvalidRequest, "pooling"),
    ],
)
async def test_what_can_not_run_is_refused_at_once(
    vllm: VllmRuntime, prompt: list[int], max_tokens: int, fields: dict[str, Any], error: type[Exception], param: str
) -> None:
    await idle(vllm)
    with pytest.raises(error) as refused:
        vllm.submit([asking(vllm, [5], 1), asking(vllm, prompt, max_tokens, **fields)])
    assert type(refused.value) is error
    assert refused.value.param == param  # type: ignore[attr-defined]
    assert vllm.status().running == 0


async def test_what_only_the_torch_runtime_has_is_said_to_be_there(vllm: VllmRuntime) -> None:
    assert issubclass(type(RSD), Speculation)
    for fields in ({"speculation": RSD}, {"sampling": SamplingParameters(1.0, (Contrastive(),))}):
        with pytest.raises(InvalidRequest, match="--runtime torch"):
            vllm.submit([asking(vllm, [5], 1, **fields)])


async def test_preemption_changes_nothing(vllm: VllmRuntime) -> None:
    """More tokens than the cache holds: some are computed again, and end in the same answers as their twins and as
    without. A floating-point near-tie may part two of them, about one in 25 pairs of this length, and thus 6 % of
    triplets: all five with a probability below 1e-6."""
    sampling = SamplingParameters(0.8, (Mirostat(tau=4.0), CountPenalty(presence=0.3)))
    words = {"cat": "raw", "dog": "processed", "bird": "raw", "fish": "processed", "cow": "raw"}
    generations = [
        asking(
            vllm,
            f"{TALE} {word}",
            200,
            sampling=sampling,
            seed=5,
            stopping={"ignore_eos": True},
            logprobs=1,
            logprobs_mode=mode,
        )
        for word, mode in words.items()
    ]
    before = vllm.status().preemptions
    found = await answers(vllm, generations * 3)
    assert vllm.status().preemptions > before
    assert all(len(one.logprobs) == len(one.tokens) == 200 for one in found)
    triplets = [[one.tokens for one in found[word::5]] for word in range(5)]
    assert any(first == second == third for first, second, third in triplets)
    few = await answers(vllm, generations)  # these fit
    assert any(one.tokens in triplet for one, triplet in zip(few, triplets, strict=True))
    await idle(vllm)


async def test_a_grammar_that_can_not_go_on_fails_its_request_alone(vllm: VllmRuntime) -> None:
    """The answer so far is outside of the grammar, so that no token may follow."""
    structure = compile_structure(Regex(r"[0-9]+"), vllm.tokenizer)
    letters = vllm.tokenizer.encode("abc")
    bad = asking(vllm, TALE, 4, sampling=SamplingParameters(1.0, (structure,)), answer=letters)
    streams = vllm.submit([bad, asking(vllm, TALE, 4)])
    with pytest.raises(RequestFailed, match="not finite"):
        await answer_of(streams[0])
    assert len((await answer_of(streams[1])).tokens) == 4
    assert vllm.status().state == "ready"
