"""Stochastic beam search: the truncated-Gumbel recursion, the law of the beams, and the RSD-S tree."""

import json
import math
from decimal import Decimal, getcontext
from pathlib import Path

import pytest
import torch
from exact_laws import log_of, p_value
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.speculative.gumbel_top_k import gumbel_top_k
from strategies.speculative.noise import RoundNoise
from strategies.speculative.stochastic_beam import StochasticBeam, condition_on_maximum, expand_beams, log1mexp

TOY = json.loads((Path(__file__).parent / "rsd.json").read_text(encoding="utf-8"))["sbs_toy"]
SMALLEST_P = 1e-7  # four chi-square tests in this file
DRAWS = 150_000
getcontext().prec = 160  # terms down to e^-250 of each other


def standard_gumbel(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -torch.log(-torch.log(torch.rand(shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)))


@pytest.mark.parametrize("x", [-1e-300, -1e-18, -1e-9, -0.3, -0.7, -5.0, -40.0, -700.0])
def test_log1mexp(x: float) -> None:
    expected = (1 - Decimal(x).exp()).ln() if x < -1e-50 else Decimal(-x).ln()
    assert float(log1mexp(torch.tensor(x, dtype=torch.float64))) == pytest.approx(float(expected), rel=1e-14)


def test_log1mexp_at_the_ends() -> None:
    ends = log1mexp(torch.tensor([0.0, -math.inf], dtype=torch.float64))
    assert ends.tolist() == [-math.inf, 0.0]


finite = st.floats(-200, 50).map(lambda x: round(x, 9))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(row=st.lists(finite, min_size=2, max_size=6), maximum=finite)
def test_the_recursion_against_exact_arithmetic(row: list[float], maximum: float) -> None:
    found = condition_on_maximum(torch.tensor(row, dtype=torch.float64), torch.tensor(maximum, dtype=torch.float64))
    top = max(row)
    for value, shifted in zip(row, found.tolist(), strict=True):
        inner = (-Decimal(maximum)).exp() - (-Decimal(top)).exp() + (-Decimal(value)).exp()
        # Where the result is close to 0 the absolute error counts.
        assert shifted == pytest.approx(float(-inner.ln()), rel=1e-13, abs=1e-12)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(row=st.lists(st.one_of(finite, st.just(-math.inf)), min_size=1, max_size=6), maximum=finite)
def test_maximum_order_and_support_are_kept(row: list[float], maximum: float) -> None:
    perturbed = torch.tensor(row, dtype=torch.float64)
    found = condition_on_maximum(perturbed, torch.tensor(maximum, dtype=torch.float64))
    assert not bool(found.isnan().any())
    assert torch.equal(found == -torch.inf, perturbed == -torch.inf)
    if max(row) > -math.inf:
        assert float(found.max()) == maximum
        by_before = found[perturbed.argsort()]
        assert bool((by_before[1:] >= by_before[:-1]).all())


def test_children_next_to_the_maximum_stay_distinct() -> None:
    """1 - exp(d) rounds to 0 for small d; the accurate form keeps the order strict."""
    row = torch.tensor([0.0, -1e-17, -2e-17, -1e-3], dtype=torch.float64)
    found = condition_on_maximum(row, torch.tensor(0.0, dtype=torch.float64))
    assert bool(torch.isfinite(found).all())
    assert found.tolist() == sorted(found.tolist(), reverse=True)


def test_infinities_of_the_plain_formula() -> None:
    """exp(-G) overflows for G < -709."""
    found = condition_on_maximum(
        torch.tensor([-2000.0, -2001.0, -5000.0], dtype=torch.float64), torch.tensor(-1500.0, dtype=torch.float64)
    )
    assert found[0] == -1500
    assert float(found[1]) == pytest.approx(-2000 - math.log(math.e - 1), abs=1e-9)
    assert float(found[2]) == pytest.approx(-5000.0)


def toy_beams(seed: int, root: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(ordered leaves [DRAWS, 2], G of the second level) of the toy, from the recursion itself."""
    width, size = TOY["W"], TOY["V"]
    table = torch.stack([log_of(TOY["table"][str(t)]) for t in range(size)])
    zero = torch.zeros(DRAWS, 1, dtype=torch.float64)
    first = log_of(TOY["table"][""]).expand(DRAWS, 1, size)
    _, tokens, phi, g = expand_beams(first, zero, zero + root, standard_gumbel(DRAWS, 1, size, seed=seed), width)
    beam, leaf, _, g2 = expand_beams(table[tokens], phi, g, standard_gumbel(DRAWS, width, size, seed=seed + 1), width)
    return tokens.gather(-1, beam) * size + leaf, g2


@pytest.mark.parametrize("root", [0.0, -3.0])
def test_beams_are_draws_of_sequences_without_replacement(root: float) -> None:
    """Ordered pairs of leaves, by the law of two draws from all nine sequences; any G of the root gives it."""
    leaves, g = toy_beams(seed=17, root=root)
    assert bool((g[:, 0] == root).all())
    counts = torch.bincount(leaves[:, 0] * 9 + leaves[:, 1], minlength=81)
    expected = torch.zeros(81, dtype=torch.float64)
    for pair, mass in TOY["ordered_pair_prob"].items():
        a, b = map(int, pair.split(","))
        expected[a * 9 + b] = mass
    assert int(counts[expected == 0].sum()) == 0
    assert p_value(counts, expected) > SMALLEST_P
    included = torch.stack([(leaves == leaf).any(-1).double().mean() for leaf in range(9)])
    assert included.tolist() == pytest.approx(TOY["leaf_inclusion"], abs=5.5 * 0.5 / DRAWS**0.5)
    assert torch.bincount(leaves[:, 0], minlength=9).double().div(DRAWS).tolist() == pytest.approx(
        TOY["leaf_joint"], abs=5.5 * 0.5 / DRAWS**0.5
    )


def test_path_log_probabilities_and_padding() -> None:
    """phi is the path's log-probability; a support smaller than the width ends in padding."""
    rows = log_of([[0.7, 0.3, 0.0], [1.0, 0.0, 0.0]])
    phi = log_of([0.6, 0.4])
    beam, token, path, g = expand_beams(rows, phi, phi, standard_gumbel(2, 3, seed=1), 5)
    assert sorted(zip(beam.tolist(), token.tolist(), strict=True)) == [(-1, -1), (-1, -1), (0, 0), (0, 1), (1, 0)]
    joint = {(0, 0): 0.42, (0, 1): 0.18, (1, 0): 0.4}
    for b, t, total in zip(beam.tolist()[:3], token.tolist()[:3], path.tolist()[:3], strict=True):
        assert math.exp(total) == pytest.approx(joint[b, t])
    assert g.tolist()[3:] == [-math.inf] * 2


def test_one_level_is_gumbel_top_k() -> None:
    row = torch.log_softmax(torch.randn(7, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 0)[None]
    zero = torch.zeros(1, dtype=torch.float64)
    for seed in range(50):
        gumbel = standard_gumbel(1, 7, seed=seed)
        assert expand_beams(row, zero, zero, gumbel, 4)[1].tolist() == gumbel_top_k(row, gumbel, 4)[0].tolist()


def grow(method: StochasticBeam, seed: int, ends: frozenset[int] = frozenset(), vocabulary: int = 6):
    tree = method.new_tree(0, ends)
    noise = RoundNoise(seed, (0,), 10)
    for _ in range(method.length):
        generator = torch.Generator().manual_seed(tree.depth)
        nodes = tree.frontier()
        if nodes:
            method.propose(tree, torch.randn(len(nodes), vocabulary, generator=generator), noise)
    return tree


@pytest.mark.parametrize("seed", range(5))
def test_levels_of_the_tree(seed: int) -> None:
    tree = grow(StochasticBeam(width=3, length=4), seed)
    assert [len(tree.level(depth)) for depth in range(5)] == [1, 3, 3, 3, 3]
    for depth in range(1, 5):
        scores = [tree.perturbed[node] for node in tree.level(depth)]
        assert scores == sorted(scores, reverse=True)
    for node, children in enumerate(tree.tries):
        assert children == sorted(children)
        if children:
            # A family's best child has its parent's score.
            assert tree.perturbed[children[0]] == tree.perturbed[node]


def test_an_ended_beam_frees_its_place() -> None:
    method = StochasticBeam(width=3, length=2)
    for seed in range(20):
        tree = grow(method, seed, ends=frozenset({0, 1, 2}))
        frontier = [node for node in tree.level(1) if tree.tokens[node] > 2]
        assert len(tree.level(2)) == (3 if frontier else 0)
        assert all(tree.tokens[tree.parents[node]] > 2 for node in tree.level(2))


def test_width_one_is_a_chain() -> None:
    tree = grow(StochasticBeam(width=1, length=3), 7)
    assert tree.parents == [-1, 0, 1, 2]


def test_temperature_zero_keeps_the_arg_max_path() -> None:
    """By the sums of the gaps to the arg-max: 0, 0; then log(0.5 / 0.4) and log(0.4 / 0.3). The likeliest path is 2, 1,
    and the beam search by probability would drop the arg-max path for it and 2, 2."""
    method = StochasticBeam(width=3, length=2)
    tree = method.new_tree(0)
    method.propose(tree, log_of([[0.5, 0.1, 0.4]]), None)
    assert tree.tokens[1:] == [0, 2, 1]
    method.propose(tree, log_of([[0.1, 0.3, 0.3, 0.3], [0.02, 0.58, 0.4, 0.0], [0.0, 0.0, 0.0, 1.0]]), None)
    # equal gaps: the lower token first; the second family's best has a gap of its own, the third's comes too late
    assert [(tree.parents[n], tree.tokens[n]) for n in tree.level(2)] == [(1, 1), (1, 2), (1, 3)]
    assert [math.exp(tree.logprobs[n]) for n in tree.level(2)] == pytest.approx([0.15, 0.15, 0.15])
    narrow = method.new_tree(0)
    method.propose(narrow, log_of([[0.5, 0.1, 0.4]]), None)
    method.propose(narrow, log_of([[0.4, 0.3, 0.3], [0.02, 0.9, 0.08], [1.0, 0.0, 0.0]]), None)
    assert [(narrow.parents[n], narrow.tokens[n]) for n in narrow.level(2)] == [(1, 0), (2, 1), (1, 1)]


def test_temperature_zero_has_the_order_of_a_small_temperature() -> None:
    """The limit: at a small temperature no Gumbel noise changes the order."""
    logits = [torch.randn(n, 7, generator=torch.Generator().manual_seed(n)) for n in (1, 4)]
    method, found = StochasticBeam(width=4, length=2), []
    for temperature in (0.0, 1e-4):
        tree = method.new_tree(0)
        for level in logits:
            rows = level if not temperature else level / temperature
            method.propose(tree, rows, None if not temperature else RoundNoise(5, (0,), 10))
        found.append([(tree.parents[n], tree.tokens[n]) for n in range(1, len(tree) + 1)])
    assert found[0] == found[-1]
