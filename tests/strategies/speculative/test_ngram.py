"""Prompt lookup against a literal search, and its law by enumeration."""

import math

import numpy as np
import pytest
import torch
from exact_laws import Law, distance, first_tokens, log_of, target_rows, verification_outcomes
from exact_laws import ScriptedNoise as Scripted
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.speculative.ngram import PromptLookup, continuation
from strategies.speculative.verify import verify


def searched(tokens: list[int], max_ngram: int, min_ngram: int, length: int) -> list[int]:
    """The definition: the longest suffix that occurs earlier, its latest occurrence, what follows; each guess counts
    as text for those after it."""
    count = len(tokens)
    for size in range(max_ngram, min_ngram - 1, -1):
        for start in range(count - size - 1, -1, -1):
            if size < count and tokens[start : start + size] == tokens[count - size :]:
                longer = list(tokens)
                for at in range(start + size, start + size + length):
                    longer.append(longer[at])
                return longer[count:]
    return []


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    tokens=st.lists(st.integers(0, 3), max_size=24),
    ngrams=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    length=st.integers(1, 8),
)
def test_continuation_is_what_a_literal_search_finds(tokens: list[int], ngrams: tuple[int, int], length: int) -> None:
    largest, smallest = max(ngrams), min(ngrams)
    found = continuation(np.array(tokens, np.int32), largest, smallest, length)
    assert found == searched(tokens, largest, smallest, length)
    assert all(type(token) is int for token in found)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        ([5], []),
        ([5, 5], [5, 5, 5, 5]),
        ([1, 2, 3, 4], []),
        ([1, 2, 3, 1, 2], [3, 1, 2, 3]),
        ([1, 2, 9, 7, 2, 8, 1, 2], [9, 7, 2, 8]),  # the longer match wins over the later one
        ([2, 7, 2, 8, 2], [8, 2, 8, 2]),  # of equally long ones the latest
        ([7, 7, 7, 7], [7, 7, 7, 7]),  # it may overlap the suffix itself
    ],
)
def test_examples(tokens: list[int], expected: list[int]) -> None:
    assert continuation(np.array(tokens, np.int32), 2, 1, 4) == expected


def drafted(tokens: list[int], length: int, ends: frozenset[int] = frozenset()):
    lookup = PromptLookup(3, 1, length)
    tree = lookup.new_tree(tokens[-1], ends)
    lookup.draft(tree, np.array(tokens, np.int32))
    return tree


def test_the_draft_is_a_chain_that_ends_where_the_sequence_would() -> None:
    tree = drafted([1, 2, 3, 4, 5, 1], 3)
    assert (tree.tokens, tree.parents) == ([1, 2, 3, 4], [-1, 0, 1, 2])
    assert tree.draft_logprobs == {}
    ended = drafted([1, 2, 3, 4, 5, 1], 3, frozenset({3}))
    assert ended.tokens == [1, 2, 3]
    assert ended.is_end(2)
    assert drafted([1, 2, 3], 3).tokens == [3]


def test_there_is_no_distribution_to_draw_from() -> None:
    with pytest.raises(TypeError, match="from the context"):
        PromptLookup(3, 1, 4).propose(drafted([1, 1], 2), torch.zeros(1, 4), None)


TARGET = {(): [0.3, 0.0, 0.5, 0.2], (2,): [0.1, 0.6, 0.0, 0.3], (2, 1): [0.0, 1.0, 0.0, 0.0]}


def target(path: tuple[int, ...]) -> list[float]:
    return TARGET.get(path, [0.4, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("chain", [[2], [1, 0], [2, 1, 1], [2, 0, 3], [3, 3, 3]])
def test_whatever_is_proposed_the_law_is_the_targets(chain: list[int]) -> None:
    """By enumeration of every way in which the verification can end."""
    lookup = PromptLookup(3, 1, 4)
    tree = lookup.new_tree(0)
    node = 0
    for token in chain:
        node = tree.add(node, token)
    rows = target_rows(tree, target)
    law: Law = {}
    for mass, script in verification_outcomes(lookup.rule, tree, rows):
        tokens = verify(lookup.rule, [tree], [rows], [Scripted(script)])[0].tokens
        law[tokens] = law.get(tokens, 0.0) + mass
    assert math.isclose(math.fsum(law.values()), 1.0)
    direct = first_tokens({(): 1.0}, target, 2)
    assert distance(first_tokens(law, target, 2), direct) < 1e-12


def test_an_accepted_token_is_one_the_target_is_likely_to_say() -> None:
    trials = PromptLookup(3, 1, 4).rule(None, torch.tensor([[0.2, 0.5, 0.3, 0.0]]).double(), torch.tensor([[1]]))
    assert trials.accept.tolist() == [[0.5]]
    assert trials.residual[0].tolist() == pytest.approx([0.4, 0.0, 0.6, 0.0])
    impossible = PromptLookup(3, 1, 4).rule(None, log_of([0.2, 0.5, 0.3, 0.0]).exp()[None], torch.tensor([[3]]))
    assert impossible.accept.tolist() == [[0.0]]
