"""Exact theory against enumeration, identities and simulation."""

import math

import pytest
import torch
from exact_laws import log_of, target_rows, trees
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.speculative.acceptance import (
    block_efficiency,
    chain_acceptance,
    inclusion_probabilities,
    k_seq_acceptance,
    memory_bound_speedup,
    node_reach,
    target_matching_acceptance,
    tree_block_efficiency,
    with_replacement_by_try,
    without_replacement_by_try,
)
from strategies.speculative.chain import Chain
from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.noise import RoundNoise
from strategies.speculative.rejection import target_matching, with_replacement, without_replacement
from strategies.speculative.spectr import k_seq
from strategies.speculative.verify import verify

P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


P3 = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
Q3 = torch.tensor([0.15, 0.25, 0.6], dtype=torch.float64)


def test_the_specs_samples() -> None:
    assert sum(without_replacement_by_try(P, Q, 2)) == pytest.approx(0.764286, abs=5e-7)
    assert sum(with_replacement_by_try(P, Q, 2)) == pytest.approx(0.72, abs=1e-12)
    assert k_seq_acceptance(P, Q, 2) == pytest.approx(0.75, abs=1e-12)
    assert chain_acceptance(P, Q) == pytest.approx(0.6, abs=1e-12)


distributions = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1.0)), min_size=4, max_size=4).filter(any)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(p=distributions, q=distributions, draws=st.integers(1, 3))
def test_order_of_the_methods(p: list[float], q: list[float], draws: int) -> None:
    """Without replacement accepts at least as much as with it, and as target matching; every try adds."""
    p_row, q_row = (torch.tensor(x, dtype=torch.float64) / sum(x) for x in (p, q))
    without = without_replacement_by_try(p_row, q_row, draws)
    replaced = with_replacement_by_try(p_row, q_row, draws)
    assert without[0] == pytest.approx(chain_acceptance(p_row, q_row), abs=1e-12)
    assert all(value >= -1e-15 for value in without + replaced)
    assert sum(without) >= sum(replaced) - 1e-9
    assert sum(without) >= target_matching_acceptance(p_row, q_row, draws) - 1e-9
    assert sum(without) <= 1 + 1e-12
    assert k_seq_acceptance(p_row, q_row, draws) >= chain_acceptance(p_row, q_row) - 1e-9


def test_two_tokens_two_draws_accept_always() -> None:
    p, q = (torch.tensor(x, dtype=torch.float64) for x in ([0.99, 0.01], [0.01, 0.99]))
    assert sum(without_replacement_by_try(p, q, 2)) == pytest.approx(1.0, abs=1e-12)
    assert sum(with_replacement_by_try(p, q, 2)) == pytest.approx(0.0298, abs=1e-12)


def test_enumeration_that_would_be_too_large_is_refused() -> None:
    p = torch.full((3000,), 1 / 3000, dtype=torch.float64)
    q = torch.zeros(3000, dtype=torch.float64)
    q[0] = 1.0
    with pytest.raises(ValueError, match="given_draws"):
        without_replacement_by_try(p, q, 3)
    assert len(without_replacement_by_try(p, q, 1)) == 1


def test_inclusion() -> None:
    assert inclusion_probabilities(P, 1).tolist() == pytest.approx(P.tolist())
    assert float(inclusion_probabilities(P, 3).sum()) == pytest.approx(3.0)
    assert inclusion_probabilities(torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64), 3).tolist() == [1.0, 0.0, 1.0]


def fixed(row: torch.Tensor):
    """A model without memory."""
    return lambda path: row.tolist()


@pytest.mark.parametrize(
    ("rule", "replacement", "shape", "levels"),
    [
        (without_replacement, False, (1, 1), [chain_acceptance(P3, Q3)] * 2),
        (without_replacement, False, (2, 1), [sum(without_replacement_by_try(P3, Q3, 2)), chain_acceptance(P3, Q3)]),
        (without_replacement, False, (2, 2), [sum(without_replacement_by_try(P3, Q3, 2))] * 2),
        (with_replacement, True, (2,), [sum(with_replacement_by_try(P3, Q3, 2))]),
        (k_seq, True, (3,), [k_seq_acceptance(P3, Q3, 3)]),
        (target_matching, False, (2,), [target_matching_acceptance(P3, Q3, 2)]),
    ],
)
def test_average_over_drawn_trees_is_the_closed_form(rule, replacement, shape, levels) -> None:
    """Given memoryless models the levels' acceptances multiply."""
    total = 0.0
    for tree, mass in trees(fixed(P3), shape, replacement=replacement):
        total += mass * tree_block_efficiency(rule, tree, target_rows(tree, fixed(Q3)))
    assert total == pytest.approx(block_efficiency(levels), abs=1e-12)


def test_block_efficiency() -> None:
    assert block_efficiency([]) == 1.0
    assert block_efficiency([1.0] * 4) == 5.0
    assert block_efficiency([0.7] * 5) == pytest.approx((1 - 0.7**6) / 0.3)
    assert memory_bound_speedup(3.0, 4, 0.25) == 1.5


def test_reach_and_efficiency_of_one_tree_against_verification() -> None:
    """2,000 rounds on one tree with an ending token: 5.5 standard errors, a false alarm of 4e-8."""
    tree = DraftTree(0, ends={2})
    for parent, token in [(0, 0), (0, 2), (1, 2), (1, 1)]:
        tree.add(parent, token)
    for node in (0, 1):
        tree.draft_logprobs[node] = P.log()
    rows = torch.stack([Q.log(), P.flip(0).log().roll(1), *[Q.log()] * 3])
    reach = node_reach(without_replacement, tree, rows)
    expected = tree_block_efficiency(without_replacement, tree, rows)
    assert expected == pytest.approx(sum(reach) - reach[2] - reach[3])
    rounds = 2_000
    verdicts = verify(
        without_replacement, [tree] * rounds, [rows] * rounds, [RoundNoise(seed, (0,), 1) for seed in range(rounds)]
    )
    for node in range(1, 5):
        observed = sum(node in verdict.path for verdict in verdicts) / rounds
        assert observed == pytest.approx(reach[node], abs=5.5 * math.sqrt(reach[node] * (1 - reach[node]) / rounds))
    mean = sum(len(verdict.tokens) for verdict in verdicts) / rounds
    assert mean == pytest.approx(expected, abs=5.5 * 1.0 / math.sqrt(rounds))


def test_a_chain_of_equal_models_yields_length_plus_one() -> None:
    method = Chain(3)
    tree = method.new_tree(0)
    for _ in range(3):
        method.propose(tree, log_of([P.tolist()]), RoundNoise(0, (0,), 1))
    assert tree_block_efficiency(method.rule, tree, log_of([P.tolist()] * 4)) == pytest.approx(4.0)
