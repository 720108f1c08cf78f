"""The adaptive policy as a function of numbers: limits, monotonicity, and optimality against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.speculative.acceptance import block_efficiency
from strategies.speculative.acceptance_estimate import LEVELS, WIDTH, Estimate
from strategies.speculative.auto import (
    HEADS,
    LENGTHS,
    MARGIN,
    NGRAM,
    OFF,
    Choice,
    Load,
    Menu,
    Shape,
    choose,
    extra_seconds,
    shapes_of,
)
from strategies.speculative.step_cost import CostCurve, StepCosts

MENU = Menu(shapes_of(["draft", NGRAM], 64))


def believed(first: float, other: float = 0.0) -> Estimate:
    return Estimate(np.full(LEVELS, first), np.full(WIDTH - 1, other))


def costs(target_slope: float, draft: float, verify: float = 0.0, fixed: float = 1.0) -> StepCosts:
    """A target pass costs fixed + target_slope a token, a draft pass `draft` and as much of the slope."""
    made = StepCosts(drafts={"draft": CostCurve()})
    for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096):
        made.target.observe(tokens, fixed + target_slope * tokens)
        made.drafts["draft"].observe(tokens, draft * (1.0 + target_slope * tokens))
        if verify:
            made.verify.observe(tokens, verify * tokens)
    return made


def expected_of(estimates: list[dict[str, Estimate]], levels: int = 100) -> np.ndarray:
    expected = np.ones((len(MENU), len(estimates)))
    for place, by_drafter in enumerate(estimates):
        for drafter, estimate in by_drafter.items():
            which = MENU.of_drafter[drafter]
            expected[which, place] = MENU.expected_tokens(which, estimate, levels)
    return expected


def pick(estimates: list[dict[str, Estimate]], price: StepCosts, load: Load | None = None) -> Choice:
    expected = expected_of(estimates)
    return choose(MENU, expected, np.zeros_like(expected), load or Load(len(estimates), len(estimates)), price)


def shape_of(choice: Choice, place: int = 0) -> Shape | None:
    return None if choice.chosen[place] == OFF else MENU.shapes[choice.chosen[place]]


def test_shapes_are_within_the_budget_and_look_up_drafts_chains() -> None:
    for most in (1, 3, 10, 64):
        shapes = shapes_of(["a", NGRAM], most)
        assert len(set(shapes)) == len(shapes)
        assert all(shape.nodes <= most for shape in shapes)
        assert all(set(shape.branching) == {1} for shape in shapes if shape.drafter == NGRAM)
    assert Shape("a", (3, 2, 1)).widths == (3, 6, 6)
    assert str(Shape("a", (3, 2, 1))) == "a 3x2x1"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    first=st.lists(st.floats(0, 1), min_size=LEVELS, max_size=LEVELS),
    others=st.lists(st.floats(0, 1), min_size=WIDTH - 1, max_size=WIDTH - 1),
    levels=st.integers(1, LEVELS),
)
def test_expected_tokens_are_the_block_efficiency(first: list[float], others: list[float], levels: int) -> None:
    """Of the families' acceptances, cut at the levels that a sequence has left."""
    which = np.arange(len(MENU))
    found = MENU.expected_tokens(which, Estimate(np.array(first), np.array(others)), levels)
    for shape, value in zip(MENU.shapes, found, strict=True):
        families = []
        for level, children in enumerate(shape.branching[:levels]):
            refused = 1.0 - first[level]
            for rank in range(1, children):
                refused *= 1.0 - others[rank - 1]
            families.append(1.0 - refused)
        assert value == pytest.approx(block_efficiency(families))


@pytest.mark.parametrize("sequences", [1, 3, 64])
def test_nothing_accepted_is_off(sequences: int) -> None:
    for price in (costs(0.0, 0.0), costs(0.0, 0.5), costs(0.1, 0.1)):
        choice = pick([{"draft": believed(0.0), NGRAM: believed(0.0)}] * sequences, price)
        assert choice.chosen == [OFF] * sequences
        assert choice.rate == choice.plain


def test_everything_accepted_at_a_flat_cost_is_the_longest() -> None:
    for sequences in (1, 8):
        choice = pick([{"draft": believed(1.0)}] * sequences, costs(0.0, 0.0))
        assert shape_of(choice) == Shape("draft", (1,) * max(LENGTHS))
        assert choice.rate == pytest.approx(choice.plain * (max(LENGTHS) + 1))


def test_nothing_is_chosen_before_anything_was_measured() -> None:
    assert pick([{"draft": believed(1.0)}], StepCosts()).chosen == [OFF]


def test_sizes_that_were_never_timed_are_approached_step_by_step() -> None:
    """At most twice the largest pass so far: one trial of a guess must not cost as much as a hundred steps."""
    price = StepCosts(drafts={"draft": CostCurve()})
    price.target.observe(1, 1.0)
    price.drafts["draft"].observe(1, 0.01)
    nodes = []
    for _ in range(4):
        shape = shape_of(pick([{"draft": believed(1.0)}], price))
        assert shape is not None
        nodes.append(shape.nodes)
        price.target.observe(1 + shape.nodes, 1.0)
    assert nodes == [3, 8, 16, 16]


def test_a_wide_tree_where_the_second_try_is_often_right() -> None:
    shape = shape_of(pick([{"draft": believed(0.4, 0.7)}], costs(0.001, 0.2)))
    assert shape is not None
    assert shape.branching[0] > 1


def test_a_full_batch_turns_it_off() -> None:
    """The same drafter that pays alone doesn't where every token costs as much as the next."""
    estimate = [{"draft": believed(0.6)}]
    price = costs(0.25, 0.1)
    nodes = []
    for sequences in (1, 4, 16, 64):
        shape = shape_of(pick(estimate * sequences, price))
        nodes.append(0 if shape is None else shape.nodes)
    assert nodes[0] > 0
    assert nodes[-1] == 0
    assert nodes == sorted(nodes, reverse=True)


def test_neighbours_that_only_wait_count() -> None:
    """One sequence's draft delays 63 others, which get nothing for it."""
    estimates = [{"draft": believed(0.9)}]
    price = costs(0.0, 0.1)
    assert pick(estimates, price).chosen != [OFF]
    assert pick(estimates, price, Load(64, 64)).chosen == [OFF]
    assert pick([{NGRAM: believed(0.9)}], price, Load(64, 64)).chosen != [OFF]


def test_only_those_who_gain_speculate_and_each_by_its_drafter() -> None:
    estimates = [{"draft": believed(0.95)}, {"draft": believed(0.01)}, {NGRAM: believed(0.95)}, {}]
    choice = pick(estimates, costs(0.02, 0.05))
    shapes = [shape_of(choice, place) for place in range(4)]
    assert [shape and shape.drafter for shape in shapes] == ["draft", None, NGRAM, None]


def test_a_history_to_catch_up_with_counts() -> None:
    expected = expected_of([{"draft": believed(0.8)}])
    load, price = Load(1, 1), costs(0.01, 0.2)
    assert choose(MENU, expected, np.zeros_like(expected), load, price).chosen != [OFF]
    assert choose(MENU, expected, np.full_like(expected, 2000.0), load, price).chosen == [OFF]


rates = st.floats(0.0, 0.99)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    acceptances=st.lists(st.tuples(rates, rates, rates), min_size=1, max_size=4),
    slope=st.floats(0.0, 0.5),
    draft=st.floats(0.0, 1.0),
    verify=st.floats(0.0, 0.1),
    others=st.integers(0, 40),
)
def test_the_choice_is_as_good_as_the_best_common_shape(
    acceptances: list[tuple[float, float, float]], slope: float, draft: float, verify: float, others: int
) -> None:
    """Against every shape for every subset of the sequences; never worse than plain decoding."""
    estimates = [{"draft": believed(a, b), NGRAM: believed(c)} for a, b, c in acceptances]
    price, load = costs(slope, draft, verify), Load(len(estimates) + others, len(estimates) + others)
    choice, expected = pick(estimates, price, load), expected_of(estimates)
    best = 0.0
    for c, shape in enumerate(MENU.shapes):
        for size in range(1, len(estimates) + 1):
            for subset in itertools.combinations(range(len(estimates)), size):
                draft_seconds = 0.0
                if shape.drafter != NGRAM:
                    forwards = [1, *shape.widths[:-1]]
                    draft_seconds = sum(
                        float(price.draft("draft", np.array(float(size * tokens)))) for tokens in forwards
                    )
                seconds = float(price.target(np.array(float(load.tokens + size * shape.nodes)))) + draft_seconds
                seconds += float(price.verification(np.array(float(size))))
                outputs = load.outputs + sum(expected[c, place] - 1 for place in subset)
                best = max(best, outputs / seconds)
    assert choice.rate >= choice.plain
    if best >= choice.plain * (1 + MARGIN):
        assert choice.rate >= best * (1 - 1e-9)
    else:
        assert choice.chosen == [OFF] * len(estimates)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(first=rates, more=rates, slope=st.floats(0.0, 0.3), draft=st.floats(0.0, 0.8), dearer=st.floats(1.0, 4.0))
def test_monotone(first: float, more: float, slope: float, draft: float, dearer: float) -> None:
    """More acceptance never lowers the rate; a dearer draft never raises it."""
    low, high = sorted((first, more))
    price = costs(slope, draft)
    one, two = pick([{"draft": believed(low)}], price), pick([{"draft": believed(high)}], price)
    # A margin is asked for, so a rate within it of plain decoding may be given up.
    assert two.rate >= one.rate / (1 + MARGIN) - 1e-12
    three = pick([{"draft": believed(high)}], costs(slope, draft * dearer))
    assert three.rate <= two.rate * (1 + MARGIN) + 1e-12


def test_extra_seconds_of_a_probe() -> None:
    price = costs(0.1, 0.5, verify=0.25)
    shape = MENU.shapes.index(Shape("draft", (1, 1)))
    # Two draft forwards of one token, 0.5 (1 + 0.1) each; two more target tokens; one more tree.
    assert extra_seconds(MENU, shape, 0.0, Load(4, 4), price) == pytest.approx(1.1 + 0.2 + 0.25)
    assert extra_seconds(MENU, shape, 10.0, Load(4, 4), price) > 1.55
    assert len(HEADS) > 1
