"""What speculation must not change: greedy output, and seeded output in coupled mode, token for token.

Every shape, in batches that mix all of them with plain requests, under every pressure that the scheduler knows.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from speculating_engine import (
    DEGENERATE,
    METHODS,
    SpeculatingEngine,
    again,
    chain,
    multi_draft,
    ngram,
    rsd_c,
    rsd_s,
    shape_name,
    spectr,
)
from stepped_engine import SteppedEngine, random_distribution
from test_scheduler import prompts
from torch import Tensor

from models.scripted import Distribution
from strategies.runtime import Generation, SamplingParameters, StopConditions
from strategies.sampling.bans import AllowedTokenIds, BadWords
from strategies.sampling.bregman.transform import Bregman
from strategies.sampling.dry import DRY
from strategies.sampling.standard import sampling
from strategies.sampling.typical import TypicalP
from strategies.sampling.xtc import ExcludeTopChoices
from strategies.speculative.speculation import Speculation

TARGET = random_distribution(end=1.0)
GREEDY = sampling(temperature=0.0)


def near(target: Distribution, weight: float, salt: int = 9) -> Distribution:
    """A draft that often agrees with the target."""
    other = random_distribution(salt=salt)

    def distribution(context: Sequence[int]) -> Tensor:
        return target(context) + weight * other(context)

    return distribution


DRAFTS = {"near": near(TARGET, 0.5), "far": random_distribution(salt=3)}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"prefix_cache": False, "max_num_batched_tokens": 65},
    {"max_num_batched_tokens": 9, "max_num_seqs": 8},
    {"num_slots": 100, "max_num_seqs": 12, "max_num_batched_tokens": 32},
    {"num_slots": 104, "max_num_seqs": 20, "prefix_cache": False},
]
SAMPLERS: tuple[SamplingParameters, ...] = (
    GREEDY,
    sampling(temperature=0.0, repetition_penalty=1.5, frequency_penalty=0.8),
    sampling(temperature=0.9),
    sampling(temperature=1.3, top_k=5, repetition_penalty=1.4),
    sampling(temperature=1.0, top_p=0.8, frequency_penalty=1.0),
    sampling(transforms=[TypicalP(mass=0.7)]),
    sampling(transforms=[ExcludeTopChoices(threshold=0.1, probability=0.5)]),
    sampling(min_p=0.1, transforms=[DRY(multiplier=2.0)]),
    sampling(transforms=[AllowedTokenIds(ids=(97, 98, 99, 256)), BadWords(sequences=((97, 98), (99,)))]),
    sampling(temperature=0.8, logit_bias={97: 4.0, 100: -100.0}),
    sampling(transforms=[Bregman(alpha=1.5, k=4)]),
)
PROMPTS = prompts(60, seed=5)


def coupled(speculation: Speculation) -> Speculation:
    """The same shape in coupled mode, where that exists."""
    return type(speculation)(**speculation.model_dump(exclude={"coupled"}, by_alias=True), coupled=True)


def generations(shapes: Sequence[Speculation | None], samplers: Sequence[SamplingParameters]) -> list[Generation]:
    made = []
    for i, shape in enumerate([*shapes, None, None]):
        for j in range(2):
            number = 2 * i + j
            made.append(
                Generation(
                    PROMPTS[number % len(PROMPTS)],
                    samplers[number % len(samplers)],
                    StopConditions(max_tokens=(1, 2, 3, 7, 11, 18)[(number + j) % 6], min_tokens=number % 3),
                    seed=1000 + number,
                    speculation=shape,
                )
            )
    return made


SHAPES = (*METHODS, *DEGENERATE)
COUPLED = tuple(coupled(shape) for shape in SHAPES if shape.couples)
EXACT = generations(SHAPES, SAMPLERS[:2]) + generations(COUPLED, SAMPLERS)


def plain(requests: Sequence[Generation]) -> list[list[int]]:
    """Tokens of the same requests without speculation."""
    engine = SteppedEngine(TARGET, max_model_len=100)
    return [answer.tokens for answer in engine.answers([again(request, speculation=None) for request in requests])]


EXPECTED = plain(EXACT)


@pytest.mark.parametrize("options", SETTINGS, ids=["roomy", "no-cache", "small-chunks", "tiny-pool", "small-pool"])
def test_greedy_and_coupled_output_is_plain_output(options: dict[str, Any]) -> None:
    engine = SpeculatingEngine(TARGET, DRAFTS, max_model_len=100, **options)
    requests = [again(generation) for generation in EXACT]
    answers = engine.answers(requests, max_steps=20_000)
    for request, answer, expected in zip(requests, answers, EXPECTED, strict=True):
        assert answer.tokens == expected, shape_name(request.speculation)
    assert engine.leaked == 0
    spends = [request.meter.spend for request in requests if request.speculation is not None]
    assert sum(spend.accepted_tokens for spend in spends) > 50
    assert sum(spend.drafted_tokens - spend.accepted_tokens for spend in spends) > 50
    if "pool" in str(options) or options.get("num_slots"):
        assert engine.scheduler.totals.preemptions > 0
    warm = [again(generation) for generation in EXACT[::5]]
    assert [answer.tokens for answer in engine.answers(warm, max_steps=20_000)] == EXPECTED[::5]


@pytest.mark.parametrize("drafter", ["near", "far"])
def test_any_drafter_may_be_named_in_coupled_mode(drafter: str) -> None:
    requests = [
        again(generation, speculation=coupled(shape).model_copy(update={"drafter": drafter}))
        for generation, shape in zip(EXACT[:12], [m for m in METHODS if m.couples and m.uses_draft] * 4, strict=True)
    ]
    requests = [replace(request, sampling=SAMPLERS[i % len(SAMPLERS)]) for i, request in enumerate(requests)]
    engine = SpeculatingEngine(TARGET, DRAFTS, max_model_len=100)
    answers = engine.answers(requests)
    assert [answer.tokens for answer in answers] == plain(requests)
    assert engine.drafts[drafter].passes > 0
    assert all(draft.passes == 0 for name, draft in engine.drafts.items() if name != drafter)


SAMPLED_SHAPES = (rsd_c(2, 2), rsd_s(2, 3), chain(3), multi_draft(2, 1), spectr(2, 2), ngram(3))


def sampled(count: int, prompt_tokens: int | None = None) -> list[Generation]:
    return [
        Generation(
            PROMPTS[i % 60] if prompt_tokens is None else (PROMPTS[i % 60] * prompt_tokens)[:prompt_tokens],
            sampling(temperature=1.0),
            StopConditions(max_tokens=10, ignore_eos=True),
            seed=i,
            speculation=SAMPLED_SHAPES[i % 6],
        )
        for i in range(count)
    ]


def alone(requests: Sequence[Generation], **options: Any) -> list[list[int]]:
    """Each request's tokens on an engine of its own."""
    return [SpeculatingEngine(TARGET, DRAFTS, **options).answers([again(r)])[0].tokens for r in requests]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 9, "max_num_seqs": 8},
        {"prefix_cache": False},
    ],
)
def test_a_seeded_sample_does_not_depend_on_its_neighbours(options: dict[str, Any]) -> None:
    """Also without coupling: the noise is a function of the request, and so are the trees."""
    requests = sampled(12)
    engine = SpeculatingEngine(TARGET, DRAFTS, **options)
    answers = engine.answers([again(request) for request in requests])
    assert [answer.tokens for answer in answers] == alone(requests)
    again_ = engine.answers([again(request) for request in requests])  # the cache is warm now
    assert [answer.tokens for answer in again_] == alone(requests)


@pytest.mark.parametrize("options", [{}, {"prefix_cache": False}, {"max_num_batched_tokens": 20}])
@pytest.mark.parametrize("wide", [False, True])
def test_a_seeded_sample_does_not_depend_on_a_full_pool(options: dict[str, Any], wide: bool) -> None:
    """A tree is as large alone and in a crowd: whoever is younger gives way to it. A tree that the whole pool has no
    room for is cut, by the pool's size alone."""
    requests = sampled(18)
    if wide:
        requests[::3] = [again(request, speculation=rsd_s(8, 8)) for request in requests[::3]]
    options |= {"num_slots": 100, "max_model_len": 100}
    engine = SpeculatingEngine(TARGET, DRAFTS, max_num_seqs=12, **options)
    answers = engine.answers([again(request) for request in requests], max_steps=20_000)
    assert engine.scheduler.totals.preemptions > 0
    assert [answer.tokens for answer in answers] == alone(requests, num_slots=100, max_model_len=100)
    assert engine.leaked == 0


def test_a_seeded_sample_does_not_depend_on_a_warm_draft() -> None:
    """Prompts that the draft catches up with in several steps, the first time."""
    requests = sampled(6, prompt_tokens=600)
    engine = SpeculatingEngine(TARGET, DRAFTS, max_model_len=1024)
    cold = [answer.tokens for answer in engine.answers([again(request) for request in requests])]
    warm = [answer.tokens for answer in engine.answers([again(request) for request in requests])]
    assert warm == cold


MIXED = generations([*METHODS, *DEGENERATE[:7]], SAMPLERS[:2]) + generations(COUPLED[:8], SAMPLERS)
MIXED_EXPECTED = plain(MIXED)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    chosen=st.lists(st.integers(0, len(MIXED) - 1), min_size=3, max_size=14, unique=True),
    gaps=st.lists(st.integers(0, 3), min_size=14, max_size=14),
    cancels=st.dictionaries(st.integers(0, 13), st.integers(0, 12), max_size=4),
    num_slots=st.sampled_from([100, 140, 1000]),
    chunk=st.sampled_from([15, 64]),
    prefix_cache=st.booleans(),
)
def test_any_mix_any_cancellation(
    chosen: list[int], gaps: list[int], cancels: dict[int, int], num_slots: int, chunk: int, prefix_cache: bool
) -> None:
    """Slots are recounted after every step; cancelled requests end as prefixes of their answers."""
    engine = SpeculatingEngine(
        TARGET, DRAFTS, num_slots=num_slots, max_num_batched_tokens=chunk, max_num_seqs=14,
        prefix_cache=prefix_cache, max_model_len=100,
    )  # fmt: skip
    answers, step = [], 0
    for number, gap in zip(chosen, gaps, strict=False):
        answers.append(engine.submit(again(MIXED[number])))
        for _ in range(gap):
            step += 1
            for place, when in cancels.items():
                if when == step and place < len(answers):
                    engine.sequences[place].cancelled = True
            engine.step()
    engine.run(5000)
    for place, (number, answer) in enumerate(zip(chosen, answers, strict=True)):
        if answer.ended:
            assert answer.tokens == MIXED_EXPECTED[number]
        else:
            assert place in cancels
            assert answer.tokens == MIXED_EXPECTED[number][: len(answer.tokens)]
    assert engine.leaked == 0
