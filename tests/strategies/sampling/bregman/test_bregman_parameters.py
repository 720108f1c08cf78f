"""The parameter model: what it accepts, what it refuses and how it says so; the constants behind it."""

import math
from typing import Any

import pytest
from bregman_oracle import penalty_of
from pydantic import ValidationError

from strategies.sampling.bregman.generator import Family, drop_factor, family, floor_of_penalty, most_kept
from strategies.sampling.bregman.parameters import BregmanParameters

ACCEPTED: list[dict[str, Any]] = [
    {"lambda": 0.01},
    {"alpha": 2, "lambda": 0},
    {"alpha": 1.0, "tau": 0.05, "k_min": 2, "k_max": 50},
    {"alpha": 0.25, "lambda": math.inf},
    {"alpha": 1.05, "mode": "dual", "tau": 1.0},
    {"alpha": 8.0, "mode": "dual", "tau": 0.0},
    {"alpha": -4.0, "k": 5},
    {"alpha": 1.0, "mode": "dual", "k": 5},
    {"alpha": "inf", "mode": "dual", "k": 1},
    {"alpha": "-inf", "k": 3},
]

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "lambda"),
    ({"lambda": 0.1, "tau": 0.1}, "tau"),
    ({"lambda": 0.1, "k": 3}, "k"),
    ({"tau": 0.1, "k": 3}, "k"),
    ({"lambda": -0.1}, "lambda"),
    ({"lambda": math.nan}, "lambda"),
    ({"lambda": "0.1"}, "lambda"),
    ({"tau": 1.5}, "tau"),
    ({"tau": math.nan}, "tau"),
    ({"k": 0}, "k"),
    ({"k": 2.0}, "k"),
    ({"k": 2, "k_max": 3}, "k_max"),
    ({"k": 2, "k_min": 2}, "k_min"),
    ({"lambda": 0.1, "k_min": 3, "k_max": 2}, "k_min"),
    ({"lambda": 0.1, "k_min": 0}, "k_min"),
    ({"lambda": 0.1, "k_max": 0}, "k_max"),
    ({"lambda": 0.1, "mode": "both"}, "mode"),
    ({"alpha": 0.0, "lambda": 0.1}, "alpha"),
    ({"alpha": 0.2, "tau": 0.1}, "alpha"),
    ({"alpha": 8.5, "lambda": 0.1}, "alpha"),
    ({"alpha": 1.0, "mode": "dual", "lambda": 0.1}, "alpha"),
    ({"alpha": 0.9, "mode": "dual", "k": 2}, "alpha"),
    ({"alpha": -4.5, "k": 2}, "alpha"),
    ({"alpha": "inf", "lambda": 0.1}, "alpha"),
    ({"alpha": "-inf", "mode": "dual", "k": 2}, "alpha"),
    ({"alpha": math.inf, "k": 2}, "alpha"),
    ({"alpha": math.nan, "k": 2}, "alpha"),
    ({"alpha": True, "k": 2}, "alpha"),
    ({"lambda": 0.1, "gamma": 1}, "gamma"),
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
def test_accepted(fields: dict[str, Any]) -> None:
    parameters = BregmanParameters.model_validate(fields)
    given = parameters.model_dump(by_alias=True, exclude_unset=True)
    assert given == fields
    assert BregmanParameters.model_validate(given) == parameters


@pytest.mark.parametrize(("fields", "field"), REFUSED, ids=str)
def test_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BregmanParameters.model_validate(fields)
    error = caught.value.errors()[0]
    named = error["loc"][0] if error["loc"] else error["ctx"]["param"]
    assert named == field
    assert error["loc"] or error["msg"].startswith(f"{field}: ")


def test_frozen() -> None:
    parameters = BregmanParameters.model_validate({"lambda": 0.1})
    with pytest.raises(ValidationError):
        parameters.alpha = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mode", "alpha"), [("primal", 0.5), ("primal", 1.0), ("primal", 3.0), ("dual", 1.5), ("dual", 3.0)]
)
def test_tau_is_the_probability_whose_dropping_costs_lambda(mode: Any, alpha: float) -> None:
    parameters = BregmanParameters(alpha=alpha, mode=mode, tau=0.05)
    assert parameters.penalty == pytest.approx(penalty_of(mode, alpha, 0.05), rel=1e-9)
    assert floor_of_penalty(mode, alpha, parameters.penalty or 0.0) == pytest.approx(0.05, rel=1e-12)


@pytest.mark.parametrize(
    ("tau", "alpha", "lam"), [(0.1, 0.5, 0.632), (0.05, 1.5, 7.45e-3), (0.01, 2.0, 5e-5), (0.01, 3.0, 3.33e-7)]
)
def test_tau_table(tau: float, alpha: float, lam: float) -> None:
    parameters = BregmanParameters(alpha=alpha, tau=tau)
    assert parameters.penalty == pytest.approx(lam, rel=2e-3)
    assert parameters.candidates(10**6) in (math.ceil(1 / tau) + 1, math.ceil(1 / tau) + 2)


@pytest.mark.parametrize(
    ("fields", "candidates"),
    [
        ({"lambda": 0.0}, 1000),
        ({"lambda": 0.0, "k_max": 7}, 7),
        ({"tau": 1e-6}, 1000),
        ({"alpha": 8.0, "lambda": 1e-300}, 1000),
        ({"alpha": 0.25, "lambda": 1e-300}, 1000),
        ({"tau": 1e-6, "k_max": 7}, 7),
        ({"lambda": math.inf}, 2),
        ({"lambda": math.inf, "k_min": 9}, 9),
        ({"k": 5}, 5),
        ({"k": 5000}, 1000),
    ],
    ids=str,
)
def test_candidates(fields: dict[str, Any], candidates: int) -> None:
    assert BregmanParameters.model_validate(fields).candidates(1000) == candidates


def test_infinite_drop_costs_have_no_factor() -> None:
    for mode, alpha in (("primal", 0.0), ("primal", -1.0), ("dual", 1.0), ("dual", 0.5), ("primal", math.inf)):
        with pytest.raises(ValueError, match="no finite cost"):
            drop_factor(mode, alpha)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha >= 1"):
        family("dual", 0.5)
    assert most_kept("primal", 0.25, 1e-300) == math.inf
    assert family("dual", 1.0) is Family.PROPORTIONAL
