"""The scheduler: who runs, who waits, who is preempted; every slot accounted for after every step."""

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepped_engine import SteppedEngine, direct, random_distribution

from strategies.budget import Budget, Meter
from strategies.runtime import Generation, StopConditions
from strategies.sampling.standard import sampling

DISTRIBUTION = random_distribution()
ENDLESS = random_distribution(end=-100.0)
GREEDY = sampling(temperature=0.0)


def prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts of 1 to 60 letters; most begin like another one."""
    draw = random.Random(seed)
    stems = [[draw.randrange(97, 123) for _ in range(40)] for _ in range(4)]
    made = []
    for _ in range(count):
        stem = draw.choice(stems)[: draw.randrange(41)]
        made.append(stem + [draw.randrange(97, 123) for _ in range(draw.randrange(1, 21))])
    return made


def generations(count: int = 40, seed: int = 0, **changes: object) -> list[Generation]:
    draw = random.Random(seed + 1)
    return [
        Generation(
            prompt,
            sampling=sampling(
                temperature=draw.choice([0.0, 0.7, 1.0]),
                top_k=draw.choice([0, 0, 5]),
                repetition_penalty=draw.choice([1.0, 1.3]),
                frequency_penalty=draw.choice([0.0, 0.5]),
            ),
            stopping=StopConditions(max_tokens=draw.randrange(1, 30), min_tokens=draw.choice([0, 0, 4])),
            seed=draw.randrange(1 << 40),
            branch=(draw.randrange(3),),
        )
        for prompt in prompts(count, seed)
    ]


GENERATIONS = generations()
EXPECTED = [direct(DISTRIBUTION, generation) for generation in GENERATIONS]


def again(generation: Generation, meter: Meter | None = None) -> Generation:
    """The same generation with a meter of its own."""
    return Generation(
        generation.prompt, generation.sampling, generation.stopping, generation.seed, generation.branch,
        generation.logprobs, generation.prompt_logprobs, meter or Meter(),
    )  # fmt: skip


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("chunk", [256, 16, 3])
@pytest.mark.parametrize("num_slots", [4096, 130])
def test_forty_requests_at_once_equal_each_alone(prefix_cache: bool, chunk: int, num_slots: int) -> None:
    engine = SteppedEngine(
        DISTRIBUTION,
        num_slots=num_slots,
        max_num_batched_tokens=chunk,
        max_num_seqs=12,
        prefix_cache=prefix_cache,
        max_model_len=100,
    )
    answers = engine.answers(map(again, GENERATIONS), max_steps=6000)
    assert [answer.tokens for answer in answers] == EXPECTED
    if num_slots == 130:
        assert engine.scheduler.totals.preemptions >= 3 or chunk == 3  # small chunks keep the running ones apart
    else:
        assert engine.scheduler.totals.preemptions == 0
    assert engine.scheduler.pool.num_free + engine.scheduler.cache.size == num_slots
    assert (engine.scheduler.cache.size > 0) is prefix_cache
    assert max(map(sum, engine.model.batches)) <= max(chunk, 12)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    order=st.permutations(range(14)),
    gaps=st.lists(st.integers(0, 4), min_size=14, max_size=14),
    cancels=st.dictionaries(st.integers(0, 13), st.integers(0, 20), max_size=4),
    num_slots=st.sampled_from([100, 120, 200, 1000]),
    chunk=st.sampled_from([2, 7, 64]),
    seqs=st.sampled_from([1, 3, 14]),
    prefix_cache=st.booleans(),
)
def test_any_order_of_arrival_and_any_cancellation(
    order: list[int],
    gaps: list[int],
    cancels: dict[int, int],
    num_slots: int,
    chunk: int,
    seqs: int,
    prefix_cache: bool,
) -> None:
    engine = SteppedEngine(
        DISTRIBUTION,
        num_slots=num_slots,
        max_num_batched_tokens=chunk,
        max_num_seqs=seqs,
        prefix_cache=prefix_cache,
        max_model_len=100,
    )
    answers, step = {}, 0
    due = {step + 1: number for number, step in cancels.items()}
    for number, gap in zip(order, gaps, strict=True):
        answers[number] = engine.submit(again(GENERATIONS[number]))
        for _ in range(gap):
            step += 1
            if step in due and due[step] in answers:
                engine.sequences[list(answers).index(due[step])].cancelled = True
            engine.step()
            assert len(engine.scheduler.running) <= seqs
    engine.run(3000)
    for number, answer in answers.items():
        if answer.ended:
            assert answer.tokens == EXPECTED[number]
        else:
            assert number in cancels
            assert answer.tokens == EXPECTED[number][: len(answer.tokens)]
    assert engine.scheduler.pool.num_free + engine.scheduler.cache.size == num_slots


def test_first_come_first_served() -> None:
    engine = SteppedEngine(ENDLESS, max_num_seqs=2)
    stopping = StopConditions(max_tokens=5)
    answers = [engine.submit(Generation([97 + i], stopping=stopping)) for i in range(6)]
    ends: dict[int, int] = {}
    for step in range(100):
        engine.step()
        ends |= {i: step for i, answer in enumerate(answers) if answer.ended and i not in ends}
    assert [ends[i] for i in range(6)] == [4, 4, 9, 9, 14, 14]


def test_decoding_goes_on_while_a_long_prompt_is_prefilled_in_chunks() -> None:
    engine = SteppedEngine(ENDLESS, max_num_batched_tokens=10)
    short = engine.submit(Generation([97], stopping=StopConditions(max_tokens=50)))
    engine.step()
    long = engine.submit(Generation([98] * 45, stopping=StopConditions(max_tokens=1)))
    for step in range(1, 6):
        engine.step()
        assert len(short.tokens) == 1 + step
        assert engine.model.batches[-1] == [1, 9]
        assert long.ended is (step == 5)


def test_two_prompts_share_the_chunk_budget_in_order() -> None:
    engine = SteppedEngine(ENDLESS, max_num_batched_tokens=10)
    for letter, length in ((97, 14), (98, 12)):
        engine.submit(Generation([letter] * length, stopping=StopConditions(max_tokens=1)))
    engine.run()
    assert engine.model.batches == [[10], [4, 6], [6]]


def test_the_youngest_is_preempted_and_the_oldest_never() -> None:
    engine = SteppedEngine(ENDLESS, num_slots=62, max_model_len=62)
    stopping = StopConditions(max_tokens=40)
    answers = [engine.submit(Generation([97 + i] * 10, stopping=stopping, seed=i)) for i in range(3)]
    ends: list[int] = []
    while len(ends) < 3:
        engine.step()
        assert engine.sequences[0] in engine.scheduler.running or answers[0].ended
        ends += [i for i, answer in enumerate(answers) if answer.ended and i not in ends]
        assert engine.engine.steps < 300
    assert ends == [0, 1, 2]
    assert engine.scheduler.totals.preemptions >= 2
    for i, answer in enumerate(answers):
        assert answer.tokens == direct(ENDLESS, Generation([97 + i] * 10, stopping=stopping, seed=i))


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("chunk", [256, 5])
def test_a_sequence_that_just_fits_the_pool(prefix_cache: bool, chunk: int) -> None:
    """A prompt may take every slot, and what others left in the cache gives way."""
    engine = SteppedEngine(
        ENDLESS, num_slots=40, max_model_len=40, max_num_batched_tokens=chunk, prefix_cache=prefix_cache
    )
    engine.answers(Generation([97 + i] * 12, stopping=StopConditions(max_tokens=1)) for i in range(3))
    generation = Generation([97] * 8 + [98] * 12)
    answers = engine.answers([again(generation), again(generation)], max_steps=200)
    for answer in answers:
        assert answer.tokens == direct(ENDLESS, generation, max_model_len=40)
        assert len(answer.tokens) == 20
        assert answer.finish == ("length", None)
    scored = Generation([99] * 40, stopping=StopConditions(max_tokens=0), prompt_logprobs=0)
    assert engine.answers([scored], max_steps=50)[0].finish == ("length", None)


def test_tenants_take_turns_whatever_they_have_queued() -> None:
    """Two run at once. a queues twelve, then b and c one each: theirs come next, though a's came first."""
    engine = SteppedEngine(ENDLESS, max_num_seqs=2)
    stopping = StopConditions(max_tokens=3)
    many = [engine.submit(Generation([97 + i], stopping=stopping, tenant="a")) for i in range(12)]
    few = [engine.submit(Generation([110 + i], stopping=stopping, tenant="bc"[i])) for i in range(2)]
    order: list[int] = []
    answers = [*many, *few]
    while len(order) < len(answers):
        engine.step()
        order += [i for i, answer in enumerate(answers) if answer.ended and i not in order]
        assert engine.engine.steps < 100
    assert order[:4] == [0, 12, 1, 13]
    assert order[4:] == list(range(2, 12))


def test_a_request_under_way_is_overtaken_by_few_however_many_keep_coming() -> None:
    """Two run at once, and ten new ones wait at any time. A request has one long sequence running and two short ones
    waiting: these are done long before the long one. What it goes on with later does not queue behind new ones."""
    engine = SteppedEngine(ENDLESS, max_num_seqs=2)
    stopping = StopConditions(max_tokens=2)
    meter = Meter()

    def new() -> None:
        for _ in range(10 - len(engine.scheduler.waiting)):
            engine.submit(Generation([110], stopping=stopping))

    lengths = (40, 2, 2)
    branches = [
        engine.submit(Generation([97 + i], stopping=StopConditions(max_tokens=length), meter=meter))
        for i, length in enumerate(lengths)
    ]
    order: list[int] = []
    while len(order) < 3:
        new()
        engine.step()
        order += [i for i, branch in enumerate(branches) if branch.ended and i not in order]
    assert order == [1, 2, 0]
    following = engine.submit(Generation([97, 98, 99], stopping=stopping, meter=meter))
    steps = engine.engine.steps
    while not following.ended:
        new()
        engine.step()
    assert engine.engine.steps - steps <= 4


def test_a_request_of_many_branches_leaves_room_for_new_ones() -> None:
    """Four run at once. Of 40 branches few are done when ten requests that came after them are."""
    engine = SteppedEngine(ENDLESS, max_num_seqs=4)
    stopping = StopConditions(max_tokens=2)
    meter = Meter()
    branches = [engine.submit(Generation([97, i], stopping=stopping, meter=meter)) for i in range(40)]
    engine.step()
    new = [engine.submit(Generation([98, i], stopping=stopping)) for i in range(10)]
    while not all(one.ended for one in new):
        engine.step()
        assert engine.engine.steps < 100
    assert sum(branch.ended for branch in branches) <= 16
    engine.run()


def test_priority_goes_before_fairness() -> None:
    engine = SteppedEngine(ENDLESS, max_num_seqs=2)
    for tenant, priority in (("b", 1), ("a", 0), ("a", 0)):
        engine.submit(Generation([97], stopping=StopConditions(max_tokens=2), tenant=tenant, priority=priority))
    engine.step()
    assert [sequence.generation.tenant for sequence in engine.scheduler.running] == ["a", "a"]
    engine.run()


def test_a_pool_smaller_than_the_context_is_refused() -> None:
    """A sequence that never fits would preempt itself for ever."""
    with pytest.raises(ValueError, match="39 KV slots"):
        SteppedEngine(ENDLESS, num_slots=39, max_model_len=40)


def test_pressure_from_many_sequences_that_each_fill_the_pool_ends() -> None:
    engine = SteppedEngine(ENDLESS, num_slots=50, max_model_len=50, max_num_batched_tokens=8)
    made = [Generation([97 + i % 5] * (1 + i), seed=i) for i in range(12)]
    answers = engine.answers(map(again, made), max_steps=12 * 120)
    assert engine.scheduler.totals.preemptions > 0
    for generation, answer in zip(made, answers, strict=True):
        assert answer.tokens == direct(ENDLESS, generation, max_model_len=50)


def test_the_cache_is_evicted_before_anyone_is_preempted() -> None:
    engine = SteppedEngine(ENDLESS, num_slots=100, max_model_len=100)
    engine.answers([Generation([97] * 60, stopping=StopConditions(max_tokens=1))])
    assert engine.scheduler.cache.size == 60
    pair = [Generation([letter] * 20, stopping=StopConditions(max_tokens=25), seed=letter) for letter in (98, 99)]
    engine.answers(pair)
    assert engine.scheduler.totals.preemptions == 0


def count_prefill(prompt_of: Callable[[int], list[int]], count: int, **options: int | bool) -> int:
    engine = SteppedEngine(ENDLESS, **options)  # type: ignore[arg-type]
    engine.answers(Generation(prompt_of(i), stopping=StopConditions(max_tokens=1), branch=(i,)) for i in range(count))
    return engine.model.forward_tokens


@pytest.mark.parametrize("chunk", [1000, 30])
def test_a_prefix_that_arrives_in_many_requests_at_once_is_computed_once(chunk: int) -> None:
    prefix = [97] * 200
    assert count_prefill(lambda i: [*prefix, 98 + i], 8, max_num_batched_tokens=chunk) == 200 + 8
    assert count_prefill(lambda i: prefix, 8, max_num_batched_tokens=chunk) == 200 + 7
    assert count_prefill(lambda i: prefix, 8, max_num_batched_tokens=chunk, prefix_cache=False) == 8 * 200


def test_a_short_common_prefix_holds_nobody_back() -> None:
    engine = SteppedEngine(ENDLESS)
    for i in range(3):
        engine.submit(Generation([97] * 15 + [98 + i], stopping=StopConditions(max_tokens=1)))
    engine.step()
    assert engine.model.batches == [[16, 16, 16]]


def test_who_waits_for_a_prefix_does_not_hold_back_others() -> None:
    engine = SteppedEngine(ENDLESS, max_num_batched_tokens=20)
    first = engine.submit(Generation([97] * 100, stopping=StopConditions(max_tokens=1)))
    held = engine.submit(Generation([97] * 101, stopping=StopConditions(max_tokens=1)))
    other = engine.submit(Generation([98], stopping=StopConditions(max_tokens=1)))
    engine.step()
    assert (first.ended, held.ended, other.ended) == (False, False, True)
    engine.run(10)
    assert engine.model.forward_tokens == 100 + 1 + 1


def test_who_waits_for_a_prefix_keeps_its_place_in_the_queue() -> None:
    engine = SteppedEngine(ENDLESS, max_num_seqs=2, max_num_batched_tokens=20)
    prefix, stopping = [97] * 60, StopConditions(max_tokens=3)
    engine.submit(Generation(prefix, stopping=stopping))
    held = [engine.submit(Generation([*prefix, 98 + i], stopping=stopping)) for i in range(2)]
    engine.submit(Generation([120], stopping=StopConditions(max_tokens=100)))  # takes the second place
    last = engine.submit(Generation([121], stopping=stopping))
    engine.step()
    assert [s.generation.prompt[-1] for s in engine.scheduler.running] == [97, 120]
    assert [s.generation.prompt[-1] for s in engine.scheduler.waiting] == [98, 99, 121]
    ends: list[int] = []
    for _ in range(40):
        engine.step()
        ends += [i for i, answer in enumerate([*held, last]) if answer.ended and i not in ends]
    assert ends == [0, 1, 2]


def test_who_waits_for_a_prefix_is_freed_when_its_owner_is_cancelled() -> None:
    engine = SteppedEngine(ENDLESS, max_num_batched_tokens=10)
    engine.submit(Generation([97] * 100, stopping=StopConditions(max_tokens=1)))
    held = engine.submit(Generation([97] * 90 + [98], stopping=StopConditions(max_tokens=1)))
    for _ in range(4):
        engine.step()
    engine.sequences[0].cancelled = True
    engine.run(20)
    assert held.ended
    assert engine.model.forward_tokens == 91  # 40 of them by the cancelled one


def test_a_cached_prefix_is_reused_also_after_the_answer() -> None:
    engine = SteppedEngine(ENDLESS)
    prompt = [97, 98, 99]
    first = engine.answers([Generation(prompt, stopping=StopConditions(max_tokens=6))])[0]
    meter = Meter()
    engine.answers([Generation(prompt + first.tokens + [100], stopping=StopConditions(max_tokens=1), meter=meter)])
    assert meter.spend.cached_tokens == 3 + 5  # the answer's last token was never computed
    assert meter.spend.target_tokens == 2


def test_without_the_cache_nothing_is_kept() -> None:
    engine = SteppedEngine(ENDLESS, prefix_cache=False)
    for _ in range(2):
        meter = Meter()
        engine.answers([Generation([97] * 9, stopping=StopConditions(max_tokens=3), meter=meter)])
        assert (meter.spend.cached_tokens, meter.spend.target_tokens) == (0, 11)
        assert engine.scheduler.pool.num_free == 4096


@pytest.mark.parametrize("moment", range(7))
def test_a_cancelled_sequence_is_out_within_one_step(moment: int) -> None:
    """Before admission, in the middle of prefill (4 steps), and while decoding."""
    engine = SteppedEngine(ENDLESS, max_num_batched_tokens=5, prefix_cache=False)
    answer = engine.submit(Generation([97] * 20))
    for _ in range(moment):
        engine.step()
    assert (engine.scheduler.pool.num_free < 4096) is (moment > 0)
    engine.sequences[0].cancelled = True
    passes = engine.model.passes
    engine.step()
    assert engine.model.passes == passes
    assert engine.scheduler.pool.num_free == 4096
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    assert not answer.ended
    assert engine.sequences[0].meter.finished is not None


def test_a_waiting_request_whose_time_runs_out_is_answered() -> None:
    engine = SteppedEngine(ENDLESS, max_num_seqs=1)
    engine.submit(Generation([97], stopping=StopConditions(max_tokens=20)))
    meter = Meter(Budget(seconds=60.0))
    late = engine.submit(Generation([98], meter=meter))
    engine.step()
    assert not late.ended
    meter.started -= 61
    engine.step()
    assert late.finish == ("length", "budget:seconds")
    assert late.tokens == []
    assert len(engine.scheduler.waiting) == 0
    assert meter.finished is not None


def test_work_that_waits_is_scheduled_in_the_step_in_which_a_budget_ends_the_only_runner() -> None:
    """`step` says False when there is nothing to do, and then the engine thread sleeps."""
    engine = SteppedEngine(ENDLESS, max_num_seqs=1)
    first = engine.submit(Generation([97], meter=Meter(Budget(output_tokens=2))))
    second = engine.submit(Generation([98], stopping=StopConditions(max_tokens=1)))
    for _ in range(4):
        busy = engine.step()
        assert busy or not engine.scheduler.waiting
    assert first.finish == ("length", "budget:output_tokens")
    assert second.ended


def test_smaller_priorities_are_admitted_first() -> None:
    """One sequence at a time: the running one is not interrupted, then by priority, then by arrival."""
    engine = SteppedEngine(DISTRIBUTION, max_num_seqs=1)
    order: list[int] = []
    priorities = [0, 5, 0, -3, 5, -3]
    answers = [
        engine.submit(Generation([97 + i], GREEDY, StopConditions(max_tokens=3, ignore_eos=True), priority=priority))
        for i, priority in enumerate(priorities)
    ]
    while len(order) < len(answers):
        engine.step()
        order += [i for i, answer in enumerate(answers) if answer.ended and i not in order]
    assert order == sorted(range(6), key=lambda i: (priorities[i], i))


def test_a_request_with_many_branches_holds_nobody_up() -> None:
    """Two run at a time: a request that comes after one of eight branches gets the next place that falls free."""
    engine = SteppedEngine(ENDLESS, max_num_seqs=2)
    shared = Meter()
    branches = [
        engine.submit(Generation([97, 98], stopping=StopConditions(max_tokens=3), branch=(i,), meter=shared))
        for i in range(8)
    ]
    plain = engine.submit(Generation([99], stopping=StopConditions(max_tokens=3)))
    while not plain.ended:
        assert engine.step()
    assert sum(branch.ended for branch in branches) <= 4
    engine.run()
    assert all(branch.ended for branch in branches)


def test_a_request_is_never_starved_by_new_ones() -> None:
    """The branches of one request go on one at a time however many single requests keep coming."""
    engine = SteppedEngine(ENDLESS, max_num_seqs=2)
    shared = Meter()
    branches = [
        engine.submit(Generation([97, 98], stopping=StopConditions(max_tokens=3), branch=(i,), meter=shared))
        for i in range(4)
    ]
    steps = 0
    while not all(branch.ended for branch in branches):
        engine.submit(Generation([99], stopping=StopConditions(max_tokens=3)))
        engine.submit(Generation([100], stopping=StopConditions(max_tokens=3)))
        assert engine.step()
        steps += 1
        assert steps < 60
