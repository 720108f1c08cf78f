"""Walking the tree: exactness by enumeration of every tree and every verification, and the arg-max special case."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from exact_laws import (
    Law,
    ScriptedNoise,
    distance,
    emitted_law,
    first_tokens,
    log_of,
    target_rows,
    total_variation,
    trees,
)

from strategies.randomness import Purpose
from strategies.speculative.chain import Chain
from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.gumbel_top_k import ConstantBranching
from strategies.speculative.method import Method
from strategies.speculative.multi_draft import MultiDraft
from strategies.speculative.noise import RoundNoise
from strategies.speculative.rejection import AcceptanceRule, target_matching, without_replacement
from strategies.speculative.spectr import SpecTr
from strategies.speculative.stochastic_beam import StochasticBeam
from strategies.speculative.verify import Verdict, verify

# Zeros, a one-hot row, a disjoint pair, and a support smaller than the width.
DRAFT = {(): [0.5, 0.3, 0.2], (0,): [0.2, 0.2, 0.6], (1,): [0.0, 0.9, 0.1], (2,): [1.0, 0.0, 0.0]}
TARGET = {(): [0.1, 0.6, 0.3], (0,): [0.6, 0.4, 0.0], (1,): [0.7, 0.0, 0.3], (2,): [0.0, 0.1, 0.9]}
METHODS: dict[str, tuple[Method, tuple[int, ...]]] = {
    "chain-1": (Chain(1), (1,)),
    "chain-2": (Chain(2), (1, 1)),
    "rsd-c-2": (ConstantBranching((2,)), (2,)),
    "rsd-c-3": (ConstantBranching((3,)), (3,)),
    "rsd-c-22": (ConstantBranching((2, 2)), (2, 2)),
    "rsd-c-31": (ConstantBranching((3, 1)), (3, 1)),
    "multi-draft-2": (MultiDraft((2,)), (2,)),
    "multi-draft-3": (MultiDraft((3,)), (3,)),
    "multi-draft-21": (MultiDraft((2, 1)), (2, 1)),
    "spectr-3": (SpecTr(3, 1), (3,)),
    "spectr-21": (SpecTr(2, 2), (2, 1)),
}
DRAWN_WITH_REPLACEMENT = (MultiDraft, SpecTr)


def draft(path: tuple[int, ...]) -> list[float]:
    return DRAFT.get(path, [0.3, 0.3, 0.4])


def target(path: tuple[int, ...]) -> list[float]:
    return TARGET.get(path, [0.2, 0.3, 0.5])


def direct(count: int, ends: frozenset[int] = frozenset()) -> Law:
    return first_tokens({(): 1.0}, target, count, ends)


@pytest.mark.parametrize("ends", [frozenset(), frozenset({1})], ids=["endless", "ends"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_emits_the_targets_law(name: str, ends: frozenset[int]) -> None:
    """First one, two and three tokens; with a token that ends the sequence, nothing after it."""
    method, branching = METHODS[name]
    drawn = trees(draft, branching, replacement=isinstance(method, DRAWN_WITH_REPLACEMENT), ends=ends)
    law = emitted_law(method.rule, drawn, target)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    for tokens in law:
        assert 1 <= len(tokens) <= method.length + 1
        assert not any(token in ends for token in tokens[:-1])
    for count in (1, 2, 3):
        assert distance(first_tokens(law, target, count, ends), direct(count, ends)) < 1e-12


def test_target_matching_on_a_tree_made_by_rule() -> None:
    tree = DraftTree(0)
    for parent, token in [(0, 2), (0, 0), (1, 1), (2, 0)]:
        tree.add(parent, token)
    law = emitted_law(target_matching, iter([(tree, 1.0)]), target)
    assert distance(first_tokens(law, target, 3), direct(3)) < 1e-12


def beam_trees(vocabulary: int, width: int, length: int) -> Iterator[tuple[DraftTree, float]]:
    """Every RSD-S tree and its probability.

    Seen from its leaves, stochastic beam search draws whole sequences without replacement from the draft, and the
    beams of a level are the first `width` distinct prefixes among them.
    """
    leaves: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        leaves = {(*path, t): m * q for path, m in leaves.items() for t, q in enumerate(draft(path)) if q > 0}
    assert all(token < vocabulary for path in leaves for token in path)
    found: dict[tuple[tuple[tuple[int, ...], ...], ...], float] = {}
    full = [min(width, len({path[: level + 1] for path in leaves})) for level in range(length)]

    def extend(drawn: list[tuple[int, ...]], mass: float, left: float) -> None:
        levels = [list(dict.fromkeys(path[: level + 1] for path in drawn))[:width] for level in range(length)]
        if [len(level) for level in levels] == full:
            key = tuple(tuple(level) for level in levels)
            found[key] = found.get(key, 0.0) + mass
            return
        for path, m in leaves.items():
            if path not in drawn:
                extend([*drawn, path], mass * m / left, left - m)

    extend([], 1.0, 1.0)
    for levels, mass in found.items():
        tree = DraftTree(0)
        at = {(): 0}
        for level in levels:
            for node in tree.frontier():
                tree.draft_logprobs[node] = log_of(draft(tuple(tree.path_tokens(node))))
            for path in level:
                at[path] = tree.add(at[path[:-1]], path[-1])
        yield tree, mass


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
def test_rsd_s_is_exact(budget: int) -> None:
    """Also when the tree is cut to a node budget."""
    drawn = [(tree.truncated(budget), mass) for tree, mass in beam_trees(3, 2, 2)]
    assert sum(mass for _, mass in drawn) == pytest.approx(1.0, abs=1e-12)
    law = emitted_law(without_replacement, iter(drawn), target)
    for count in (1, 2, 3):
        assert distance(first_tokens(law, target, count), direct(count)) < 1e-12


def test_rsd_s_with_siblings_out_of_order_is_not_exact() -> None:
    """The negative control: the same trees, siblings by probability."""

    def reordered() -> Iterator[tuple[DraftTree, float]]:
        for tree, mass in beam_trees(3, 2, 2):
            for node, children in enumerate(tree.tries):
                row = draft(tuple(tree.path_tokens(node)))
                children.sort(key=lambda child, row=row: -row[tree.tokens[child]])
            yield tree, mass

    law = first_tokens(emitted_law(without_replacement, reordered(), target), target, 1)
    assert total_variation(law, direct(1)) > 0.02


ALL = [
    Chain(3),
    ConstantBranching((3, 2, 1)),
    StochasticBeam(3, 3),
    MultiDraft((3, 1, 1)),
    MultiDraft((2, 2, 1)),
    SpecTr(3, 3),
]
EACH_METHOD = pytest.mark.parametrize("method", ALL, ids=lambda method: type(method).__name__)
VOCABULARY = 8


def logits(path: list[int], salt: int, *, sharp: float = 1.0) -> torch.Tensor:
    """A model: float32 logits that depend on the path, with a truncated support."""
    generator = torch.Generator().manual_seed(hash((salt, *path)) % (1 << 62))
    row = torch.randn(VOCABULARY, generator=generator) * sharp
    row[row.topk(3, largest=False).indices] = -torch.inf
    return row


def round_of(method: Method, noise: RoundNoise | None, ends: frozenset[int] = frozenset(), salt: int = 0) -> DraftTree:
    tree = method.new_tree(0, ends)
    while tree.depth < method.length and tree.frontier():
        rows = torch.stack([logits(tree.path_tokens(node), salt) for node in tree.frontier()])
        method.propose(tree, rows, noise)
    return tree


def target_of(tree: DraftTree, salt: int = 1) -> torch.Tensor:
    return torch.stack([logits(tree.path_tokens(node), salt) for node in range(len(tree) + 1)])


@EACH_METHOD
@pytest.mark.parametrize("shared", [False, True], ids=["other", "same"])
def test_temperature_zero_is_the_arg_max_chain(method: Method, shared: bool) -> None:
    """As far as the tree follows it; with draft = target the whole depth is accepted."""
    for salt in range(10):
        tree = round_of(method, None, salt=salt)
        rows = target_of(tree, salt if shared else salt + 100)
        [verdict] = verify(method.rule, [tree], [rows], [None])
        greedy: list[int] = []
        for _ in verdict.tokens:
            greedy.append(int(logits(greedy, salt if shared else salt + 100).argmax()))
        assert list(verdict.tokens) == greedy
        assert [tree.tokens[node] for node in verdict.path] == greedy[:-1]
        children = [tree.tokens[child] for child in tree.tries[verdict.path[-1] if verdict.path else 0]]
        assert greedy[-1] not in children
        if shared:
            assert len(verdict.path) == method.length


@EACH_METHOD
def test_a_one_hot_target_at_random_is_the_same_chain(method: Method) -> None:
    """What top_k = 1 leaves at temperature 1, drawn with noise."""
    for salt in range(10):
        tree = round_of(method, RoundNoise(salt, (0,), 5), salt=salt)
        rows = target_of(tree, salt)
        one_hot = torch.where(rows == rows.amax(-1, keepdim=True), 0.0, -torch.inf)
        assert verify(method.rule, [tree], [one_hot], [RoundNoise(salt, (0,), 5)]) == verify(
            method.rule, [tree], [rows], [None]
        )


def test_arg_max_takes_the_lowest_id_among_equals() -> None:
    tree = DraftTree(0)
    tree.add(0, 2)
    rows = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, -1.0]])
    assert verify(without_replacement, [tree], [rows], [None]) == [Verdict((), (1,))]


@EACH_METHOD
def test_a_request_does_not_see_its_neighbours(method: Method) -> None:
    noises = [RoundNoise(seed, (0,), 5) for seed in range(12)]
    grown = [round_of(method, noise, frozenset({3}), salt=seed) for seed, noise in enumerate(noises)]
    rows = [target_of(tree, seed + 1) for seed, tree in enumerate(grown)]
    together = verify(method.rule, grown, rows, noises)
    alone = [verify(method.rule, [t], [r], [n])[0] for t, r, n in zip(grown, rows, noises, strict=True)]
    backwards = verify(method.rule, grown[::-1], rows[::-1], noises[::-1])[::-1]
    mixed = verify(method.rule, grown, rows, [None if i % 2 else n for i, n in enumerate(noises)])
    assert together == alone == backwards
    assert mixed[::2] == together[::2]
    assert len({verdict.tokens for verdict in together}) > 4


@EACH_METHOD
def test_verdicts_are_paths_inside_the_targets_support(method: Method) -> None:
    for seed in range(60):
        noise = RoundNoise(seed, (0,), 5)
        tree = round_of(method, noise, frozenset({3}), salt=seed % 7)
        rows = target_of(tree, seed % 5)
        before = rows.clone()
        [verdict] = verify(method.rule, [tree], [rows], [noise])
        assert torch.equal(rows, before)
        assert all(tree.parents[b] == a for a, b in pairwise((0, *verdict.path)))
        for node, token in zip((0, *verdict.path), verdict.tokens, strict=False):
            assert rows[node, token] > -torch.inf
        ended = bool(verdict.path) and tree.tokens[verdict.path[-1]] == 3
        assert len(verdict.tokens) == len(verdict.path) + (not ended)


@EACH_METHOD
def test_equal_models_accept_the_whole_depth(method: Method) -> None:
    """The first try of every node is accepted (k-SEQ: some try)."""
    for seed in range(20):
        noise = RoundNoise(seed, (0,), 5)
        tree = round_of(method, noise, salt=seed)
        [verdict] = verify(method.rule, [tree], [target_of(tree, seed)], [noise])
        assert len(verdict.tokens) == method.length + 1


@EACH_METHOD
@pytest.mark.parametrize("greedy", [False, True])
def test_a_draft_without_support_has_no_children(method: Method, greedy: bool) -> None:
    """A mask can leave the draft nothing; alone in its level, and next to a node that has children."""
    noise = None if greedy else RoundNoise(1, (0,), 5)
    nothing = torch.full((1, VOCABULARY), -torch.inf)
    tree = method.new_tree(0)
    method.propose(tree, nothing, noise)
    assert len(tree) == 0
    assert tree.frontier() == []
    tree = method.new_tree(0)
    method.propose(tree, logits([], 1)[None], noise)
    nodes = tree.frontier()
    method.propose(tree, torch.cat([nothing, *[logits([9], 1)[None]] * (len(nodes) - 1)]), noise)
    assert tree.tries[nodes[0]] == []
    assert (len(tree.level(2)) > 0) == (len(nodes) > 1)


def test_an_empty_tree_draws_from_the_target() -> None:
    tree = DraftTree(0)
    row = log_of([[0.2, 0.0, 0.8]])
    for uniform, token in [(0.1, 0), (0.3, 2)]:
        noise = ScriptedNoise({(Purpose.RESIDUAL, 0): [uniform]})
        assert verify(without_replacement, [tree], [row], [noise]) == [Verdict((), (token,))]
    assert verify(without_replacement, [], [], []) == []


@pytest.mark.parametrize("rule", [method.rule for method in ALL[:4]], ids=["chain", "without", "beam", "with"])
def test_accepting_is_strict(rule: AcceptanceRule) -> None:
    """A draft token outside the target's support is refused however small the uniform is."""
    tree = DraftTree(0)
    tree.add(0, 1)
    tree.draft_logprobs[0] = log_of([0.5, 0.5, 0.0])
    rows = log_of([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    noise = ScriptedNoise({(Purpose.ACCEPT, 0): [0.0], (Purpose.RESIDUAL, 0): [0.5]})
    assert verify(rule, [tree], [rows], [noise]) == [Verdict((), (0,))]


@EACH_METHOD
def test_drawn_trees_follow_the_scheme_that_was_enumerated(method: Method) -> None:
    """`propose` records the rows it drew from, and tries stand in the order drawn."""
    noise = RoundNoise(4, (0,), 5)
    tree = round_of(method, noise, salt=2)
    for node, tries in enumerate(tree.tries):
        if tries:
            assert torch.equal(tree.draft_logprobs[node], logits(tree.path_tokens(node), 2))
            assert all(tree.draft_logprobs[node][tree.tokens[child]] > -torch.inf for child in tries)
    if isinstance(method, DRAWN_WITH_REPLACEMENT):
        shape = method.branching if isinstance(method, MultiDraft) else (method.width, 1, 1)
        for node, tries in enumerate(tree.tries):
            if tries:
                assert len(tries) == shape[tree.depths[node]] * tree.multiplicity(node)
    if isinstance(method, ConstantBranching | StochasticBeam):
        root = tree.draft_logprobs[0].double() - torch.log(
            -torch.log(noise.uniforms(Purpose.DRAFT, [0], torch.arange(VOCABULARY))[0])
        )
        assert [tree.tokens[child] for child in tree.tries[0]] == root.topk(3).indices.tolist()


def test_rows_of_the_enumeration_are_the_trees() -> None:
    """The enumeration's own trees, as a check of the test: depth 2, every tree once, masses sum to 1."""
    drawn = list(trees(draft, (2, 2), replacement=False))
    assert sum(mass for _, mass in drawn) == pytest.approx(1.0)
    assert len({(tuple(tree.tokens), tuple(tree.parents)) for tree, _ in drawn}) == len(drawn)
    assert all(target_rows(tree, target).shape == (len(tree) + 1, 3) for tree, _ in drawn)
