"""MCTS, depth-first and step-beam searches, simulated without a model; predictive decoding's choice."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.search.predictive import (
    Rollout,
    first_line_distribution,
    predictive_choice,
    predictive_value,
    recycled,
)
from strategies.search.step_beam_places import StepBeamPlaces, keep_best
from strategies.search.tot import DepthFirstTree
from strategies.search.uct import MctsTree, SelectionRule, puct, uct

SEARCHED = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.mark.parametrize("rule", ["uct", "puct"])
@SEARCHED
@given(seed=st.integers(0, 10**6), root=st.integers(1, 8), width=st.integers(1, 3))
def test_mcts_statistics_are_means_over_subtrees(rule: SelectionRule, seed: int, root: int, width: int) -> None:
    noise = random.Random(seed)
    tree = MctsTree(root, width, 24, rule=rule)
    while (node := tree.select()) is not None:
        assert not node.terminal
        assert not node.children
        count = tree.width(node)
        if noise.random() < 0.1:
            count = 0  # a dead end
        tree.expand(node, [noise.random() for _ in range(count)], [noise.random() < 0.2 for _ in range(count)])
    assert tree.expanded <= 24
    subtree = {node.number: [] if node.parent is None else [node.value] for node in tree.nodes}
    for node in reversed(tree.nodes):
        if node.parent is not None:
            subtree[node.parent.number] += subtree[node.number]
    for node in tree.nodes:
        values = subtree[node.number]
        assert node.visits == len(values)
        assert node.q == pytest.approx(sum(values) / len(values) if values else 0.0)
        if node.children:
            assert node.closed is all(child.closed for child in node.children)
    assert all(node.closed for node in tree.finished)
    assert tree.root.closed or tree.expanded == 24


def test_mcts_descends_to_the_largest_uct_and_explores() -> None:
    tree = MctsTree(2, 2, 100)
    assert tree.select() is tree.root
    good, poor = tree.expand(tree.root, [0.9, 0.1], [False, False])
    assert tree.select() is good
    tree.expand(good, [0.0, 0.0], [False, False])  # Q of good falls to 0.3, N rises to 3
    assert uct(good.q, 4, good.visits) < uct(poor.q, 4, poor.visits)
    assert tree.select() is poor


def test_mcts_passes_by_what_is_finished() -> None:
    tree = MctsTree(2, 1, 100)
    done, other = tree.expand(tree.root, [1.0, 0.0], [True, False])
    assert done.closed
    assert tree.select() is other
    tree.expand(other, [0.5], [True])
    assert tree.select() is None
    assert [node.number for node in tree.finished] == [1, 3]
    with pytest.raises(ValueError, match="again"):
        tree.expand(other, [0.5], [True])


def test_priors_steer_puct() -> None:
    tree = MctsTree(2, 2, 10, c=2.0, rule="puct")
    _, likely = tree.expand(tree.root, [0.5, 0.5], [False, False], [0.1, 0.9])
    assert tree.select() is likely
    assert puct(0.5, 0.9, 2, 1, 2.0) == pytest.approx(0.5 + 2 * 0.9 * math.sqrt(2) / 2)


def test_mcts_refuses_a_value_that_is_not_a_number() -> None:
    tree = MctsTree()
    with pytest.raises(ValueError, match="not a number"):
        tree.expand(tree.root, [math.nan], [False])


def test_depth_first_prunes_goes_deeper_and_comes_back() -> None:
    tree = DepthFirstTree(threshold=0.5, max_children=2)
    root = tree.current
    a = tree.add(0.4, terminal=False)
    assert a.pruned
    assert tree.current is root
    b = tree.add(0.5, terminal=False)
    assert tree.current is b
    tree.add(0.1, terminal=False)
    tree.add(0.49, terminal=True)  # finished, but pruned
    assert tree.current is None  # both children of b and of the root are spent
    assert tree.solutions == []
    best = tree.best()
    assert best is not None
    assert (best.terminal, best.value) == (True, 0.49)
    with pytest.raises(ValueError, match="ended"):
        tree.add(0.9, terminal=False)


@SEARCHED
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5))
def test_depth_first_ends_at_the_first_solution_or_within_its_bounds(seed: int, children: int, depth: int) -> None:
    noise = random.Random(seed)
    tree = DepthFirstTree(0.4, children, max_depth=depth, max_nodes=60)
    while tree.current is not None:
        parent = tree.current
        child = tree.add(noise.random(), terminal=noise.random() < 0.1)
        assert parent.spent <= children
        assert not parent.pruned
        assert child.depth <= depth
    assert len(tree.nodes) <= 61
    good = [node for node in tree.nodes if node.terminal and not node.pruned]
    assert good == tree.solutions
    assert len(good) <= 1
    assert tree.best() is not None


def test_a_search_cut_early_answers_with_the_deepest_open_node() -> None:
    tree = DepthFirstTree()
    assert tree.best() is None
    tree.add(0.9, terminal=False)
    deep = tree.add(0.6, terminal=False)
    tree.add(0.2, terminal=False)
    assert tree.best() is deep


def test_step_beam_keeps_the_best_and_finished_solutions_keep_their_place() -> None:
    beam = StepBeamPlaces(beams=6, samples=2)
    assert beam.width == 3
    live, ended = beam.keep([0.1, 0.9, 0.5, 0.5, 0.7, 0.2], [False, True, False, False, False, False], [0] * 6)
    assert (live, ended) == ([4, 2], [1])
    assert beam.width == 2
    assert beam.keep([0.3, 0.4], [True, True], [0, 0]) == ([], [1, 0])
    assert beam.width == 0


def test_independent_groups_do_not_compete() -> None:
    values, groups = [0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]
    assert StepBeamPlaces(4, 2).keep(values, [False] * 4, groups)[0] == [0, 1]
    assert StepBeamPlaces(4, 2, independent=True).keep(values, [False] * 4, groups)[0] == [0, 2]


def test_step_beam_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple"):
        StepBeamPlaces(5, 2)
    with pytest.raises(ValueError, match="equally long"):
        StepBeamPlaces(4, 2).keep([0.1], [False, True], [0])


def test_keep_best() -> None:
    assert keep_best([0.2, 0.9, 0.2 + 1e-9, 0.5], 3) == [1, 3, 0]
    assert keep_best([0.2], 0) == []
    with pytest.raises(ValueError, match="not a number"):
        keep_best([math.nan], 1)


def test_predictive_value_is_a_mean_over_step_and_foresight() -> None:
    assert predictive_value(-2.0, 4, -6.0, 12) == pytest.approx(-0.5)
    assert predictive_value(0.0, 0, 0.0, 0) is None


def test_predictive_choice_follows_the_boltzmann_law() -> None:
    """False-alarm rate: 3 comparisons at 6 standard errors, below 1e-8."""
    values = [-0.2, None, -0.3, -0.25]
    weights = [math.exp(v / 0.1) if v is not None else 0.0 for v in values]
    counts = [0] * 4
    draws = 6000
    for u in np.random.default_rng(3).uniform(1e-9, 1 - 1e-9, (draws, 4)):
        counts[predictive_choice(values, u.tolist())] += 1
    assert counts[1] == 0
    for count, weight in zip(counts, weights, strict=True):
        p = weight / sum(weights)
        assert abs(count / draws - p) <= 6 * math.sqrt(p * (1 - p) / draws)


def test_predictive_choice_without_values_is_uniform_and_without_candidates_an_error() -> None:
    assert predictive_choice([None, math.nan], [0.1, 0.9]) == 1
    with pytest.raises(ValueError, match="no candidate"):
        predictive_choice([], [])


def test_equal_first_lines_pool_their_weights_and_old_rollouts_are_recycled() -> None:
    rollouts = [
        Rollout(("a", "b"), -2.0, 10),
        Rollout(("a", "c"), -2.0, 10),
        Rollout(("d",), -2.0, 10),
        Rollout(("a",), -0.1, 10),
    ]
    lines, p = first_line_distribution(rollouts[:3], ())
    assert lines == ["a", "d"]
    assert p == pytest.approx([2 / 3, 1 / 3])
    assert recycled(rollouts, ("a",)) == [rollouts[0], rollouts[1], rollouts[3]]
    lines, p = first_line_distribution(rollouts, ("a",))
    assert lines == ["b", "c"]
    assert p == pytest.approx([0.5, 0.5])
    assert first_line_distribution(rollouts, ("x",)) == ([], [])
    assert Rollout((), 0.0, 0).value == 0.0
