"""Coupled drafting: the draft's noise is plain decoding's, so the verdict is what plain decoding draws."""

from collections.abc import Callable

import pytest
import torch

from strategies.randomness import Purpose, Stream, gumbel, gumbel_argmax, signed64
from strategies.speculative.coupled import CoupledNoise, verify_by_samples
from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.gumbel_top_k import ConstantBranching
from strategies.speculative.method import Method
from strategies.speculative.stochastic_beam import StochasticBeam

VOCAB = 12
COMMITTED = 7
METHODS: list[Method] = [
    ConstantBranching((1, 1, 1)), ConstantBranching((3, 2)), StochasticBeam(1, 3), StochasticBeam(3, 3),
]  # fmt: skip
Model = Callable[[tuple[int, ...]], torch.Tensor]


def model(seed: int, sharpness: float = 1.5) -> Model:
    def logits(path: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((seed, path)) % (1 << 31))
        return torch.randn(VOCAB, generator=generator) * sharpness

    return logits


def draw(logits: torch.Tensor, stream: Stream, position: int) -> int:
    """Plain decoding's sample."""
    return int(gumbel_argmax(logits[None], torch.tensor([signed64(stream.key(position))]))[0])


def grown(method: Method, draft: Model, stream: Stream, ends: frozenset[int] = frozenset()) -> DraftTree:
    tree = method.new_tree(0, ends)
    noise = CoupledNoise(stream, COMMITTED, tree)
    while tree.depth < method.length and tree.frontier():
        rows = torch.stack([draft(tuple(tree.path_tokens(node))) for node in tree.frontier()])
        method.propose(tree, rows.log_softmax(-1), noise)
    return tree


def test_the_noise_at_a_node_is_that_of_its_position() -> None:
    tree = DraftTree(0)
    first = tree.add(0, 3)
    tree.add(0, 4)
    tree.add(first, 5)
    stream = Stream(11, (2,), Purpose.SAMPLE)
    index = torch.arange(VOCAB)
    values = CoupledNoise(stream, COMMITTED, tree).uniforms(Purpose.DRAFT, [0, 1, 2, 3], index)
    for row, depth in zip(values, [0, 1, 1, 2], strict=True):
        expected = gumbel(torch.tensor([signed64(stream.key(COMMITTED + depth))]), VOCAB)[0]
        assert torch.equal(-torch.log(-torch.log(row)), expected)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_verdict_is_plain_decodings_output_for_any_draft(method: Method) -> None:
    accepted = 0
    for seed in range(40):
        stream, target, draft = Stream(seed, (0,)), model(seed), model(seed + 1 if seed % 2 else seed, 1.2)
        tree = grown(method, draft, stream)
        samples = [
            draw(target(tuple(tree.path_tokens(node))), stream, COMMITTED + tree.depths[node])
            for node in range(len(tree) + 1)
        ]
        verdict = verify_by_samples(tree, samples)
        path: tuple[int, ...] = ()
        for _ in verdict.tokens:
            path = (*path, draw(target(path), stream, COMMITTED + len(path)))
        assert verdict.tokens == path
        assert len(verdict.tokens) == len(verdict.path) + 1
        accepted += len(verdict.path)
    assert accepted > 10


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_draft_equal_to_the_target_proposes_just_what_is_drawn(method: Method) -> None:
    for seed in range(20):
        stream, target = Stream(seed, (0,)), model(seed)
        tree = grown(method, target, stream)
        samples = [
            draw(target(tuple(tree.path_tokens(node))), stream, COMMITTED + tree.depths[node])
            for node in range(len(tree) + 1)
        ]
        assert len(verify_by_samples(tree, samples).path) == method.length


def test_an_end_that_is_accepted_is_the_last_token() -> None:
    tree = DraftTree(0, {5})
    end = tree.add(0, 5)
    assert verify_by_samples(tree, [5, 9]).tokens == (5,)
    assert verify_by_samples(tree, [5, 9]).path == (end,)
    assert verify_by_samples(tree, [4, 9]).tokens == (4,)
    assert verify_by_samples(DraftTree(0), [3]).tokens == (3,)
