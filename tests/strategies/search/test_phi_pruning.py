"""In-width and in-depth pruning of phi-decoding."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.search.phi_profile import ORIGIN, PAPER, SERVER, PhiProfile
from strategies.search.phi_pruning import DepthPruning, fill_weights, prune_width, surviving

SEARCHED = settings(max_examples=50, deadline=None, derandomize=True)
SCORES = st.lists(st.floats(-5, 0), min_size=1, max_size=16)


@SEARCHED
@given(SCORES, st.floats(0, 3), st.booleans())
def test_the_kept_set_is_upward_closed(s: list[float], k: float, inclusive: bool) -> None:
    keep = prune_width(s, k, inclusive=inclusive).keep
    kept = [score for score, kept in zip(s, keep, strict=True) if kept]
    pruned = [score for score, kept in zip(s, keep, strict=True) if not kept]
    assert not kept or not pruned or min(kept) > max(pruned)


@SEARCHED
@given(SCORES)
def test_one_deviation_keeps_more_than_half_and_enough_deviations_keep_all(s: list[float]) -> None:
    assert 2 * len(prune_width(s, 1.0).kept) > len(s)
    assert len(prune_width(s, math.sqrt(max(len(s) - 1, 0))).kept) == len(s)


@SEARCHED
@given(st.lists(st.integers(-50, 0), min_size=1, max_size=16), st.integers(1, 5), st.integers(-20, 20))
def test_positive_affine_maps_keep_the_mask(s: list[int], scale: int, shift: int) -> None:
    mapped = [float(scale * score + shift) for score in s]
    assert prune_width(mapped, 1.0).keep == prune_width([float(score) for score in s], 1.0).keep


@pytest.mark.parametrize("value", [-0.5, -0.1, -1 / 3, -0.7000000000000001])
@pytest.mark.parametrize("n", [1, 3, 7, 16])
def test_equal_scores_pass_together_or_fail_together(value: float, n: int) -> None:
    assert prune_width([value] * n, 1.0).kept == list(range(n))
    assert prune_width([value] * n, 1.0, inclusive=False).kept == []


def test_undefined_scores_are_never_kept_nor_counted() -> None:
    pruning = prune_width([-0.2, None, math.nan, math.inf, -0.4])
    assert pruning.kept == [0, 4]
    assert pruning.mean == pytest.approx(-0.3)
    nothing = prune_width([None, math.nan])
    assert nothing.kept == []
    assert math.isnan(nothing.threshold)


def test_origin_tops_up_to_the_width_from_the_pruned() -> None:
    s = [-0.5] * 8
    kept = surviving(s, 4, ORIGIN, [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6])
    assert kept == [1, 3, 5, 7]
    assert surviving(s, 4, SERVER, [0.5] * 8) == list(range(8))


def test_top_up_is_not_reached_with_several_rollouts_and_never_takes_undefined_scores() -> None:
    assert surviving([-0.1, -0.2, None, None], 4, SERVER, [0.5] * 4) == [0, 1]
    assert fill_weights([None, -0.1], (False, False)) == ([1], [1.0])


@SEARCHED
@given(st.lists(st.floats(-5, 0), min_size=8, max_size=16), st.lists(st.floats(0.01, 0.99), min_size=16, max_size=16))
def test_survivors_number_at_least_the_width(s: list[float], uniforms: list[float]) -> None:
    for profile in (PAPER, ORIGIN, SERVER, replace(SERVER, width_k=0.0)):
        kept = surviving(s, 4, profile, uniforms[: len(s)])
        assert len(kept) >= 4
        assert kept == sorted(set(kept))
        assert set(prune_width(s, profile.width_k, inclusive=profile.width_inclusive).kept) <= set(kept)


@pytest.mark.parametrize("profile", [PAPER, ORIGIN, SERVER])
@SEARCHED
@given(shares=st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=10), t_min=st.integers(1, 6))
def test_no_stop_before_t_min(profile: PhiProfile, shares: list[float | None], t_min: int) -> None:
    rule = DepthPruning.of(profile, t_min)
    for t, share in enumerate(shares, 1):
        cause = rule.observe(t, share, ["a", "b"])
        assert cause is None or t >= t_min
        if cause is not None and not profile.depth_sticky:
            assert share is not None
            assert share >= profile.delta - 1e-9


def test_agreement_at_one_step_is_forgotten_but_by_the_origin_profile() -> None:
    for profile, stop in ((SERVER, None), (ORIGIN, "agreement")):
        rule = DepthPruning.of(profile, 3)
        assert rule.observe(1, 0.9) is None
        assert rule.observe(2, None) is None
        assert rule.observe(3, 0.2) == stop


def test_seven_tenths_reached_by_counting_is_seven_tenths() -> None:
    assert DepthPruning.of(SERVER, 1).observe(1, 0.1 * 7) == "agreement"
    assert DepthPruning.of(SERVER, 1).observe(1, 1 - 0.3) == "agreement"
    assert DepthPruning(1, 0.7, inclusive=False).observe(1, 0.1 * 7) is None


def test_identical_steps_stop_the_origin_profile_one_step_after_t_min() -> None:
    rule = DepthPruning.of(ORIGIN, 2)
    assert [rule.observe(t, 0.4, ["x", "x"]) for t in (1, 2, 3)] == [None, None, "identical_steps"]
    assert DepthPruning.of(SERVER, 2).observe(3, 0.4, ["x", "x"]) is None


@pytest.mark.parametrize("change", [{"tau1": 0.0}, {"delta": 0.0}, {"delta": 1.1}, {"clusters": 0}, {"width_k": -1.0}])
def test_a_profile_out_of_range_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        replace(SERVER, **change)  # type: ignore[arg-type]
