"""What is kept of a distribution, against definitions written out here."""

import math

import pytest
import torch

from decoding_server.bench.sampling_study import distributions


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return 3 * torch.randn(3, 500, generator=torch.Generator().manual_seed(5))


def entropy(q: list[float]) -> float:
    return -sum(value * math.log(value) for value in q if value > 0)


def test_the_distribution_itself(logits: torch.Tensor) -> None:
    for row, found in zip(logits, distributions.sizes(logits), strict=True):
        p = row.double().softmax(-1).tolist()
        assert found["none"] == pytest.approx([500, 1.0, entropy(p)], abs=1e-5)


def test_alpha_1_keeps_what_its_stop_test_says(logits: torch.Tensor) -> None:
    """A token is kept while p > (e^lambda - 1) times the mass kept before it; kept ones are renormalised."""
    for row, found in zip(logits, distributions.sizes(logits), strict=True):
        p = sorted(row.double().softmax(-1).tolist(), reverse=True)
        for tau in distributions.TAUS:
            k = next(k for k in range(1, 500) if p[k] <= math.expm1(tau) * sum(p[:k]))
            mass = sum(p[:k])
            expected = [k, mass, entropy([value / mass for value in p[:k]])]
            assert found[f"primal alpha=1 tau={tau:g}"] == pytest.approx(expected, abs=1e-5)


def test_alpha_2_spreads_the_missing_mass_evenly(logits: torch.Tensor) -> None:
    for row, found in zip(logits, distributions.sizes(logits), strict=True):
        p = sorted(row.double().softmax(-1).tolist(), reverse=True)
        k, mass, after = found["primal alpha=2 tau=0.02"]
        kept = p[: int(k)]
        assert mass == pytest.approx(sum(kept), abs=1e-6)
        assert after == pytest.approx(entropy([value + (1 - mass) / k for value in kept]), abs=1e-5)


def test_references(logits: torch.Tensor) -> None:
    for row, found in zip(logits, distributions.sizes(logits), strict=True):
        p = sorted(row.double().softmax(-1).tolist(), reverse=True)
        assert found["min_p 0.1"][0] == sum(value >= 0.1 * p[0] for value in p)
        assert found["top_p 0.9"][0] == next(k for k in range(1, 501) if sum(p[:k]) >= 0.9)
        assert found["top_k 50"][0] == 50


def test_logits_are_only_read(logits: torch.Tensor) -> None:
    before = logits.clone()
    distributions.sizes(logits)
    distributions.example(logits[:1])
    assert torch.equal(before, logits)


def test_the_example_pairs_p_with_its_own_q(logits: torch.Tensor) -> None:
    example = distributions.example(logits[:1])
    p = sorted(logits[0].double().softmax(-1).tolist(), reverse=True)
    assert example["p"] == pytest.approx(p[: distributions.EXAMPLE_TOKENS], abs=1e-6)
    k = sum(value > 0 for value in example["2"])
    rest = 1 - sum(p[:k])
    assert example["2"][:k] == pytest.approx([value + rest / k for value in p[:k]], abs=1e-6)
    assert sum(example["1"]) == pytest.approx(1, abs=1e-5)
