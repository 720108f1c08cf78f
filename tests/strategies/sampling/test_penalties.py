"""Repetition, presence and frequency penalties, logit bias and minimum length against their definitions."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_reference import INF, bias, counts, make_row, random_logits, repetition
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from strategies.runtime import StopConditions
from strategies.sampling import pipeline
from strategies.sampling.row import Row

V = 12
LOGITS = st.lists(st.one_of(st.floats(-50, 50, width=32), st.sampled_from([0.0, -INF])), min_size=V, max_size=V)
TOKENS = st.lists(st.integers(0, V - 1), max_size=10)


def process(logits: list[float], row: Row) -> list[float]:
    return pipeline.process(torch.tensor([logits]), [row])[0].tolist()


def close(found: list[float], expected: list[float]) -> bool:
    """Equal to float32 rounding; infinities must be equal."""
    return found == pytest.approx(expected, rel=1e-6, abs=1e-5)


@settings(deadline=None)
@given(LOGITS, TOKENS, TOKENS, st.floats(0.05, 10))
def test_repetition_penalty(logits: list[float], prompt: list[int], output: list[int], penalty: float) -> None:
    row = make_row(prompt=prompt, output=output, repetition_penalty=penalty)
    assert close(process(logits, row), repetition(logits, prompt + output, penalty))


def test_repetition_penalty_counts_a_token_once() -> None:
    row = make_row(prompt=[1, 1, 1], output=[1, 1, 2], repetition_penalty=2.0)
    assert process([4.0, 4.0, -4.0, -4.0], row) == [4.0, 2.0, -8.0, -4.0]


def test_repetition_penalty_below_one_raises() -> None:
    assert process([4.0, -4.0, 1.0], make_row(prompt=[0, 1], repetition_penalty=0.5)) == [8.0, -2.0, 1.0]


@pytest.mark.parametrize("penalty", [0.7, 1.1, 1.5, 8.0])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    logits = random_logits(6, 97, seed=1)
    generator = torch.Generator().manual_seed(2)
    history = torch.randint(0, 97, (6, 30), generator=generator)
    rows = [make_row(prompt=h[:20], output=h[20:], repetition_penalty=penalty) for h in history.tolist()]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(history, logits.clone())
    torch.testing.assert_close(pipeline.process(logits.clone(), rows), expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(LOGITS, TOKENS, TOKENS, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency(
    logits: list[float], prompt: list[int], output: list[int], presence: float, frequency: float
) -> None:
    row = make_row(prompt=prompt, output=output, presence_penalty=presence, frequency_penalty=frequency)
    assert close(process(logits, row), counts(logits, output, presence, frequency))


def test_presence_is_paid_once_frequency_each_time_and_the_prompt_is_free() -> None:
    output = [1, 2, 2, 2]
    assert process([0.0] * 4, make_row(prompt=[0], output=output, presence_penalty=0.5)) == [0.0, -0.5, -0.5, 0.0]
    assert process([0.0] * 4, make_row(prompt=[0], output=output, frequency_penalty=0.5)) == [0.0, -0.5, -1.5, 0.0]


def test_penalties_follow_each_appended_token() -> None:
    row = make_row(frequency_penalty=1.0)
    for n in range(4):
        assert process([0.0, 0.0], row) == [0.0, -float(n)]
        row.append(1)


@settings(deadline=None)
@given(LOGITS, st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100)))
def test_logit_bias(logits: list[float], added: dict[int, float]) -> None:
    assert close(process(logits, make_row(logit_bias=added)), bias(logits, added))


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_bias_of_100_forces_and_of_minus_100_bans(temperature: float) -> None:
    """peers.md 5, row 12."""
    logits = [8.0, -20.0, 3.0, 7.0]
    forced = process(logits, make_row(temperature=temperature, logit_bias={1: 100.0}))
    assert torch.tensor(forced).softmax(-1)[1].item() > 1 - 1e-6
    banned = process(logits, make_row(temperature=temperature, logit_bias={0: -100.0}))
    assert torch.tensor(banned).softmax(-1)[0].item() < 1e-30


def test_masked_tokens_stay_masked() -> None:
    row = make_row(
        prompt=[0, 1],
        output=[1],
        repetition_penalty=0.1,
        presence_penalty=-2.0,
        frequency_penalty=-2.0,
        logit_bias={0: 100.0, 1: 100.0, 2: 100.0},
        temperature=0.5,
        min_p=0.1,
        top_p=0.9,
        top_k=4,
    )
    found = process([-INF, -INF, -INF, 1.0, 1.0], row)
    assert found == [-INF, -INF, -INF, 2.0, 2.0]


def test_bias_of_minus_infinity_masks() -> None:
    assert process([1.0, 2.0, 3.0], make_row(logit_bias={2: -INF})) == [1.0, 2.0, -INF]


@pytest.mark.parametrize(
    ("eos", "stopping", "masked"),
    [
        ([3], StopConditions(min_tokens=2), {3}),
        ([3, 4], StopConditions(min_tokens=2), {3, 4}),
        ([3], StopConditions(min_tokens=2, stop_token_ids=frozenset([1])), {1, 3}),
        ([3], StopConditions(min_tokens=2, ignore_eos=True), set()),
        ([3], StopConditions(min_tokens=2, ignore_eos=True, stop_token_ids=frozenset([1])), {1}),
        ([3], StopConditions(min_tokens=2, ignore_eos=True, stop_token_ids=frozenset([3])), {3}),
        ([3], StopConditions(min_tokens=0, stop_token_ids=frozenset([1])), set()),
        ([], StopConditions(min_tokens=2), set()),
    ],
)
def test_min_tokens_masks_what_would_end_the_sequence_until_enough_are_generated(
    eos: list[int], stopping: StopConditions, masked: set[int]
) -> None:
    row = make_row(eos=eos, stopping=stopping, prompt=[0] * 9)
    logits = [1.0, 2.0, 3.0, 9.0, 5.0]
    expected = [-INF if v in masked else x for v, x in enumerate(logits)]
    for token in (0, 0):
        assert process(logits, row) == expected
        row.append(token)
    assert process(logits, row) == logits


def test_min_tokens_beats_a_bias_and_binds_greedy_rows() -> None:
    stopping = StopConditions(min_tokens=1)
    row = make_row(eos=[0], stopping=stopping, logit_bias={0: 100.0}, temperature=0.0)
    assert process([5.0, 1.0], row) == [-INF, 1.0]


PENALTIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("repetition_penalty", {"repetition_penalty": 1.0}, {"repetition_penalty": 1.2}),
    ("presence_frequency_penalty", {"presence_penalty": 0.0, "frequency_penalty": 0.0}, {"presence_penalty": -0.1}),
    ("presence_frequency_penalty", {}, {"frequency_penalty": 0.1}),
    ("logit_bias", {"logit_bias": {}}, {"logit_bias": {2: 1.0}}),
    ("min_tokens", {"stopping": StopConditions(min_tokens=5)}, {"stopping": StopConditions(min_tokens=5), "eos": [1]}),
]


@pytest.mark.parametrize(("name", "off", "on"), PENALTIES)
def test_defaults_switch_a_penalty_off(name: str, off: dict[str, Any], on: dict[str, Any]) -> None:
    assert [stage.name for stage in make_row(prompt=[1], output=[2], **off).stages] == []
    assert [stage.name for stage in make_row(prompt=[1], output=[2], **on).stages] == [name]


def test_empty_histories_are_fine() -> None:
    rows = [
        make_row(prompt=[], repetition_penalty=1.5),
        make_row(prompt=[], presence_penalty=1.0),
        make_row(prompt=[], repetition_penalty=1.5, presence_penalty=1.0, frequency_penalty=1.0),
    ]
    logits = random_logits(3, 9, seed=3)
    assert torch.equal(pipeline.process(logits.clone(), rows), logits)


def test_min_tokens_asks_nothing_once_there_are_enough() -> None:
    stopping = StopConditions(min_tokens=5)
    for outputs in range(8):
        row = make_row(eos=[1], output=[0] * outputs, stopping=stopping)
        assert row.stages[0].wants(row) == (outputs < 5)
