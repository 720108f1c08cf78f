"""Epsilon, eta and top-n-sigma against their definitions and transformers."""

import json
import math
from pathlib import Path

import pytest
import torch
from baseline_reference import INF, at_least, baseline_row, eta, kept_by, process_row, sigma_threshold
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sampling_reference import random_logits
from transformers.generation.logits_process import EpsilonLogitsWarper, EtaLogitsWarper

from strategies.sampling import pipeline
from strategies.sampling.cutoffs import EpsilonCutoff, EtaCutoff, TopNSigma
from strategies.sampling.transform import Transform

LOGITS = st.lists(
    st.one_of(st.floats(-30, 30, width=32), st.sampled_from([-INF, 0.0, 1.0, 5.0])), min_size=2, max_size=40
).filter(lambda logits: max(logits) > -INF)
EPSILON = st.floats(1e-9, 0.999999)
VECTORS = json.loads((Path(__file__).parent / "baseline_vectors.json").read_text())["numeric"]


@settings(deadline=None, max_examples=120)
@given(LOGITS, EPSILON)
@example([0.0] * 4, 0.25)
@example([0.0] * 4, 0.9)
@example([1.0, 1.0, 0.5], 0.99)
def test_epsilon_keeps_what_is_likely_enough(logits: list[float], epsilon: float) -> None:
    found = kept_by(logits, EpsilonCutoff(epsilon=epsilon))
    assert at_least(logits, epsilon * (1 + 1e-5)) <= found <= at_least(logits, epsilon * (1 - 1e-5))


@settings(deadline=None, max_examples=120)
@given(LOGITS, EPSILON)
@example([0.0] * 4, 0.5)
@example([30.0, -30.0], 0.5)
def test_eta_keeps_what_is_likely_enough_for_the_entropy(logits: list[float], epsilon: float) -> None:
    found, cutoff = kept_by(logits, EtaCutoff(epsilon=epsilon)), eta(logits, epsilon)
    assert at_least(logits, cutoff * (1 + 1e-5)) <= found <= at_least(logits, cutoff * (1 - 1e-5))


def test_eta_adapts_to_the_entropy() -> None:
    """Flat rows keep everything, where epsilon keeps one token; for peaked rows both are the same."""
    flat, peaked = [0.0] * 100, [10.0, 0.0, 3.0]
    assert kept_by(flat, EtaCutoff(epsilon=0.02)) == set(range(100))
    assert kept_by([0.1, *flat], EpsilonCutoff(epsilon=0.02)) == {0}
    assert kept_by(peaked, EtaCutoff(epsilon=0.02)) == kept_by(peaked, EpsilonCutoff(epsilon=0.02)) == {0}


def test_vectors_of_the_specification() -> None:
    logits = VECTORS["logits"]
    assert kept_by(logits, EpsilonCutoff(epsilon=0.05)) == set(VECTORS["epsilon_0_05_keep"])
    assert kept_by(logits, EtaCutoff(epsilon=0.03)) == set(VECTORS["eta_eps_0_03"]["keep"])
    assert eta(logits, 0.03) == pytest.approx(VECTORS["eta_eps_0_03"]["threshold"])


@pytest.mark.parametrize("epsilon", [1e-5, 3e-4, 0.02, 0.5])
@pytest.mark.parametrize("vocab", [2, 37, 2500])
def test_equal_transformers(vocab: int, epsilon: float) -> None:
    """transformers keeps the arg-max and its ties, too, and drops p < cutoff as we do."""
    logits = random_logits(8, vocab, seed=1)
    history = torch.zeros(8, 1, dtype=torch.int64)
    pairs: list[tuple[Transform, EpsilonLogitsWarper | EtaLogitsWarper]] = [
        (EpsilonCutoff(epsilon=epsilon), EpsilonLogitsWarper(epsilon)),
        (EtaCutoff(epsilon=epsilon), EtaLogitsWarper(epsilon)),
    ]
    for transform, warper in pairs:
        rows = [baseline_row(transform) for _ in range(8)]
        assert torch.equal(pipeline.process(logits.clone(), rows), warper(history, logits.clone()))


@settings(deadline=None, max_examples=120)
@given(LOGITS, st.floats(0.01, 10))
@example([0.0] * 4, 0.01)
@example([1.0, -INF], 1.0)
def test_top_n_sigma_keeps_what_is_near_the_top(logits: list[float], n: float) -> None:
    threshold, slack = sigma_threshold(logits, n), 1e-4
    found = kept_by(logits, TopNSigma(n=n))
    top = max(logits)
    assert {v for v, x in enumerate(logits) if x >= min(threshold + slack, top)} <= found
    assert found <= {v for v, x in enumerate(logits) if x >= threshold - slack}


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.5, 10.0])
@pytest.mark.parametrize("n", [0.5, 1.0, 2.5])
def test_top_n_sigma_keeps_the_same_tokens_at_every_temperature(n: float, temperature: float) -> None:
    logits = random_logits(1, 500, seed=2)[0].tolist()
    found = process_row(logits, baseline_row(TopNSigma(n=n), temperature=temperature))
    assert {v for v, x in enumerate(found) if x > -INF} == kept_by(logits, TopNSigma(n=n))


def test_top_n_sigma_by_hand_ignores_masked_logits() -> None:
    """Deviation of 0, 2, 4 is sqrt(8 / 3) = 1.633."""
    assert kept_by([0.0, 2.0, 4.0, -INF], TopNSigma(n=1.2)) == {2}
    assert kept_by([0.0, 2.0, 4.0, -INF], TopNSigma(n=1.23)) == {1, 2}
    assert kept_by([0.0, 2.0, 4.0, -INF], TopNSigma(n=2.4)) == {1, 2}
    assert kept_by([0.0, 2.0, 4.0, -INF], TopNSigma(n=2.5)) == {0, 1, 2}


@pytest.mark.parametrize("kind", [EpsilonCutoff, EtaCutoff])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, math.nan])
def test_range_of_epsilon(kind: type[Transform], value: float) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate({"epsilon": value})


@pytest.mark.parametrize("value", [0.0, -1.0, 101.0, math.nan])
def test_range_of_n(value: float) -> None:
    with pytest.raises(ValidationError):
        TopNSigma.model_validate({"n": value})
