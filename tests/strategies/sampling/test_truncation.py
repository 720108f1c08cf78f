"""Temperature, top-k, top-p and min-p against their definitions and against transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sampling_reference import INF, kept, make_row, min_p, random_logits, top_k, top_p
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from strategies.sampling import pipeline
from strategies.sampling.truncation import NUCLEUS_CANDIDATES, nucleus_threshold

MARGIN = 2e-6  # how far float32 sums of probabilities may be off

LOGITS = st.lists(
    st.one_of(st.floats(-30, 30, width=32), st.sampled_from([-INF, 0.0, 1.0, 5.0])), min_size=2, max_size=40
).filter(lambda logits: max(logits) > -INF)


def process(logits: list[float] | Tensor, **parameters: Any) -> Tensor:
    """The pipeline's result for a batch of this one row, [V]."""
    return pipeline.process(torch.as_tensor(logits).clone()[None], [make_row(**parameters)])[0]


def check_values_kept(before: list[float], after: Tensor) -> None:
    """A truncation masks or leaves alone; it never changes a value."""
    left = kept(after)
    assert left
    assert after.tolist() == [x if v in left else -INF for v, x in enumerate(before)]


@settings(deadline=None)
@given(LOGITS, st.integers(1, 60))
@example([1.0, 1.0], 1)
@example([3.0, 2.0, 2.0, 2.0, 1.0], 2)
@example([0.0, -INF, -INF], 2)
def test_top_k_keeps_the_k_largest_and_ties(logits: list[float], k: int) -> None:
    found = process(logits, top_k=k)
    assert kept(found) == top_k(logits, k)
    check_values_kept(logits, found)


@settings(deadline=None, max_examples=300)
@given(LOGITS, st.floats(1e-9, 0.9999999))
@example([0.0] * 4, 0.5)
@example([0.0] * 4, 0.75)
@example([5.0, 1.0], 1e-12)
@example([0.0, 0.0], 1 - 1e-9)
@example([20.0, -20.0, -INF], 1 - 1e-9)
def test_top_p_keeps_the_smallest_set_with_mass_p(logits: list[float], p: float) -> None:
    found = process(logits, top_p=p)
    assert top_p(logits, p - MARGIN) <= kept(found) <= top_p(logits, p + MARGIN)
    check_values_kept(logits, found)


def test_top_p_by_hand() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for p, count in ((0.01, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.94, 3), (0.96, 4), (0.999, 4)):
        assert kept(process(logits, top_p=p)) == set(range(count)), p


@settings(deadline=None)
@given(LOGITS, st.floats(1e-9, 1.0))
@example([0.0, 0.0, -1.0], 1.0)
@example([3.0, 2.0], 1e-300)
def test_min_p_keeps_what_is_likely_enough(logits: list[float], least: float) -> None:
    found = process(logits, min_p=least)
    assert min_p(logits, min(1.0, least * (1 + 1e-5))) <= kept(found) <= min_p(logits, least * (1 - 1e-5))
    check_values_kept(logits, found)


def test_min_p_of_one_keeps_the_most_likely_and_its_ties() -> None:
    assert kept(process([2.0, 5.0, 5.0, 4.9999995], min_p=1.0)) == {1, 2}


@settings(deadline=None)
@given(LOGITS, st.sampled_from([1e-5, 1e-3, 0.01, 0.3, 0.7, 1.0, 1.7, 2.0, 100.0]))
def test_temperature_divides(logits: list[float], temperature: float) -> None:
    expected = [x / temperature for x in logits]
    assert process(logits, temperature=temperature).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 9e-6])
def test_greedy_rows_are_left_alone_by_temperature_and_truncation(temperature: float) -> None:
    logits = random_logits(1, 50, seed=4)[0]
    found = process(logits, temperature=temperature, top_k=3, top_p=0.2, min_p=0.9)
    assert torch.equal(found, logits)


@pytest.mark.parametrize("off", [{"top_k": 0}, {"top_k": 50}, {"top_k": 10**9}, {"top_p": 1.0}, {"min_p": 0.0}])
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_off_values_change_no_bit(off: dict[str, Any], temperature: float) -> None:
    logits = random_logits(1, 50, seed=5)[0]
    logits[7] = -INF
    assert torch.equal(process(logits, temperature=temperature, **off), logits)


@pytest.mark.parametrize("temperature", [1e-3, 2.0, 100.0])
@pytest.mark.parametrize("truncation", [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.3}])
def test_truncation_sees_the_distribution_after_temperature(temperature: float, truncation: dict[str, Any]) -> None:
    logits = random_logits(1, 60, seed=6)[0]
    tempered = [x / temperature for x in logits.tolist()]
    references: dict[str, Callable[[list[float], Any], set[int]]] = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    ((name, value),) = truncation.items()
    assert kept(process(logits, temperature=temperature, **truncation)) == references[name](tempered, value)


def test_truncations_work_one_after_the_other() -> None:
    """top-p sees what top-k left, renormalised."""
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert kept(process(logits, top_k=2, top_p=0.5)) == {0}  # 0.4 of 0.7 is above a half; 0.4 of 1 is not
    assert kept(process(logits, top_p=0.5)) == {0, 1}
    assert kept(process(logits, top_k=3, top_p=0.99, min_p=0.7)) == {0, 1}


@pytest.mark.parametrize("parameters", [{"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.5}, {"temperature": 0.5}])
def test_vocabulary_of_two(parameters: dict[str, Any]) -> None:
    assert kept(process([1.0, 1.0], **parameters)) == {0, 1}
    assert kept(process([1.0, -INF], **parameters)) == {0}


@pytest.mark.parametrize("parameters", [{"top_k": 1}, {"top_p": 1e-30}, {"top_p": 0.5}, {"min_p": 1.0}])
def test_equal_logits_are_all_kept(parameters: dict[str, Any]) -> None:
    """Tokens that tie with the last one kept are kept too."""
    assert kept(process([2.5] * 300, **parameters)) == set(range(300))


def transformers_warpers(temperature: float, k: int, p: float, least: float) -> list[Any]:
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
    warpers += [TopKLogitsWarper(k)] if k else []
    warpers += [TopPLogitsWarper(p)] if p < 1 else []
    return warpers + ([MinPLogitsWarper(least)] if least else [])


@pytest.mark.parametrize("vocab", [2, 37, 1500])
@pytest.mark.parametrize(
    ("temperature", "k", "p", "least"),
    [
        (0.3, 0, 1.0, 0.0),
        (2.0, 0, 1.0, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.0, 20, 1.0, 0.0),
        (1.0, 0, 0.1, 0.0),
        (1.0, 0, 0.9, 0.0),
        (1.0, 0, 0.999, 0.0),
        (1.0, 0, 1.0, 0.05),
        (1.0, 0, 1.0, 0.9),
        (0.7, 40, 0.95, 0.02),
        (1.8, 10, 0.5, 0.3),
    ],
)
def test_equals_transformers(vocab: int, temperature: float, k: int, p: float, least: float) -> None:
    logits = random_logits(8, vocab, seed=7)
    expected = logits.clone()
    for warper in transformers_warpers(temperature, k, p, least):
        expected = warper(torch.zeros(8, 1, dtype=torch.int64), expected)
    rows = [make_row(temperature=temperature, top_k=k, top_p=p, min_p=least) for _ in range(8)]
    torch.testing.assert_close(pipeline.process(logits.clone(), rows), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("p", [0.3, 0.9, 0.999, 1 - 1e-9])
def test_flat_rows_need_more_candidates_than_the_first_look(p: float) -> None:
    """The nucleus of a nearly flat row has thousands of tokens, all of which must be found."""
    vocab = 4 * NUCLEUS_CANDIDATES
    logits = random_logits(1, vocab, seed=8, scale=0.01)[0]
    left = kept(process(logits, top_p=p))
    assert len(left) > NUCLEUS_CANDIDATES
    # Among thousands of tokens of almost equal mass, rounding may move the border by a few.
    wide, narrow = (top_p(logits.tolist(), q) for q in (p + MARGIN, p - MARGIN))
    assert narrow <= left <= wide
    assert len(wide) - len(narrow) <= 8 if p < 0.9999 else len(left) > vocab - 8


def test_peaked_rows_are_the_same_beside_a_flat_one() -> None:
    vocab = 3 * NUCLEUS_CANDIDATES
    logits = torch.cat([random_logits(3, vocab, seed=9, scale=5.0), random_logits(1, vocab, seed=9, scale=0.01)])
    rows = [make_row(top_p=0.9) for _ in range(4)]
    found = pipeline.process(logits.clone(), rows)
    for i in range(4):
        assert torch.equal(found[i], process(logits[i], top_p=0.9))
        assert (len(kept(found[i])) > NUCLEUS_CANDIDATES) == (i == 3)


@pytest.mark.parametrize(("candidates", "complete"), [(1, False), (3, True), (5, True), (99, True)])
def test_nucleus_threshold_says_when_the_candidates_do_not_suffice(candidates: int, complete: bool) -> None:
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.15, 0.05]] * 2).log()
    p = torch.tensor([[0.65], [0.1]])  # nuclei: {0.4, 0.3} and {0.4}
    threshold, found = nucleus_threshold(logits, p, candidates)
    assert found == complete
    assert threshold.shape == (2, 1)
    assert threshold[1].item() == logits[0, 0].item()
    if complete:
        assert threshold[0].item() == logits[0, 2].item()


def test_a_nucleus_of_exactly_the_candidates_is_right() -> None:
    """The border case: the last candidate is the last token kept, with more equal to it behind."""
    vocab = NUCLEUS_CANDIDATES + 50
    logits = torch.zeros(vocab)
    p = (NUCLEUS_CANDIDATES - 0.5) / vocab
    assert kept(process(logits, top_p=p)) == set(range(vocab))
    distinct = -torch.arange(vocab) * 1e-4
    expected = top_p(distinct.tolist(), p)
    assert kept(process(distinct, top_p=p)) == expected


@pytest.mark.parametrize("parameters", [{"top_k": 4}, {"top_p": 0.999}, {"min_p": 1e-6}, {"temperature": 0.2}])
def test_masked_tokens_stay_masked(parameters: dict[str, Any]) -> None:
    logits = [1.0, -INF, 0.5, -INF, -INF, -INF]
    found = process(logits, **parameters)
    assert kept(found) == {0, 2}
