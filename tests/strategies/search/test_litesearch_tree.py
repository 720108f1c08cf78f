"""LiteSearch: budgets, the tree's state, its stops and its answers, simulated without a model."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.search.litesearch_answer import FinalAnswer, Solution, final_answer, soft_vote
from strategies.search.litesearch_budget import LiteSearchRule, child_budget
from strategies.search.litesearch_tree import (
    LiteSearchOptions,
    LiteSearchTree,
    affordable,
    threshold,
    uncalibrated,
)

SEARCHED = settings(max_examples=60, deadline=None, derandomize=True)
RULES = pytest.mark.parametrize("rule", ["paper", "released"])
VALUE = st.floats(0, 1)


@RULES
@SEARCHED
@given(v=VALUE, w=VALUE, depth=st.integers(1, 20), epsilon=st.floats(0.5, 0.99), cap=st.integers(1, 12))
def test_budgets_fall_with_value_and_depth_and_stay_in_range(
    rule: LiteSearchRule, v: float, w: float, depth: int, epsilon: float, cap: int
) -> None:
    low, high = sorted((v, w))
    budget = child_budget(rule, low, depth, epsilon, cap, None)
    assert (0 if rule == "released" else 1) <= budget <= cap
    if low > 0 or rule == "paper":
        assert child_budget(rule, high, depth, epsilon, cap, None) <= budget
    assert child_budget(rule, low, depth + 1, epsilon, cap, None) <= budget


@SEARCHED
@given(v=st.floats(0.01, 0.99), epsilon=st.floats(0.5, 0.99))
def test_the_papers_budget_at_the_root_is_the_fewest_tries_that_reach_epsilon(v: float, epsilon: float) -> None:
    budget = child_budget("paper", v, 1, epsilon, 10_000, None)
    assert 1 - (1 - v) ** budget >= epsilon - 1e-6
    assert budget == 1 or 1 - (1 - v) ** (budget - 1) < epsilon + 1e-6


def test_a_certain_or_hopeless_value_needs_no_logarithm_of_zero() -> None:
    assert child_budget("paper", 1.0, 1, 0.9, 10, 1.0) == 1
    assert child_budget("paper", 0.0, 3, 0.9, 10, 0.0) == 10
    assert child_budget("released", 1.0, 1, 0.9, 10, 1.0) == 2


@pytest.mark.parametrize(
    ("v", "depth", "cap"), [(1.2, 1, 10), (-0.1, 1, 10), (math.nan, 1, 10), (0.5, 0, 10), (0.5, 1, 0)]
)
def test_budgets_refuse_what_is_no_probability(v: float, depth: int, cap: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        child_budget("paper", v, depth, 0.9, cap, None)


def run(options: LiteSearchOptions, seed: int, greedy_value: float = 0.5) -> tuple[LiteSearchTree, str]:
    """A whole search over random values; steps 4 and deeper may end a solution."""
    noise = random.Random(seed)
    tree = LiteSearchTree(options, greedy_value, 4, noise.random())
    while (reason := tree.stop_reason()) is None:
        node = tree.select()
        assert node is not None
        before = node.spent
        plan = tree.begin_expansion(node)
        assert plan[0] is (before == 0)
        assert not any(plan[1:])
        for _ in plan:
            assert node.spent < node.budget
            if noise.random() < 0.1:
                tree.spend(node)  # merged with an equal sibling
            else:
                terminal = node.steps >= 3 and noise.random() < 0.5
                tree.add(node, noise.random(), terminal=terminal, bad=noise.random() < 0.1)
        if options.expansion == "batch":
            assert node.left == 0
    return tree, reason


@RULES
@pytest.mark.parametrize("expansion", ["incremental", "batch"])
@SEARCHED
@given(seed=st.integers(0, 10**6), cap=st.integers(1, 6))
def test_a_search_keeps_its_bounds_and_ends(rule: LiteSearchRule, expansion: str, seed: int, cap: int) -> None:
    options = LiteSearchOptions(rule=rule, expansion=expansion, cap=cap, max_iterations=40)  # type: ignore[arg-type]
    tree, reason = run(options, seed)
    children = [sum(child.parent is node for child in tree.nodes) for node in tree.nodes]
    assert all(count <= node.spent <= node.budget for count, node in zip(children, tree.nodes, strict=True))
    assert len(tree.nodes) <= 1 + options.max_iterations * cap
    assert tree.iteration <= options.max_iterations
    assert [node.number for node in tree.nodes] == list(range(len(tree.nodes)))
    if reason == "threshold":
        assert max(node.value for node in tree.finished) > 0.8
    if rule == "released":
        assert len(tree.finished) < options.max_finished + cap
    again, why = run(options, seed)
    assert (why, [n.value for n in again.nodes]) == (reason, [n.value for n in tree.nodes])


def test_with_one_child_each_the_search_is_the_greedy_path() -> None:
    tree = LiteSearchTree(LiteSearchOptions(rule="paper", expansion="incremental", cap=1), 0.5, 3, 0.5)
    node = tree.root
    for step in range(3):
        assert tree.select() is node
        assert tree.begin_expansion(node) == [True]
        node = tree.add(node, 0.4, terminal=step == 2)
    assert tree.stop_reason() == "no_candidate"
    assert [n.steps for n in tree.nodes] == [0, 1, 2, 3]


@RULES
@pytest.mark.parametrize("value", [0.0, 0.99, 1.0])
def test_the_root_gets_two_children_at_least(rule: LiteSearchRule, value: float) -> None:
    assert LiteSearchTree(LiteSearchOptions(rule=rule), 0.99, 3, value).root.budget >= 2
    assert LiteSearchTree(LiteSearchOptions(rule=rule, cap=1), 0.99, 3, value).root.budget == 1


def test_a_confident_greedy_solution_can_be_kept_from_starving_the_search() -> None:
    options = LiteSearchOptions(rule="paper")
    starved = LiteSearchTree(options, 1.0, 3, 0.3)
    capped = LiteSearchTree(replace(options, greedy_value_cap=0.5), 1.0, 3, 0.3)
    assert capped.root.budget > starved.root.budget
    assert LiteSearchTree(replace(options, calibrate=False), 1.0, 3, 0.3).root.budget == 7


def test_ablations_of_the_budget() -> None:
    options = LiteSearchOptions(rule="paper", calibrate=False)
    child = {}
    for name, variant in {
        "full": options,
        "no depth": replace(options, depth_penalty=False),
        "static": replace(options, static_budget=True),
    }.items():
        tree = LiteSearchTree(variant, 0.5, 3, 0.5)
        child[name] = tree.add(tree.root, 0.5, terminal=False).budget
    assert child == {"full": 2, "no depth": 4, "static": 10}


def test_a_bad_step_keeps_its_budget_and_comes_last() -> None:
    tree = LiteSearchTree(LiteSearchOptions(rule="paper"), 0.5, 3, 0.4)
    bad = tree.add(tree.root, 0.9, terminal=False, bad=True)
    assert (bad.value, bad.budget > 0) == (0.0, True)
    assert tree.select() is tree.root


def test_values_that_differ_in_noise_alone_tie() -> None:
    tree = LiteSearchTree(LiteSearchOptions(rule="paper"), 0.5, 3, 0.4)
    first = tree.add(tree.root, 0.6, terminal=False)
    tree.add(tree.root, 0.6 + 1e-9, terminal=False)
    assert tree.select() is first


def test_the_theta_stop_needs_probabilities() -> None:
    options = uncalibrated(LiteSearchOptions())
    assert threshold(options, 0.9) == math.inf
    tree = LiteSearchTree(options, 1.0, 3, 1.0)
    assert tree.root.value == 1.0  # ranking keeps what was found; budgets are made of 0.95
    assert tree.root.budget == LiteSearchTree(options, 0.95, 3, 0.95).root.budget
    assert tree.add(tree.root, 0.0, terminal=False).budget > 0
    tree.add(tree.root, 1.0, terminal=True)
    assert tree.stop_reason() != "threshold"


def test_a_value_that_is_not_a_number_is_refused() -> None:
    tree = LiteSearchTree(LiteSearchOptions(), 0.5, 3, 0.4)
    with pytest.raises(ValueError, match="not a number"):
        tree.add(tree.root, math.nan, terminal=False)


def test_a_closed_node_is_not_expanded() -> None:
    tree = LiteSearchTree(LiteSearchOptions(cap=1), 0.5, 3, 0.4)
    leaf = tree.add(tree.root, 0.4, terminal=True)
    for node in (leaf, tree.root):
        with pytest.raises(ValueError, match="budget"):
            tree.begin_expansion(node)
    with pytest.raises(ValueError, match="budget"):
        tree.add(tree.root, 0.4, terminal=False)


def test_a_batch_is_cut_to_what_the_tokens_pay_for() -> None:
    assert affordable(8, None, 30.0) == 8
    assert affordable(8, 61, 30.0) == 3
    assert affordable(8, 0, 30.0) == 1
    tree = LiteSearchTree(LiteSearchOptions(static_budget=True), 0.5, 3, 0.4)
    assert tree.begin_expansion(tree.root, tokens_left=61, mean_step_tokens=30.0) == [True, False, False]


FINISHED = [Solution(0.5, "18"), Solution(0.85, "20"), Solution(0.9, "16"), Solution(0.45, "18")]


def test_final_modes() -> None:
    greedy = Solution(0.95, "20")
    assert final_answer("paper", FINISHED, greedy) == FinalAnswer(2)
    assert final_answer("best", FINISHED, greedy) == FinalAnswer("greedy")
    assert final_answer("best", FINISHED, Solution(0.9, "20")) == FinalAnswer(2)
    assert final_answer("first", FINISHED, greedy) == FinalAnswer(1)
    assert final_answer("first", FINISHED[:1], greedy) == FinalAnswer("greedy")
    assert final_answer("vote", FINISHED, Solution(0.1, "18")) == FinalAnswer(0)  # 1.05 for 18, its best member
    assert final_answer("vote", FINISHED, greedy) == FinalAnswer("greedy")  # 1.8 for 20
    assert final_answer("vote_fallback", FINISHED, None) == FinalAnswer(2)
    assert final_answer("vote_fallback", FINISHED, None, alpha=0.95) == FinalAnswer(2, needs_samples=True)


@pytest.mark.parametrize("mode", ["best", "first", "vote", "vote_fallback"])
def test_after_the_greedy_pass_an_answer_always_exists(mode: str) -> None:
    assert final_answer(mode, [], Solution(0.0, None)).source == "greedy"  # type: ignore[arg-type]
    assert final_answer("paper", [], Solution(0.9, "1")).source is None
    assert final_answer(mode, [], None).source is None  # type: ignore[arg-type]


def test_the_fallbacks_vote() -> None:
    assert soft_vote([Solution(0.4, "1"), Solution(0.3, "2"), Solution(0.35, "2"), Solution(0.9, None)]) == 2
    assert soft_vote([Solution(0.4, None)]) is None


@pytest.mark.parametrize("change", [{"cap": 0}, {"epsilon": 1.0}, {"max_iterations": -1}, {"max_finished": 0}])
def test_options_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        replace(LiteSearchOptions(), **change)  # type: ignore[arg-type]
