"""Drafting and verification together, with the noise that the engine uses: chi-square of the first two tokens.

Rounds differ by seed. Each of the five tests accepts p-values down to 1e-8: a false alarm of 5e-8 in all.
"""

from functools import cache

import pytest
import torch
from exact_laws import first_tokens, log_of, p_value

from strategies.speculative.chain import Chain
from strategies.speculative.gumbel_top_k import ConstantBranching
from strategies.speculative.method import Method
from strategies.speculative.multi_draft import MultiDraft
from strategies.speculative.noise import Noise, RoundNoise
from strategies.speculative.spectr import SpecTr
from strategies.speculative.stochastic_beam import StochasticBeam
from strategies.speculative.verify import verify

DRAFT = {(): [0.45, 0.25, 0.2, 0.1], (0,): [0.1, 0.6, 0.3, 0.0], (1,): [0.0, 1.0, 0.0, 0.0]}
TARGET = {(): [0.15, 0.4, 0.0, 0.45], (0,): [0.5, 0.2, 0.3, 0.0], (1,): [0.3, 0.1, 0.1, 0.5]}
ROUNDS = 800
SMALLEST_P = 1e-8
METHODS = [
    Chain(2),
    ConstantBranching((3, 2)),
    StochasticBeam(3, 2),
    MultiDraft((3, 1)),
    SpecTr(3, 2),
]


@cache
def draft(path: tuple[int, ...]) -> torch.Tensor:
    return log_of(DRAFT.get(path, [0.3, 0.3, 0.2, 0.2])).float()


def target(path: tuple[int, ...]) -> list[float]:
    return TARGET.get(path, [0.2, 0.3, 0.4, 0.1])


def run(method: Method, noises: list[Noise]) -> torch.Tensor:
    """Counts of the first two tokens, [16]; a round that emits one token is continued by the target itself."""
    grown, rows = [], []
    for noise in noises:
        tree = method.new_tree(0)
        while tree.depth < method.length and tree.frontier():
            level = [draft(tuple(tree.path_tokens(node))) for node in tree.frontier()]
            method.propose(tree, torch.stack(level), noise)
        grown.append(tree)
        rows.append(log_of([target(tuple(tree.path_tokens(node))) for node in range(len(tree) + 1)]).float())
    counts = torch.zeros(16, dtype=torch.float64)
    for verdict in verify(method.rule, grown, rows, noises):
        for (a, b), mass in first_tokens({verdict.tokens: 1.0}, target, 2).items():
            counts[a * 4 + b] += mass
    return counts


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_first_two_tokens_follow_the_target(method: Method) -> None:
    """Where the target goes on by itself its law is added instead of a draw, which only makes the counts steadier."""
    noises: list[Noise] = [RoundNoise(seed, (0,), 11) for seed in range(ROUNDS)]
    counts = run(method, noises)
    expected = torch.zeros(16, dtype=torch.float64)
    for (a, b), mass in first_tokens({(): 1.0}, target, 2).items():
        expected[a * 4 + b] = mass
    assert float(counts[expected == 0].sum()) == 0
    assert p_value(counts, expected) > SMALLEST_P


def test_shared_noise_would_be_seen() -> None:
    """The negative control: the residual drawn with the accept uniform of the same round."""

    class Shared(RoundNoise):
        def __init__(self, seed: int) -> None:
            super().__init__(seed, (0,), 11)
            self._streams = dict.fromkeys(self._streams, next(iter(self._streams.values())))

    counts = run(Chain(2), [Shared(seed) for seed in range(ROUNDS)])
    expected = torch.zeros(16, dtype=torch.float64)
    for (a, b), mass in first_tokens({(): 1.0}, target, 2).items():
        expected[a * 4 + b] = mass
    assert p_value(counts, expected) < SMALLEST_P
