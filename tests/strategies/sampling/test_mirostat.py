"""Mirostat 2 against a run of its definition, its state, and that it holds the surprise it is asked for."""

import math
import random

import pytest
import torch
from baseline_reference import INF, baseline_row, distribution, process_row
from pydantic import ValidationError
from sampling_reference import random_logits

from strategies.sampling import pipeline
from strategies.sampling.mirostat import Mirostat, surprise_control
from strategies.sampling.row import Row
from strategies.sampling.standard import sampling
from strategies.sampling.truncation import TopK


def mu(row: Row) -> float:
    return surprise_control(row).mu


@pytest.mark.parametrize(("tau", "eta"), [(2.0, 0.1), (0.5, 1.0), (5.0, 0.3)])
def test_follows_the_definition_step_by_step(tau: float, eta: float) -> None:
    rng = random.Random(1)
    row, expected_mu = baseline_row(Mirostat(tau=tau, eta=eta)), 2 * tau
    for step in range(60):
        logits = random_logits(1, 80, seed=step)[0].tolist()
        p = distribution(logits)
        kept = {v for v, q in enumerate(p) if -math.log2(q) <= expected_mu or q == max(p)}
        found = process_row(logits, row)
        assert {v for v, x in enumerate(found) if x > -INF} == kept
        assert all(found[v] == logits[v] for v in kept)
        mass = math.fsum(p[v] for v in kept)
        token = rng.choices(sorted(kept), [p[v] / mass for v in sorted(kept)])[0]
        row.append(token)
        expected_mu -= eta * (-math.log2(p[token] / mass) - tau)
        assert mu(row) == pytest.approx(expected_mu, abs=1e-3)
        expected_mu = mu(row)  # so that float32 errors don't add up to another set


def test_by_hand() -> None:
    """p = 1/2, 1/4, 1/8, 1/8; mu = 2: the first two stay, with surprises log2(3/2) and log2(3)."""
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().tolist()
    row = baseline_row(Mirostat(tau=1.0, eta=0.5))
    surprise_control(row).mu = 2.5
    assert [x > -INF for x in process_row(logits, row)] == [True, True, False, False]
    row.append(1)
    assert mu(row) == pytest.approx(2.5 - 0.5 * (math.log2(3) - 1), abs=1e-6)


def test_holds_the_surprise_near_tau() -> None:
    """Mean surprise of 400 tokens from rows whose entropy is 7.7 bits; it wanders less than 0.3 bits from tau."""
    tau, total = 3.0, 0.0
    row = baseline_row(Mirostat(tau=tau, eta=0.2), seed=3)
    for step in range(450):
        logits = pipeline.process(random_logits(1, 1000, seed=step, scale=2.0), [row])
        token = int(pipeline.sample(logits, [row], [1 + step])[0])
        if step >= 50:
            total += -float(logits[0].log_softmax(-1)[token]) / math.log(2)
        row.append(token)
    assert abs(total / 400 - tau) < 0.3


def test_forks_go_their_own_ways_from_the_same_distribution() -> None:
    row = baseline_row(Mirostat(tau=1.0, eta=0.5))
    process_row([3.0, 2.5, 1.0], row)
    forks = [row.fork() for _ in range(3)]
    for token, fork in enumerate(forks[:2]):
        fork.append(token)
    assert mu(row) == mu(forks[2]) == 2.0
    assert mu(forks[0]) > mu(forks[1]) != 2.0
    row.append(1)
    assert mu(row) == mu(forks[1])


def test_a_token_without_or_outside_a_distribution_teaches_nothing() -> None:
    """Tokens that were not drawn here, say those of a replayed prefix, or forced ones that it excludes."""
    row = baseline_row(Mirostat(tau=1.0, eta=0.5), output=[1, 2])
    assert mu(row) == 2.0
    process_row([30.0, 0.0, 0.0], row)
    row.append(2)
    assert mu(row) == 2.0
    row.append(0)  # the distribution was used up
    assert mu(row) == 2.0


def test_observes_what_other_truncations_left_and_no_later_writes() -> None:
    row = baseline_row(Mirostat(tau=1.0, eta=1.0), TopK(k=1))
    logits = pipeline.process(torch.tensor([[1.0, 0.5, 0.0]]), [row])
    logits.fill_(7.0)
    row.append(0)
    assert mu(row) == pytest.approx(2.0 - (0.0 - 1.0), abs=1e-6)  # the only token left has no surprise


def test_is_off_at_temperature_zero_and_last_of_the_truncations() -> None:
    row = baseline_row(Mirostat(), temperature=0.0)
    assert row.stages == ()
    assert row.states == {}
    assert Mirostat.order() > max(type(stage).order() for stage in sampling(top_k=1, top_p=0.5, min_p=0.5).transforms)


@pytest.mark.parametrize("fields", [{"tau": 0.0}, {"tau": 101.0}, {"eta": 0.0}, {"eta": 1.1}, {"eta": math.nan}])
def test_ranges(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Mirostat.model_validate(fields)
