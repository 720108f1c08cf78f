"""Drawing without replacement by Gumbel-top-k, and the RSD-C tree."""

import json
from pathlib import Path

import pytest
import torch
from exact_laws import log_of, ordered_draws, p_value

from strategies.randomness import Purpose
from strategies.speculative.gumbel_top_k import ConstantBranching, draft_gumbel, gumbel_top_k
from strategies.speculative.noise import RoundNoise

TOY = json.loads((Path(__file__).parent / "rsd.json").read_text(encoding="utf-8"))["gumbel_topk"]
SMALLEST_P = 1e-7  # four chi-square tests in this file
DRAWS = 60_000


def test_the_k_largest_in_decreasing_order() -> None:
    gumbel = torch.tensor([[0.0, 5.0, -1.0, 2.0]], dtype=torch.float64)
    assert gumbel_top_k(torch.zeros(1, 4), gumbel, 3).tolist() == [[1, 3, 0]]


@pytest.mark.parametrize("k", [2, 3, 7])
def test_a_support_smaller_than_k_is_padded(k: int) -> None:
    tokens = gumbel_top_k(log_of([[0.0, 0.9, 0.0, 0.1]]), torch.zeros(1, 4, dtype=torch.float64), k)
    assert tokens.tolist() == [[1, 3, -1, -1][: min(k, 4)]]


def test_ordered_pairs_and_inclusion() -> None:
    """Noise as the engine keys it: one key per position."""
    p = torch.tensor(TOY["p"], dtype=torch.float64)
    nodes = range(DRAWS)
    rows = p.log().expand(DRAWS, -1)
    pairs = gumbel_top_k(rows, draft_gumbel(RoundNoise(1, (0,), 9), nodes, torch.arange(5)), TOY["k"])
    counts = torch.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25)
    expected = torch.zeros(25, dtype=torch.float64)
    for pair, mass in TOY["ordered_pair_prob"].items():
        first, second = map(int, pair.split(","))
        expected[first * 5 + second] = mass
    assert int(counts[expected == 0].sum()) == 0
    assert p_value(counts, expected) > SMALLEST_P
    included = torch.stack([(pairs == token).any(-1).double().mean() for token in range(5)])
    assert included.tolist() == pytest.approx(TOY["inclusion"], abs=5.5 * 0.5 / DRAWS**0.5)


def test_all_orders_when_everything_is_drawn() -> None:
    p = [0.5, 0.3, 0.2]
    rows = log_of(p).expand(DRAWS, -1)
    drawn = gumbel_top_k(rows, draft_gumbel(RoundNoise(2, (0,), 9), range(DRAWS), torch.arange(3)), 3)
    orders = dict(ordered_draws(p, 3))
    counts = torch.tensor([int((drawn == torch.tensor(order)).all(-1).sum()) for order in orders])
    assert int(counts.sum()) == DRAWS
    assert p_value(counts, torch.tensor(list(orders.values()))) > SMALLEST_P


def test_noise_of_a_token_does_not_depend_on_the_others() -> None:
    noise = RoundNoise(3, (0,), 4)
    full = draft_gumbel(noise, [2, 5], torch.arange(6))
    assert torch.equal(draft_gumbel(noise, [2, 5], torch.tensor([1, 4])), full[:, [1, 4]])
    assert torch.equal(draft_gumbel(noise, [5], torch.tensor([3])), full[1:, 3:4])


def test_noise_differs_by_seed_branch_round_purpose_node_and_index() -> None:
    index = torch.arange(3)
    draws = [
        noise.uniforms(purpose, [0, 1], index)
        for noise in (RoundNoise(1, (0,), 5), RoundNoise(2, (0,), 5), RoundNoise(1, (1,), 5), RoundNoise(1, (0,), 6))
        for purpose in (Purpose.DRAFT, Purpose.ACCEPT, Purpose.RESIDUAL)
    ]
    values = torch.cat(draws).flatten().tolist()
    assert len(set(values)) == len(values) == 4 * 3 * 2 * 3
    assert all(0 < value < 1 for value in values)
    with pytest.raises(KeyError):
        RoundNoise(1, (0,), 5).uniforms(Purpose.SAMPLE, [0], index)


def test_rsd_c_grows_level_by_level_and_stops_at_ends() -> None:
    method = ConstantBranching((3, 2))
    tree = method.new_tree(9, frozenset({1}))
    assert method.length == 2
    assert tree.frontier() == [0]
    method.propose(tree, log_of([[0.0, 0.5, 0.3, 0.2]]), RoundNoise(0, (0,), 3))
    assert sorted(tree.tokens[1:]) == [1, 2, 3]
    assert [tree.tokens[node] for node in tree.frontier()] == [t for t in tree.tokens[1:] if t != 1]
    method.propose(tree, log_of([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]), RoundNoise(0, (0,), 3))
    families = [[tree.tokens[child] for child in tree.tries[node]] for node in tree.level(1)]
    assert sorted(map(len, families)) == [0, 1, 2]  # the end; a support of one; two drawn
    assert families[tree.tokens[1:4].index(1)] == []
    assert sum(map(len, families)) == len(tree) - 3
    child = tree.tries[0][0]
    assert tree.logprobs[child] == pytest.approx(float(log_of([0.0, 0.5, 0.3, 0.2])[tree.tokens[child]]))


def test_temperature_zero_takes_the_most_likely() -> None:
    tree = ConstantBranching((2,)).new_tree(9)
    ConstantBranching((2,)).propose(tree, torch.tensor([[0.1, 3.0, 2.0, -1.0]]), None)
    assert tree.tokens[1:] == [1, 2]
