"""XTC: what it excludes, when, and what it never removes."""

import math

import pytest
import torch
from baseline_reference import INF, baseline_row, exclude_top, kept_by, process_row
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sampling_reference import random_logits

from models.scripted import ByteTokenizer
from strategies.randomness import Purpose, Stream, signed64, uniform
from strategies.sampling import pipeline
from strategies.sampling.xtc import ExcludeTopChoices, coin

LOGITS = st.lists(
    st.one_of(st.floats(-30, 30, width=32), st.sampled_from([-INF, 0.0, 1.0, 5.0])), min_size=2, max_size=40
).filter(lambda logits: max(logits) > -INF)


def always(threshold: float) -> ExcludeTopChoices:
    return ExcludeTopChoices(threshold=threshold, probability=1.0)


@settings(deadline=None, max_examples=120)
@given(LOGITS, st.floats(1e-6, 0.6))
@example([0.0] * 4, 0.1)
@example([5.0, 5.0, 1.0], 0.3)
def test_excludes_all_top_choices_but_the_least_likely(logits: list[float], threshold: float) -> None:
    """Rounding of a float32 probability at the threshold may let one more or one fewer token count as a top choice."""
    possible = [exclude_top(logits, threshold * factor) for factor in (1 - 1e-5, 1.0, 1 + 1e-5)]
    assert kept_by(logits, always(threshold)) in possible


def test_by_hand() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04]).log().tolist()
    assert kept_by(logits, always(0.1)) == {2, 3, 4}
    assert kept_by(logits, always(0.25)) == {1, 2, 3, 4}
    assert kept_by(logits, always(0.35)) == {0, 1, 2, 3, 4}  # one top choice only
    assert kept_by(logits, always(0.5)) == {0, 1, 2, 3, 4}
    assert kept_by([*logits, -INF], always(0.0)) == {4}  # masked tokens are no choice


def test_ties_of_the_least_likely_top_choice_stay() -> None:
    logits = torch.tensor([0.4, 0.2, 0.2, 0.2]).log().tolist()
    assert kept_by(logits, always(0.1)) == {1, 2, 3}


@pytest.mark.parametrize("special", [10, 256])
def test_a_newline_or_an_end_of_sequence_is_never_removed(special: int) -> None:
    """Byte 10 is the newline of this tokenizer, 256 its end of sequence. As in text-generation-webui, nothing at all is
    excluded then; if the special token is the one that stays, or is unlikely, the rest is excluded."""
    logits = [-20.0] * 300
    logits[65], logits[66], logits[special] = 2.0, 1.0, 3.0
    row = baseline_row(always(0.05), tokenizer=ByteTokenizer())
    assert process_row(logits, row) == logits
    logits[special] = 0.5
    found = process_row(logits, row)
    assert [v for v, x in enumerate(found) if x == -INF] == [65, 66]
    logits[special] = -20.0
    assert [v for v, x in enumerate(process_row(logits, row)) if x == -INF] == [65]


def test_the_exemption_is_the_row_s_own() -> None:
    logits = torch.full((3, 300), -20.0)
    logits[:, 65], logits[:, 66] = 2.0, 1.0
    logits[1, 10] = 3.0
    rows = [baseline_row(always(0.05), tokenizer=ByteTokenizer()) for _ in range(3)]
    assert torch.isneginf(pipeline.process(logits, rows)).sum(-1).tolist() == [1, 0, 1]


def test_the_coin_is_fair_and_depends_on_seed_branch_and_position_only() -> None:
    """4,000 coins at 0.3: deviation 0.0072; six of them is a false alarm of 2e-9."""
    transform = ExcludeTopChoices(threshold=0.1, probability=0.3)
    rows = [baseline_row(transform, seed=s, output=[1] * n) for s in range(400) for n in range(10)]
    fired = [transform.wants(row) for row in rows]
    assert abs(sum(fired) / len(fired) - 0.3) < 6 * math.sqrt(0.3 * 0.7 / len(fired))
    assert len({coin(row) for row in rows}) == len(rows)
    assert coin(rows[7]) == coin(baseline_row(transform, output=[2] * 7))
    assert coin(rows[7]) != coin(baseline_row(transform, output=[2] * 7, branch=(1,)))


def test_the_coin_is_the_noise_at_index_minus_one() -> None:
    """Independent of what picks the token, which uses the indices from zero on."""
    row = baseline_row(always(0.1), seed=5, prompt=[1, 2, 3], output=[4])
    key = signed64(Stream(5, (0,), Purpose.SAMPLE).key(4))
    assert coin(row) == uniform(torch.tensor([key]), torch.tensor([-1])).item()


def test_fires_alone_when_it_fires_in_a_batch() -> None:
    logits = random_logits(64, 30, seed=3)
    rows = [baseline_row(ExcludeTopChoices(threshold=0.05, probability=0.5), seed=s) for s in range(64)]
    found = pipeline.process(logits.clone(), rows)
    changed = [not torch.equal(found[i], logits[i]) for i in range(64)]
    assert 10 < sum(changed) < 54
    for i, row in enumerate(rows):
        assert torch.equal(pipeline.process(logits[i : i + 1].clone(), [row])[0], found[i])


def test_off_at_probability_zero_and_at_temperature_zero() -> None:
    logits = [1.0, 1.0, 0.5]
    assert process_row(logits, baseline_row(ExcludeTopChoices(threshold=0.1, probability=0.0))) == logits
    assert process_row(logits, baseline_row(always(0.1), temperature=0.0)) == logits


@pytest.mark.parametrize("field", ["threshold", "probability"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_ranges(field: str, value: float) -> None:
    with pytest.raises(ValidationError):
        ExcludeTopChoices.model_validate({field: value})
