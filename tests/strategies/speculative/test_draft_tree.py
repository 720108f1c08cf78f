"""The tree of draft tokens: order, masks, merged draws, truncation."""

import pytest
import torch
from exact_laws import distance, emitted_law, first_tokens, trees

from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.rejection import with_replacement, without_replacement

DRAFT = {(): [0.5, 0.3, 0.2], (0,): [0.2, 0.2, 0.6], (1,): [0.0, 0.9, 0.1], (2,): [1.0, 0.0, 0.0]}
TARGET = {(): [0.1, 0.6, 0.3], (0,): [0.6, 0.4, 0.0], (1,): [0.3, 0.3, 0.4], (2,): [0.1, 0.1, 0.8]}


def sample_tree() -> DraftTree:
    """0 -> 1, 2; 1 -> 3, 4; 2 -> 5."""
    tree = DraftTree(50, ends={7})
    for parent, token in [(0, 4), (0, 5), (1, 4), (1, 7), (2, 6)]:
        tree.add(parent, token, logprob=-1.0)
    return tree


def test_structure() -> None:
    tree = sample_tree()
    assert len(tree) == 5
    assert tree.depths == [0, 1, 1, 2, 2, 2]
    assert tree.tries == [[1, 2], [3, 4], [5], [], [], []]
    assert tree.level(2) == [3, 4, 5]
    assert tree.frontier() == [3, 5]  # node 4 ends the sequence
    assert tree.path(4) == [1, 4]
    assert tree.path_tokens(4) == [4, 7]
    assert tree.path(0) == []
    assert tree.logprobs[4] == -2.0


def test_ancestor_mask() -> None:
    mask = sample_tree().ancestor_mask()
    visible = [{int(j) for j in row.nonzero()[:, 0]} for row in mask]
    assert visible == [{0}, {0, 1}, {0, 2}, {0, 1, 3}, {0, 1, 4}, {0, 2, 5}]
    assert mask.dtype == torch.bool


def test_the_root_never_ends_the_sequence() -> None:
    tree = DraftTree(7, ends={7})
    assert tree.frontier() == [0]
    assert not tree.is_end(0)


def test_an_expanded_node_leaves_the_frontier() -> None:
    tree = DraftTree(0)
    tree.draft_logprobs[0] = torch.zeros(3)
    assert tree.frontier() == []


def test_faults_are_refused() -> None:
    tree = sample_tree()
    with pytest.raises(ValueError, match="already drawn"):
        tree.add(1, 4)
    with pytest.raises(ValueError, match="depth"):
        tree.add(0, 9)


def test_draws_with_replacement_share_a_node() -> None:
    tree = DraftTree(0, replacement=True)
    assert [tree.add(0, token) for token in (3, 4, 3, 3)] == [1, 2, 1, 1]
    assert tree.tries[0] == [1, 2, 1, 1]
    assert [tree.multiplicity(node) for node in range(3)] == [1, 3, 1]
    assert len(tree) == 2


@pytest.mark.parametrize("budget", range(6))
def test_truncation_keeps_a_prefix(budget: int) -> None:
    tree = sample_tree()
    tree.draft_logprobs = {0: torch.zeros(1), 2: torch.ones(1)}
    cut = tree.truncated(budget)
    assert cut.tokens == tree.tokens[: budget + 1]
    assert cut.parents == tree.parents[: budget + 1]
    assert cut.logprobs == tree.logprobs[: budget + 1]
    assert cut.ends == tree.ends
    assert set(cut.draft_logprobs) == {node for node in (0, 2) if node <= budget}


def test_truncation_with_replacement_counts_draws_not_tokens() -> None:
    """Keeping a second draw because it repeats the first would be a choice by token."""
    repeated = DraftTree(0, replacement=True)
    for token in (3, 3, 4):
        repeated.add(0, token)
    cut = repeated.truncated(1)
    assert [cut.tokens[node] for node in cut.tries[0]] == [3]
    cut = repeated.truncated(2)
    assert [cut.tokens[node] for node in cut.tries[0]] == [3, 3]


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("replacement", [False, True])
def test_a_truncated_tree_is_still_exact(budget: int, replacement: bool) -> None:
    """By enumeration of all trees (2, 2), or (2, 1) with replacement, and of all ways to verify them."""
    rule = with_replacement if replacement else without_replacement
    shape = (2, 1) if replacement else (2, 2)
    drawn = ((tree.truncated(budget), mass) for tree, mass in trees(DRAFT.__getitem__, shape, replacement=replacement))
    law = first_tokens(emitted_law(rule, drawn, target), target, 2)
    assert distance(law, first_tokens({(): 1.0}, target, 2)) < 1e-12


def target(path: tuple[int, ...]) -> list[float]:
    return TARGET.get(path, [0.2, 0.3, 0.5])
