"""Bregman as a stage: selected by name, last in the pipeline, batched with other rows, and what it writes."""

import math

import pytest
import torch
from pydantic import ValidationError

from strategies import registry
from strategies.runtime import Generation, SamplingParameters
from strategies.sampling import pipeline
from strategies.sampling.bregman.transform import K_MAX, Bregman
from strategies.sampling.row import Row
from strategies.sampling.standard import sampling

P = torch.tensor([[0.5, 0.25, 0.15, 0.07, 0.03]])


def row(parameters: SamplingParameters) -> Row:
    return Row(Generation([0], parameters), frozenset())


def test_it_is_registered() -> None:
    assert registry.find("transform", "bregman", "decoding.sampler") is Bregman
    properties = Bregman.model_json_schema()["properties"]
    assert set(properties) == {"alpha", "mode", "lambda", "tau", "k", "k_min", "k_max"}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"alpha": 1.0, "lambda": 0.1}, [0.555556, 0.277778, 0.166667]),
        ({"alpha": 1.5, "lambda": 0.05}, [0.544042, 0.281415, 0.174543]),
        ({"alpha": 2.0, "lambda": 0.02}, [0.533333, 0.283333, 0.183333]),
        ({"alpha": 1.5, "lambda": 0.05, "mode": "dual"}, [0.543736, 0.281467, 0.174798]),
        ({"alpha": 1.0, "k": 2}, [2 / 3, 1 / 3]),
    ],
)
def test_the_worked_example_of_the_specification(parameters: dict[str, object], expected: list[float]) -> None:
    found = pipeline.process(P.log().clone(), [row(sampling(transforms=[Bregman.model_validate(parameters)]))])
    assert found[0, : len(expected)].exp().tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.isneginf(found[0, len(expected) :]).all()


def test_temperature_comes_before_it_and_greedy_decoding_skips_it() -> None:
    bregman = Bregman.model_validate({"alpha": 1.0, "k": 2})
    warm = row(sampling(temperature=0.5, top_p=0.99, transforms=[bregman]))
    assert [stage.name for stage in warm.stages] == ["temperature", "top_p", "bregman"]
    found = pipeline.process(P.log().clone(), [warm])[0, :2].exp()
    assert found.tolist() == pytest.approx([0.8, 0.2], abs=1e-6)
    assert row(sampling(temperature=0.0, transforms=[bregman])).stages == ()


def test_a_mixed_batch_equals_each_row_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4000, generator=generator) * 3
    kinds = [
        {"alpha": 1.0, "tau": 0.01},
        {"alpha": 1.5, "tau": 0.02},
        {"alpha": 1.75, "tau": 0.05},
        {"alpha": 3.0, "tau": 0.05, "mode": "dual"},
        {"alpha": "inf", "k": 7},
    ]
    rows = [
        row(sampling(temperature=1.3, transforms=[Bregman.model_validate(kinds[i % 5])] if i % 3 else []))
        for i in range(12)
    ]
    together = pipeline.process(logits.clone(), rows)
    for i, one in enumerate(rows):
        alone = pipeline.process(logits[i : i + 1].clone(), [one])[0]
        assert torch.equal(torch.isneginf(alone), torch.isneginf(together[i]))
        torch.testing.assert_close(alone, together[i], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("parameters", [{"k": 3}, {"tau": 0.1}, {"tau": 0.1, "k_max": 3}, {"lambda": 0.0}], ids=str)
def test_equal_parameters_of_different_requests_can_be_compared(parameters: dict[str, object]) -> None:
    """Each has its bounded form in its cache, and the plans of batches are kept by it."""
    one, other = (row(sampling(transforms=[Bregman.model_validate(parameters)])) for _ in range(2))
    batches = ([one], [other, other], [other])  # the third finds the plan of the first
    found = [pipeline.process(P.log().repeat(len(rows), 1), rows)[0] for rows in batches]
    assert torch.equal(found[0], found[2])


def test_k_is_bounded_unless_every_token_is_free() -> None:
    flat = torch.zeros(1, 5000)
    tiny = row(sampling(transforms=[Bregman.model_validate({"alpha": 1.5, "lambda": 1e-9})]))
    assert int(torch.isfinite(pipeline.process(flat.clone(), [tiny])).sum()) == K_MAX
    free = row(sampling(transforms=[Bregman.model_validate({"alpha": 1.5, "lambda": 0.0})]))
    found = pipeline.process(flat.clone(), [free])
    assert found[0].tolist() == pytest.approx([-math.log(5000)] * 5000, abs=1e-5)


def test_a_faulty_row_stays_faulty_and_hurts_no_other() -> None:
    logits = torch.stack([torch.full((5,), float("nan")), P[0].log(), torch.full((5,), -math.inf)])
    rows = [row(sampling(transforms=[Bregman.model_validate({"alpha": 2.0, "lambda": 0.02})])) for _ in range(3)]
    found = pipeline.process(logits, rows)
    assert pipeline.faulty_rows(found).tolist() == [True, False, True]
    assert found[1, :3].exp().tolist() == pytest.approx([0.533333, 0.283333, 0.183333], abs=1e-6)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"lambda": 0.1, "tau": 0.1}, {"lambda": -1.0}, {"k": 0}, {"alpha": "inf", "tau": 0.1}, {"nonsense": 1}],
)
def test_combinations_that_mean_nothing_are_refused(parameters: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Bregman.model_validate(parameters)
