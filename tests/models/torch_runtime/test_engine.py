"""The engine and its sequences: ends, stop strings, log-probabilities and budgets, each against a plain recount."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from stepped_engine import END, Answer, SteppedEngine, direct, random_distribution
from torch import Tensor

from models.scripted import ByteTokenizer, play
from strategies import budget
from strategies.budget import Budget, BudgetUnit, Meter, Spend
from strategies.errors import RequestFailed
from strategies.runtime import Generation, StopConditions, TokenLogprob
from strategies.sampling.bregman.transform import Bregman
from strategies.sampling.standard import sampling

DISTRIBUTION = random_distribution()
ENDLESS = random_distribution(end=-100.0)
GREEDY = sampling(temperature=0.0)
SETTINGS = [
    {},
    {"max_num_batched_tokens": 3},
    {"prefix_cache": False},
    {"num_slots": 60, "max_model_len": 60, "max_num_batched_tokens": 16},  # preempts, when several run
]


def said(script: str | Sequence[int], *, pieces: Sequence[bytes] = (), **stopping: object) -> Answer:
    """The answer of a model that says the script, one token each (letters: one per byte), then ends."""
    tokens = list(script.encode()) if isinstance(script, str) else list(script)
    tokenizer = ByteTokenizer(pieces)
    engine = SteppedEngine(play(tokens, tokenizer.vocab_size, prompt_length=2), tokenizer=tokenizer)
    generation = Generation([1, 2], GREEDY, StopConditions(**stopping), logprobs=0)  # type: ignore[arg-type]
    return engine.answers([generation])[0]


def spoken(answer: Answer) -> list[int]:
    """The tokens that have a log-probability entry."""
    return [entry.token for entry in answer.logprobs]


# Ends


def test_the_end_of_sequence_ends_it_and_has_no_text() -> None:
    answer = said("hello")
    assert (answer.text, answer.finish) == ("hello", ("stop", None))
    assert answer.tokens == [*b"hello", END]
    assert [delta.stop_token for delta in answer.deltas] == [False] * 5 + [True]
    assert spoken(answer) == [*b"hello", END]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_max_tokens(count: int) -> None:
    answer = said("hello", max_tokens=count)
    assert (answer.text, answer.finish) == ("hello"[:count], ("length", None))
    assert len(answer.tokens) == count


def test_max_tokens_that_are_just_enough_for_the_end() -> None:
    assert said("hello", max_tokens=6).finish == ("stop", None)


@pytest.mark.parametrize("chunk", [256, 3])
@pytest.mark.parametrize("prompt_logprobs", [None, 0])
def test_no_tokens_asked_for(chunk: int, prompt_logprobs: int | None) -> None:
    engine = SteppedEngine(DISTRIBUTION, max_num_batched_tokens=chunk)
    meter = Meter()
    answer = engine.submit(
        Generation([97] * 10, stopping=StopConditions(max_tokens=0), prompt_logprobs=prompt_logprobs, meter=meter)
    )
    assert engine.run(10) == math.ceil(10 / chunk)
    assert (answer.tokens, answer.text, answer.finish) == ([], "", ("length", None))
    assert meter.spend.output_tokens == 0
    assert meter.spend.target_tokens == 10
    assert (answer.prompt_logprobs is None) is (prompt_logprobs is None)


@pytest.mark.parametrize("prompt_length", [1, 39])
@pytest.mark.parametrize("max_tokens", [None, 1000])
def test_the_context_limit_ends_a_sequence(prompt_length: int, max_tokens: int | None) -> None:
    engine = SteppedEngine(ENDLESS, max_model_len=40)
    answer = engine.answers([Generation([97] * prompt_length, stopping=StopConditions(max_tokens=max_tokens))])[0]
    assert len(answer.tokens) == 40 - prompt_length
    assert answer.finish == ("length", None)


def test_stop_ids_end_a_sequence_without_text() -> None:
    answer = said("hello", stop_token_ids=frozenset({ord("l")}))
    assert (answer.text, answer.finish, answer.tokens) == ("he", ("stop", ord("l")), [*b"hel"])
    assert answer.deltas[-1].stop_token


def test_ignore_eos_goes_on_and_stop_ids_still_count() -> None:
    script = [*b"ab", END, *b"cd", END, *b"ef"]
    answer = said(script, ignore_eos=True, stop_token_ids=frozenset({ord("e")}))
    assert (answer.text, answer.finish) == ("abcd", ("stop", ord("e")))
    assert answer.tokens == script[:-1]
    # An end of sequence that is asked for as a stop id ends it even so, under its number.
    answer = said(script, ignore_eos=True, stop_token_ids=frozenset({END}))
    assert (answer.text, answer.finish) == ("ab", ("stop", END))


@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("stop_token_ids", [frozenset(), frozenset({99, 101})])
@pytest.mark.parametrize("min_tokens", [0, 1, 7])
@pytest.mark.parametrize("max_tokens", [1, 7, 12])
def test_combinations_of_ends_equal_the_plain_loop(
    ignore_eos: bool, stop_token_ids: frozenset[int], min_tokens: int, max_tokens: int
) -> None:
    distribution = random_distribution(end=5.0)
    stopping = StopConditions(
        max_tokens=max_tokens, min_tokens=min_tokens, stop_token_ids=stop_token_ids, ignore_eos=ignore_eos
    )
    made = [Generation([97, 98 + i], stopping=stopping, seed=i) for i in range(8)]
    answers = SteppedEngine(distribution).answers(made)
    ends = (set() if ignore_eos else {END}) | stop_token_ids
    for generation, answer in zip(made, answers, strict=True):
        assert answer.tokens == direct(distribution, generation)
        last = answer.tokens[-1]
        stopped = last in ends and len(answer.tokens) > min_tokens
        expected = None if last == END and END not in stop_token_ids else last
        assert answer.finish == (("stop", expected) if stopped else ("length", None))
        assert not ends & set(answer.tokens[:min_tokens]), "masked below min_tokens"


def test_min_tokens_masks_the_end_exactly_so_long() -> None:
    sure = torch.full((260,), -30.0)
    sure[END], sure[97] = 30.0, 0.0
    for count in (0, 1, 4):
        engine = SteppedEngine(lambda _: sure)
        answer = engine.answers([Generation([1], GREEDY, StopConditions(min_tokens=count))])[0]
        assert answer.tokens == [97] * count + [END]


# Stop strings


@pytest.mark.parametrize(
    ("script", "stop", "text", "reason"),
    [
        ("one two three", ("two",), "one ", "two"),
        ("one two three", ("three", "wo t"), "one t", "wo t"),
        ("abcabd", ("abd",), "abc", "abd"),
        ("aaab", ("aab",), "a", "aab"),
        ("xstopx", ("stop", "st"), "x", "st"),
        ("stop", ("stop",), "", "stop"),
        ("naïve café", ("é",), "naïve caf", "é"),
        ("sto", ("stop",), "sto", None),
    ],
)
def test_stop_strings_across_token_borders(script: str, stop: tuple[str, ...], text: str, reason: str | None) -> None:
    answer = said(script, stop=stop)
    assert (answer.text, answer.finish) == (text, ("stop", reason))
    assert answer.deltas[-1].stop_token is (reason is None)


def test_a_stop_string_in_the_middle_of_a_token() -> None:
    answer = said([*b"I ", 260, *b"!"], pieces=[b"love you"], stop=("ve y",))
    assert (answer.text, answer.finish) == ("I lo", ("stop", "ve y"))
    assert spoken(answer) == [*b"I ", 260], "the token gave some of the text"


def test_text_that_may_become_a_stop_string_is_held_back_and_nothing_else() -> None:
    answer = said("a st stop", stop=("stop",))
    assert [delta.text for delta in answer.deltas] == ["a", " ", "", "", "st ", "", "", "", ""]
    assert [[e.token for e in delta.logprobs or []] for delta in answer.deltas] == [
        [*b"a"], [*b" "], [], [], [*b"st "], [], [], [], [],
    ]  # fmt: skip


def test_held_text_comes_out_when_the_sequence_ends_otherwise() -> None:
    for answer in (said("a sto", stop=("stop",)), said("a stoxxx", stop=("stop",), max_tokens=5)):
        assert answer.text == "a sto"
        assert spoken(answer)[:5] == [*b"a sto"]
    assert len(spoken(answer)) == 5


def test_no_half_character_comes_out() -> None:
    answer = said("é€😀")
    assert [delta.text for delta in answer.deltas] == ["", "é", "", "", "€", "", "", "", "😀", ""]
    assert said("é€", max_tokens=4).text == "é"


def test_entries_of_a_character_come_with_its_text() -> None:
    answer = said("aé€")
    counts = [len(delta.logprobs or []) for delta in answer.deltas]
    assert counts == [1, 0, 2, 0, 0, 3, 1]


def test_entries_that_lie_in_the_stop_string_are_dropped() -> None:
    assert spoken(said("one two", stop=("two",))) == [*b"one "]
    assert spoken(said("caféx", stop=("é",))) == [*b"caf"]
    assert spoken(said("ca€x", stop=("€",))) == [*b"ca"]


def test_stop_strings_do_not_count_below_min_tokens() -> None:
    assert said("stop stop!", stop=("stop",), min_tokens=5).text == "stop "
    assert said("stop stop!", stop=("stop",), min_tokens=4).text == ""
    late = said("stop", stop=("stop",), min_tokens=5)  # the end is masked once, so the script is left by a zero byte
    assert (late.text, late.finish) == ("stop\0", ("stop", None))


def test_a_special_token_as_a_stop_string() -> None:
    script = [*b"hi", 258, *b"more"]
    answer = said(script, stop=("<|user|>",))
    assert (answer.text, answer.finish, answer.tokens) == ("hi", ("stop", "<|user|>"), [*b"hi", 258])
    assert answer.deltas[-1].stop_token
    # Not asked for, a special token has no text and ends nothing; its name spelled in letters is ordinary text.
    assert said(script).text == "himore"
    answer = said([*b"hi<|user|>more"], stop=("<|user|>",))
    assert (answer.text, answer.finish) == ("hi", ("stop", "<|user|>"))
    assert not answer.deltas[-1].stop_token
    # Like any stop string it does not count below min_tokens.
    assert said(script, stop=("<|user|>",), min_tokens=3).text == "himore"
    assert said(script, stop=("<|user|>",), min_tokens=2).text == "hi"
    # The end of sequence asked for by name works with ignore_eos too.
    assert said([*b"hi", END, *b"x"], stop=("<|end|>",), ignore_eos=True).finish == ("stop", "<|end|>")


# Log-probabilities


def entry_of(distribution: object, context: Sequence[int], token: int, count: int) -> TokenLogprob:
    raw = distribution(context).log_softmax(-1)  # type: ignore[operator]
    order = sorted(range(len(raw)), key=lambda i: (-float(raw[i]), i))[:count]
    return TokenLogprob(token, float(raw[token]), tuple((i, float(raw[i])) for i in order))


def same(given: TokenLogprob | None, expected: TokenLogprob) -> bool:
    assert given is not None
    close = [given.token == expected.token, abs(given.logprob - expected.logprob) < 1e-5]
    close += [a[0] == b[0] and abs(a[1] - b[1]) < 1e-5 for a, b in zip(given.top, expected.top, strict=True)]
    coincide = [value == given.logprob for token, value in given.top if token == given.token]
    return all(close + coincide)


@pytest.mark.parametrize("options", SETTINGS)
def test_logprobs_are_the_raw_models(options: dict[str, int]) -> None:
    """Several of different counts at once, twice (then with a warm cache), whatever the sampling parameters."""
    engine = SteppedEngine(ENDLESS, **options)  # type: ignore[arg-type]
    parameters = sampling(temperature=0.8, top_k=3, repetition_penalty=1.5, logit_bias={100: 2.0})
    made = [
        Generation(
            [97, 98, 99, 100 + i] * 5, parameters, StopConditions(max_tokens=20), i, (0,), count, prompt_logprobs=scored
        )
        for i, (count, scored) in enumerate([(0, None), (3, 2), (None, 0), (5, 4), (20, None), (None, None)])
    ]
    for answers in (engine.answers(made), engine.answers(made)):
        for generation, answer in zip(made, answers, strict=True):
            sequence = [*generation.prompt, *answer.tokens]
            assert answer.tokens == direct(ENDLESS, generation)
            if generation.logprobs is None:
                assert all(delta.logprobs is None for delta in answer.deltas)
            else:
                assert len(answer.logprobs) == len(answer.tokens)
                for i, entry in enumerate(answer.logprobs, len(generation.prompt)):
                    assert same(entry, entry_of(ENDLESS, sequence[:i], sequence[i], generation.logprobs))
            given = answer.prompt_logprobs
            if generation.prompt_logprobs is None:
                assert given is None
                continue
            assert given is not None
            assert given[0] is None
            assert answer.deltas[0].prompt_logprobs is given
            assert len(given) == len(generation.prompt)
            for i in range(1, len(given)):
                assert same(given[i], entry_of(ENDLESS, sequence[:i], sequence[i], generation.prompt_logprobs))
    assert (engine.scheduler.totals.preemptions > 0) is ("num_slots" in options)


def test_a_preemption_in_the_middle_of_scoring_a_prompt_repeats_no_entry() -> None:
    engine = SteppedEngine(ENDLESS, num_slots=60, max_model_len=60, max_num_batched_tokens=6)
    old = engine.submit(Generation([97] * 5, stopping=StopConditions(max_tokens=50)))
    for _ in range(8):
        engine.step()
    scored = Generation([98, 99] * 15, stopping=StopConditions(max_tokens=8), logprobs=1, prompt_logprobs=1)
    answer = engine.submit(scored)
    while not old.ended:
        engine.step()
        if engine.scheduler.running[-1:] == [engine.sequences[1]] and engine.sequences[1].computed == 15:
            engine.scheduler._preempt(engine.sequences[1])  # as if another had needed the slots just now
    engine.run()
    sequence = [*scored.prompt, *answer.tokens]
    assert engine.scheduler.totals.preemptions >= 1
    given = answer.prompt_logprobs
    assert given is not None
    assert len(given) == 30
    assert all(same(given[i], entry_of(ENDLESS, sequence[:i], sequence[i], 1)) for i in range(1, 30))
    assert answer.tokens == direct(ENDLESS, scored)


def test_a_prompt_of_one_token_has_nothing_to_score() -> None:
    answer = SteppedEngine(ENDLESS).answers(
        [Generation([97], stopping=StopConditions(max_tokens=1), prompt_logprobs=3)]
    )[0]
    assert answer.prompt_logprobs == [None]


# Faults


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_logits_that_are_not_numbers_fail_their_own_request(bad: float, prefix_cache: bool) -> None:
    def distribution(context: Sequence[int]) -> Tensor:
        logits = ENDLESS(context)
        if context[0] == 120 and len(context) >= 12:
            logits[7] = bad
        return logits

    made = [
        Generation([letter] * 8, sampling(temperature=t), StopConditions(max_tokens=10), logprobs=2)
        for letter, t in ((97, 1.0), (120, 1.0), (98, 0.0), (120, 0.0), (99, 0.5))
    ]
    engine = SteppedEngine(distribution, prefix_cache=prefix_cache)
    answers = engine.answers(made)
    for generation, answer in zip(made, answers, strict=True):
        if generation.prompt[0] == 120:
            assert isinstance(answer.error, RequestFailed)
            assert len(answer.tokens) == 4
        else:
            assert answer.error is None
            assert answer.tokens == direct(ENDLESS, generation)
    assert engine.scheduler.pool.num_free + engine.scheduler.cache.size == 4096
    assert not engine.scheduler.running


@pytest.mark.parametrize("mates", ["none", "plain", "processed logprobs", "faulty"])
def test_rows_that_keep_few_tokens_draw_what_the_whole_distribution_draws(mates: str) -> None:
    """Alone they are drawn from their kept tokens; a neighbour may need the distributions written out."""

    def distribution(context: Sequence[int]) -> Tensor:
        logits = ENDLESS(context)
        if context[0] == 120 and len(context) >= 12:
            logits[7] = float("nan")
        return logits

    kinds = [{"alpha": 1.5, "tau": 0.05}, {"alpha": 1.0, "k": 6}, {"alpha": "inf", "k": 4}]
    made = [
        Generation(
            [97 + i] * 8, sampling(transforms=[Bregman.model_validate(kind)]), StopConditions(max_tokens=20), seed=i
        )
        for i, kind in enumerate(kinds)
    ]
    sampled = {"plain": [made[0].prompt], "processed logprobs": [made[1].prompt], "faulty": [[120] * 8]}.get(mates, [])
    others = [
        replace(
            made[0],
            prompt=prompt,
            sampling=sampling(top_k=3) if mates == "plain" else made[0].sampling,
            logprobs=3 if mates != "plain" else None,
            logprobs_mode="processed" if mates == "processed logprobs" else "raw",
        )
        for prompt in sampled
    ]
    answers = SteppedEngine(distribution).answers([*made, *others])
    for generation, answer in zip(made, answers, strict=False):
        assert answer.error is None
        assert answer.tokens == direct(ENDLESS, generation)
    for generation, answer in zip(others, answers[len(made) :], strict=True):
        if mates == "faulty":
            assert isinstance(answer.error, RequestFailed)
        else:
            assert answer.tokens == direct(ENDLESS, generation)


def test_a_bug_met_by_one_request_fails_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SteppedEngine(ENDLESS)
    answers = [engine.submit(Generation([97 + i], stopping=StopConditions(max_tokens=4))) for i in range(3)]
    monkeypatch.setattr(engine.sequences[1], "append", lambda *_: 1 / 0)
    engine.run(20)
    assert isinstance(answers[1].error, RequestFailed)
    assert "division by zero" in str(answers[1].error)
    assert [len(answers[i].tokens) for i in (0, 2)] == [4, 4]


# Budgets

PROMPT = [97, 98, 99, 100, 101, 102, 103, 104]


def answer_within(limits: Budget, *, chunk: int = 256) -> tuple[Answer, Meter]:
    """Twelve tokens asked for, within that budget."""
    engine, meter = SteppedEngine(ENDLESS, max_num_batched_tokens=chunk), Meter(limits)
    return engine.answers([Generation(PROMPT, stopping=StopConditions(max_tokens=12), meter=meter)])[0], meter


def spent(spend: Spend, unit: BudgetUnit) -> float:
    return {
        "forward_tokens": spend.target_tokens, "output_tokens": spend.output_tokens, "flops": spend.flops,
    }[unit]  # fmt: skip


UNLIMITED, WHOLE = answer_within(Budget())
LIMITS: dict[BudgetUnit, list[float]] = {
    "forward_tokens": list(range(22)),
    "output_tokens": list(range(15)),
    "flops": [WHOLE.spend.flops * i / 20 for i in range(22)],
}


@pytest.mark.parametrize("chunk", [256, 3])
@pytest.mark.parametrize("unit", LIMITS)
def test_a_budget_is_kept_and_more_of_it_gives_more(unit: BudgetUnit, chunk: int) -> None:
    lengths = []
    for limit in LIMITS[unit]:
        answer, meter = answer_within(Budget(**{unit: limit}), chunk=chunk)  # type: ignore[arg-type]
        assert spent(meter.spend, unit) <= limit
        assert answer.tokens == UNLIMITED.tokens[: len(answer.tokens)]
        assert meter.spend.output_tokens == len(answer.tokens)
        if len(answer.tokens) < 12:
            assert answer.finish == ("length", f"budget:{unit}")
            assert meter.exhausted == unit
        else:
            assert answer.finish == ("length", None)
            assert meter.exhausted is None
        lengths.append(len(answer.tokens))
    assert lengths == sorted(lengths)
    assert set(lengths) == set(range(13))


def test_the_exact_limits() -> None:
    """8 prompt tokens, then one more per output token after the first."""
    assert [len(answer_within(Budget(forward_tokens=n))[0].tokens) for n in (7, 8, 9, 18, 19)] == [0, 1, 2, 11, 12]
    assert [len(answer_within(Budget(output_tokens=n))[0].tokens) for n in (0, 1, 11, 12)] == [0, 1, 11, 12]


def test_what_the_cache_serves_costs_no_budget_but_is_reported() -> None:
    assert answer_within(Budget(forward_tokens=1))[0].tokens == []
    engine = SteppedEngine(ENDLESS)
    engine.answers([Generation(PROMPT, stopping=StopConditions(max_tokens=1))])
    meter = Meter(Budget(forward_tokens=1))
    answer = engine.answers([Generation(PROMPT, meter=meter)])[0]
    assert len(answer.tokens) == 1
    assert (meter.spend.cached_tokens, meter.spend.target_tokens) == (7, 1)


def test_a_prompt_that_the_budget_does_not_cover_costs_nothing() -> None:
    for chunk in (256, 3):
        answer, meter = answer_within(Budget(forward_tokens=7), chunk=chunk)
        assert meter.spend == Spend()
        assert answer.finish == ("length", "budget:forward_tokens")


def test_seconds() -> None:
    engine = SteppedEngine(ENDLESS)
    meter = Meter(Budget(seconds=60.0))
    answer = engine.submit(Generation(PROMPT, meter=meter))
    for _ in range(5):
        engine.step()
    meter.started -= 61
    engine.step()
    assert answer.finish == ("length", "budget:seconds")
    assert answer.tokens == direct(ENDLESS, Generation(PROMPT))[:5]


def test_seconds_go_on_counting_after_the_first_choice_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SteppedEngine(ENDLESS)
    meter = Meter(Budget(seconds=60.0))
    short = engine.submit(Generation(PROMPT, stopping=StopConditions(max_tokens=1), meter=meter))
    long = engine.submit(Generation(PROMPT[::-1], branch=(1,), meter=meter))
    engine.step()
    engine.step()
    assert short.ended
    assert not long.ended
    later = time.monotonic() + 61
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: later))
    engine.step()
    assert long.finish == ("length", "budget:seconds")


def test_spend_is_what_the_model_computed() -> None:
    engine = SteppedEngine(ENDLESS, max_num_batched_tokens=20)
    meters = [Meter() for _ in range(10)]
    stopping = StopConditions(max_tokens=9)
    answers = engine.answers(
        Generation([97] * (30 if i % 2 else 3) + [98 + i], stopping=stopping, seed=i, meter=meter)
        for i, meter in enumerate(meters)
    )
    assert engine.scheduler.totals.preemptions == 0
    assert sum(meter.spend.target_tokens for meter in meters) == engine.model.forward_tokens
    for i, (meter, answer) in enumerate(zip(meters, answers, strict=True)):
        prompt = 31 if i % 2 else 4
        assert meter.spend.output_tokens == len(answer.tokens) == 9
        assert meter.spend.target_tokens + meter.spend.cached_tokens == prompt + 8
        cached = meter.spend.cached_tokens
        assert meter.spend.flops == pytest.approx(engine.info.flops(prompt + 8 - cached, cached))
        assert meter.finished is not None
    assert {meter.spend.cached_tokens for meter in meters[3::2]} == {30}
    first = meters[1].spend  # computed in chunks; every step it took part in is a pass
    assert 9 + 1 <= first.forward_passes <= engine.engine.steps


def test_passes_of_one_request_alone() -> None:
    engine = SteppedEngine(ENDLESS, max_num_batched_tokens=5)
    meter = Meter()
    engine.answers([Generation([97] * 12, stopping=StopConditions(max_tokens=4), meter=meter)])
    assert meter.spend.forward_passes == 3 + 3 == engine.model.passes


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_what_a_preemption_makes_again_is_not_charged(prefix_cache: bool) -> None:
    engine = SteppedEngine(ENDLESS, num_slots=60, max_model_len=60, prefix_cache=prefix_cache)
    meters = [Meter() for _ in range(6)]
    stopping = StopConditions(max_tokens=25)
    engine.answers(Generation([97 + i] * 20, stopping=stopping, seed=i, meter=m) for i, m in enumerate(meters))
    assert engine.scheduler.totals.preemptions > 0
    assert engine.model.forward_tokens > 6 * 44
    for meter in meters:
        assert (meter.spend.target_tokens, meter.spend.cached_tokens, meter.spend.output_tokens) == (44, 0, 25)
        assert meter.spend.flops == pytest.approx(engine.info.flops(44, 0))


def test_a_budget_that_just_suffices_suffices_under_preemption_too() -> None:
    engine = SteppedEngine(ENDLESS, num_slots=60, max_model_len=60)
    stopping = StopConditions(max_tokens=25)
    answers = engine.answers(
        Generation([97 + i] * 20, stopping=stopping, seed=i, meter=Meter(Budget(forward_tokens=44, output_tokens=25)))
        for i in range(6)
    )
    assert engine.scheduler.totals.preemptions > 0
    assert [answer.finish for answer in answers] == [("length", None)] * 6


def test_tokens_are_charged_or_cached_whoever_was_preempted_before_it_began() -> None:
    """Admitted, preempted before its first token, admitted again on a prefix that others have cached meanwhile."""
    engine = SteppedEngine(ENDLESS, max_num_batched_tokens=8)
    engine.submit(Generation([98] * 8, stopping=StopConditions(max_tokens=1)))
    meter = Meter()
    engine.submit(Generation([97] * 12, stopping=StopConditions(max_tokens=1), meter=meter))
    engine.step()  # the first takes the whole step; the second is admitted and has nothing yet
    late = engine.sequences[1]
    assert late in engine.scheduler.running
    assert late.computed == 0
    engine.scheduler._preempt(late)
    engine.scheduler.waiting.popleft()
    engine.answers([Generation([97] * 12, stopping=StopConditions(max_tokens=1))])
    engine.scheduler.add(late)
    engine.run(5)
    assert meter.spend.target_tokens + meter.spend.cached_tokens == 12


def test_choices_share_one_meter() -> None:
    engine = SteppedEngine(ENDLESS)
    meter = Meter()
    answers = engine.answers(
        Generation(PROMPT * 3, stopping=StopConditions(max_tokens=6), branch=(i,), meter=meter) for i in range(4)
    )
    assert len({tuple(answer.tokens) for answer in answers}) == 4, "branches draw different noise"
    assert meter.spend.output_tokens == 24
    assert meter.spend.target_tokens == engine.model.forward_tokens == 24 + 3 + 4 * 5
    assert meter.spend.cached_tokens == 3 * 23
    assert meter.spend.forward_passes == engine.engine.steps == 7


@pytest.mark.parametrize("unit", ["forward_tokens", "output_tokens"])
@pytest.mark.parametrize("limit", [0, 1, 10, 26, 30, 31])
def test_choices_share_one_budget(unit: BudgetUnit, limit: int) -> None:
    engine = SteppedEngine(ENDLESS, max_num_batched_tokens=10)
    meter = Meter(Budget(**{unit: limit}))
    answers = engine.answers(
        Generation(PROMPT * 3, stopping=StopConditions(max_tokens=20), branch=(i,), meter=meter) for i in range(3)
    )
    assert spent(meter.spend, unit) <= limit
    assert meter.spend.output_tokens == sum(len(answer.tokens) for answer in answers)
    assert meter.spend.target_tokens == engine.model.forward_tokens
    assert all(answer.finish == ("length", f"budget:{unit}") for answer in answers)
    if unit == "output_tokens":
        assert meter.spend.output_tokens == limit
