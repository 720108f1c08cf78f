"""Locally typical sampling against its definition and transformers."""

import pytest
import torch
from baseline_reference import INF, baseline_row, kept_by, process_row, typical_set
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sampling_reference import random_logits
from transformers.generation.logits_process import TypicalLogitsWarper

from strategies.sampling import pipeline
from strategies.sampling.typical import TYPICAL_CANDIDATES, TypicalP

MASS = 3e-6  # how far float32 sums of probabilities may be off
DISTANCE = 5e-5  # how far float32 surprises of up to 60 nats may be off

LOGITS = st.lists(
    st.one_of(st.floats(-30, 30, width=32), st.sampled_from([-INF, 0.0, 1.0, 5.0])), min_size=2, max_size=40
).filter(lambda logits: max(logits) > -INF)


@settings(deadline=None, max_examples=120)
@given(LOGITS, st.floats(1e-9, 0.999999))
@example([0.0] * 4, 0.5)
@example([20.0, -20.0, -INF], 1e-9)
def test_keeps_the_most_typical_tokens(logits: list[float], mass: float) -> None:
    found = kept_by(logits, TypicalP(mass=mass))
    assert typical_set(logits, mass - MASS, -DISTANCE) <= found <= typical_set(logits, mass + MASS, DISTANCE)


def test_by_hand_the_most_likely_token_can_go() -> None:
    """p = 0.4, 0.12 five times: surprises 0.92 and 2.12, entropy 1.64; the five are nearer to it."""
    logits = torch.tensor([0.4, *[0.12] * 5]).log().tolist()
    assert kept_by(logits, TypicalP(mass=0.5)) == {1, 2, 3, 4, 5}
    assert kept_by(logits, TypicalP(mass=0.7)) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("mass", [0.05, 0.2, 0.9, 0.99])
@pytest.mark.parametrize("vocab", [2, 37, 2500])
def test_equals_transformers(vocab: int, mass: float) -> None:
    """Ties with the last token are kept there, too; the rows of one token only differ: theirs always has the first."""
    logits = random_logits(8, vocab, seed=1)
    logits[:, 1:2] = logits[:, :1] - 1.0
    expected = TypicalLogitsWarper(mass)(torch.zeros(8, 1, dtype=torch.int64), logits.clone())
    rows = [baseline_row(TypicalP(mass=mass)) for _ in range(8)]
    assert torch.equal(pipeline.process(logits.clone(), rows), expected)


def test_flat_rows_are_looked_at_as_a_whole_and_leave_their_neighbours_alone() -> None:
    vocab = 3 * TYPICAL_CANDIDATES
    logits = torch.cat([random_logits(3, vocab, seed=2, scale=5.0), random_logits(1, vocab, seed=2, scale=0.01)])
    rows = [baseline_row(TypicalP(mass=0.9)) for _ in range(4)]
    found = pipeline.process(logits.clone(), rows)
    sizes = torch.isfinite(found).sum(-1).tolist()
    assert sizes[3] > TYPICAL_CANDIDATES > max(sizes[:3])
    for i in range(4):
        assert found[i].tolist() == process_row(logits[i].tolist(), rows[i])
        exact = logits[i].tolist()
        kept = {v for v, x in enumerate(found[i].tolist()) if x > -INF}
        assert typical_set(exact, 0.9 - 2e-6, -5e-6) <= kept <= typical_set(exact, 0.9 + 2e-6, 5e-6)


def test_a_mass_of_one_and_temperature_zero_are_off() -> None:
    logits = random_logits(1, 50, seed=3)[0].tolist()
    assert process_row(logits, baseline_row(TypicalP(mass=1.0))) == logits
    assert process_row(logits, baseline_row(TypicalP(mass=0.1), temperature=0.0)) == logits


@pytest.mark.parametrize("mass", [0.0, -0.1, 1.1, "0.5"])
def test_range(mass: object) -> None:
    with pytest.raises(ValidationError):
        TypicalP.model_validate({"mass": mass})
