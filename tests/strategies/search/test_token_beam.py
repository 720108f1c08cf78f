"""Token-level beam search against exhaustive enumeration on small Markov models."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.search.beam_pool import BeamPool, EarlyStopping, Hypothesis, offers_needed

SEARCHED = settings(max_examples=40, deadline=None, derandomize=True)
END = 0


class Markov:
    """A random next-token law over `vocabulary` tokens, token 0 ending the sequence."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        logits = np.random.default_rng(seed).normal(size=(vocabulary, vocabulary))
        self.logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        self.vocabulary = vocabulary

    def logprob(self, tokens: tuple[int, ...]) -> float:
        return float(sum(self.logprobs[a][b] for a, b in zip((1, *tokens), tokens, strict=False)))

    def offers(self, pool: BeamPool) -> list[list[tuple[int, float]]]:
        rows = []
        for beam in pool.live:
            row = self.logprobs[beam.tokens[-1] if beam.tokens else 1]
            best = sorted(range(self.vocabulary), key=lambda token: -row[token])
            rows.append([(token, float(row[token])) for token in best[: offers_needed(pool.width, 1)]])
        return rows

    def best_sequence(self, length: int, penalty: float) -> Hypothesis:
        """The best of all sequences that end, or have the full length."""
        every = (tokens for n in range(1, length + 1) for tokens in product(range(self.vocabulary), repeat=n))
        complete = (t for t in every if END not in t[:-1] and (t[-1] == END or len(t) == length))
        return max((Hypothesis(t, self.logprob(t)) for t in complete), key=lambda h: h.score(penalty))


def search(model: Markov, pool: BeamPool, *, to_the_end: bool = False) -> Hypothesis:
    while not pool.done or (to_the_end and pool.live and len(pool.live[0].tokens) < pool.max_tokens):
        before = pool.live
        origins = pool.advance(model.offers(pool))
        assert len(origins) == len(pool.live) <= pool.width
        for origin, beam in zip(origins, pool.live, strict=True):
            assert beam.tokens == (*before[origin.parent].tokens, origin.token)
            assert beam.logprob == pytest.approx(model.logprob(beam.tokens))
    return pool.best(1)[0]


@SEARCHED
@given(st.integers(0, 10**6), st.floats(-1, 2))
def test_a_beam_as_wide_as_the_tree_finds_the_best_sequence(seed: int, penalty: float) -> None:
    model = Markov(seed, 3)
    pool = BeamPool(30, 4, {END}, penalty)
    assert search(model, pool).score(penalty) == pytest.approx(model.best_sequence(4, penalty).score(penalty))


@SEARCHED
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(-1, 2))
def test_exact_stopping_changes_nothing(seed: int, width: int, penalty: float) -> None:
    model = Markov(seed, 5)
    stopped, full = (BeamPool(width, 8, {END}, penalty) for _ in range(2))
    assert search(model, stopped) == search(model, full, to_the_end=True)


@SEARCHED
@given(st.integers(0, 10**6))
def test_width_one_without_ends_is_greedy(seed: int) -> None:
    model = Markov(seed, 4)
    pool = BeamPool(1, 6, (), 0.0)
    last, expected = 1, []
    for _ in range(6):
        last = int(model.logprobs[last].argmax())
        expected.append(last)
    assert list(search(model, pool).tokens) == expected


@pytest.mark.parametrize("early_stopping", ["first", "heuristic", "never"])
def test_stopping_rules_differ_in_how_long_they_look(early_stopping: EarlyStopping) -> None:
    """One hypothesis ends with score -1; a live one has -1.5, hopeless as it is, but long answers are flattered."""
    pool = BeamPool(1, 10, {END}, 1.0, early_stopping)
    pool.advance([[(END, -1.0), (2, -1.5)]])
    assert pool.done is (early_stopping != "never")


def test_ends_beyond_the_first_width_offers_are_no_hypotheses() -> None:
    pool = BeamPool(1, 5, {END})
    pool.advance([[(2, -0.1), (END, -2.0)]])
    assert pool.finished == []
    assert pool.live == [Hypothesis((2,), -0.1)]


def test_every_beam_may_lose_all_its_ends_and_the_width_still_lives_on() -> None:
    pool = BeamPool(2, 5, {0, 9})
    offers = [(0, -0.1), (9, -0.2), (2, -3.0), (3, -4.0)]
    assert offers_needed(2, 2) == len(offers)
    pool.advance([offers])
    assert [beam.tokens for beam in pool.live] == [(2,), (3,)]
    assert [h.tokens for h in pool.finished] == [(0,), (9,)]


def test_ties_go_to_the_earlier_beam_then_the_earlier_offer() -> None:
    pool = BeamPool(2, 5, {END}, 0.0)
    pool.advance([[(5, -1.0), (4, -1.0), (3, -1.0)]])
    assert [beam.tokens for beam in pool.live] == [(5,), (4,)]
    origins = pool.advance([[(7, -1.0 - 1e-9), (6, -1.0)], [(8, -1.0), (9, -1.0)]])
    assert [(o.parent, o.token) for o in origins] == [(0, 7), (0, 6)]


def test_the_length_penalty_ranks_the_finished() -> None:
    short, long = Hypothesis((1, 0), -2.0, finished=True), Hypothesis((1, 2, 3, 0), -3.0, finished=True)
    assert short.score(0.0) > long.score(0.0)
    assert short.score(1.0) < long.score(1.0)


def test_a_cut_search_answers_with_what_lives() -> None:
    pool = BeamPool(2, 9, {END}, 1.0)
    assert pool.best(1) == []
    pool.advance([[(2, -0.5), (END, -1.0), (3, -1.5)]])
    assert [h.tokens for h in pool.best(3)] == [(2,), (END,), (3,)]


def test_impossible_offers_are_dropped_and_a_dead_end_is_done() -> None:
    pool = BeamPool(2, 5, {END})
    assert pool.advance([[(1, -math.inf), (2, -math.inf)]]) == []
    assert pool.done


def test_malformed_offers_are_refused() -> None:
    pool = BeamPool(2, 5, {END})
    with pytest.raises(ValueError, match="beams are live"):
        pool.advance([])
    with pytest.raises(ValueError, match="not a number"):
        pool.advance([[(1, math.nan)]])
    with pytest.raises(ValueError, match="at least 1"):
        BeamPool(0, 5, {END})
