"""One whole step of phi-decoding, its candidates and its final choice, for every profile."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.search.boltzmann import softmax
from strategies.search.committed_prefix import committed_length
from strategies.search.phi_candidate import CandidateKind, classify, foresight, starved_beams, step_score
from strategies.search.phi_final import choose_final, final_pool, larger_cluster, ranking
from strategies.search.phi_profile import ORIGIN, PAPER, PROFILES, SERVER, PhiProfile
from strategies.search.phi_step import choose_step, value_pool
from strategies.search.plackett_luce import inclusion_probabilities

SEARCHED = settings(max_examples=50, deadline=None, derandomize=True)
ALL = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES.keys())
WORDS = ["red apple pie", "blue sky above", "the answer is nine", "the answer is forty", "", " "]
LOGPROB = st.one_of(st.none(), st.just(math.nan), st.floats(-3, 0))


@ALL
@SEARCHED
@given(
    data=st.data(),
    F=st.lists(LOGPROB, min_size=1, max_size=9),
    width=st.integers(1, 4),
)
def test_any_step_has_an_outcome(profile: PhiProfile, data: st.DataObject, F: list[float | None], width: int) -> None:
    n = len(F)
    beam = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    texts = data.draw(st.lists(st.sampled_from(WORDS), min_size=n, max_size=n))
    s = data.draw(st.lists(LOGPROB, min_size=n, max_size=n))
    u = data.draw(st.lists(st.floats(0.01, 0.99), min_size=n, max_size=n))
    choice = choose_step(range(n), s, beam, F, texts, [-0.2, 0.0, -1.0], width, profile, u)
    pool = choice.pool
    assert sum(pool.probabilities) == pytest.approx(1)
    assert min(pool.probabilities) >= 0
    assert len(pool.probabilities) == len(pool.members) == len(set(pool.members))
    assert len({b.candidate for b in choice.beams}) == len(choice.beams) == min(width, len(pool.members))
    for new in choice.beams:
        assert new.parent == beam[new.candidate]
        f = F[new.candidate]
        expected = f if f is not None and math.isfinite(f) else [-0.2, 0.0, -1.0][new.parent]
        assert expected == new.F
    if pool.labels is not None:
        assert len(pool.labels) == len(pool.members)
        assert pool.share == max(pool.labels.count(label) for label in pool.labels) / len(pool.labels)


@ALL
def test_selection_frequencies_are_those_of_draws_without_replacement(profile: PhiProfile) -> None:
    """False-alarm rate: 18 comparisons at 6 standard errors, below 1e-7."""
    A = [0.3, 0.05, 0.1, 0.2, 0.02, 0.15]
    texts = ["red apple pie", "red apple tart", "blue sky", "blue sea", "green tea", "red apple"]
    pool = value_pool(A, texts, 2, profile)
    assert pool.labels is not None
    expected = inclusion_probabilities(pool.probabilities, 2)
    draws = 4000
    uniforms = np.random.default_rng(5).uniform(1e-9, 1 - 1e-9, (draws, len(A)))
    counts = np.zeros(len(A))
    for row in uniforms:
        counts[pool.draw(2, row.tolist())] += 1
    for count, probability in zip(counts, expected, strict=True):
        assert abs(count / draws - probability) < 6 * math.sqrt(probability * (1 - probability) / draws)


def test_profiles_differ_in_sharpness() -> None:
    A = [0.3] + [0.0] * 12
    texts = [f"word{i % 3} text" for i in range(13)]
    sharpness = {
        name: value_pool(A, texts, 4, replace(profile, eligibility="nonblank")).probabilities[0]
        for name, profile in PROFILES.items()
    }
    assert sharpness["server"] == pytest.approx(sharpness["origin"])
    assert sharpness["server"] > 0.3
    assert sharpness["paper"] < 0.09


def test_without_clusters_and_cold_the_best_advantages_win() -> None:
    cold = replace(SERVER, tau1=1e-4)
    A = [0.1, 0.4, None, 0.3, 0.2]
    pool = value_pool(A, [""] * 5, 2, cold)
    assert pool.labels is None
    assert sorted(pool.draw(2, [0.9, 0.1, 0.9, 0.1, 0.9])) == [1, 3]


def test_cold_temperatures_are_no_fault() -> None:
    texts = ["nine apples", "nine apples", "forty pears"]
    for profile in (replace(PAPER, tau=1e-4), replace(SERVER, tau1=1e-4, tau2=1e-4)):
        pool = value_pool([0.1, 0.3, 0.2], texts, 2, profile)
        assert sum(pool.probabilities) == pytest.approx(1)
        assert pool.draw(1, [0.5] * 3) == [1]


def test_too_few_eligible_candidates() -> None:
    A, texts = [0.2, -0.1, 0.3], ["nine apples", "forty pears", ""]
    server = value_pool(A, texts, 3, SERVER)  # clusters the two texts there are
    assert (server.members, server.labels) == ((0, 1), (0, 1))
    origin = value_pool(A, texts, 3, ORIGIN)  # one eligible: advantage over everyone, ineligible ones included
    assert (origin.members, origin.labels) == ((0, 1, 2), None)
    assert origin.probabilities == pytest.approx(softmax([0.2, -0.1, 0.3], 0.1))
    single = value_pool(A, ["nine apples", "", ""], 3, SERVER)
    assert (single.members, single.probabilities, single.share) == ((0,), [1.0], None)


def test_nothing_eligible_or_defined_falls_back_in_order() -> None:
    blank = value_pool([0.1, 0.0, None], ["", " ", "text"], 2, SERVER, [-0.1, -0.2, -0.3])
    assert blank.members == (0, 1)
    scores = value_pool([None, math.nan], ["a b", "c d"], 2, SERVER, [None, -0.2])
    assert (scores.members, scores.probabilities) == ((1,), [1.0])
    nothing = value_pool([None, None], ["a b", "c d"], 2, SERVER, [None, None])
    assert nothing.probabilities == pytest.approx([0.5, 0.5])
    assert value_pool([], [], 2, SERVER).draw(2, []) == []


def test_the_paper_clusters_blank_texts_too_and_at_the_first_step() -> None:
    pool = value_pool([-0.3, -0.2, -0.4], ["nine apples", "nine apples", ""], 2, PAPER)
    assert pool.labels == (0, 0, 1)
    assert value_pool([-0.3, -0.2, -0.4], ["nine apples"] * 3, 2, ORIGIN).labels is None


def test_identical_texts_are_one_cluster() -> None:
    pool = value_pool([-0.1, -0.2, -0.3], ["nine apples"] * 3, 2, SERVER)
    assert pool.share == 1.0


@pytest.mark.parametrize(
    ("text", "end", "kind"),
    [
        ("She has 9.\n", "separator", CandidateKind.NORMAL),
        ("\n", "separator", CandidateKind.EMPTY),
        (" \t\n", "separator", CandidateKind.EMPTY),
        ("", "length", CandidateKind.EMPTY),
        ("The answer is 9", "finished", CandidateKind.TERMINAL),
        ("", "finished", CandidateKind.TERMINAL),
        ("a very long", "length", CandidateKind.TRUNCATED),
    ],
)
def test_kinds_of_candidates(text: str, end: str, kind: CandidateKind) -> None:
    assert classify(text, end) is kind  # type: ignore[arg-type]


def test_an_empty_step_has_no_score_and_a_terminal_one_counts_its_end_token() -> None:
    assert step_score(CandidateKind.EMPTY, -0.01, 1) is None
    assert step_score(CandidateKind.TERMINAL, -1.2, 4) == pytest.approx(-0.3)
    assert step_score(CandidateKind.NORMAL, 0.0, 0) is None


def test_stopping_first_wins_nothing() -> None:
    assert foresight(CandidateKind.TERMINAL, -0.3, "the answer is 9", None) == (-0.3, "the answer is 9")
    assert foresight(CandidateKind.NORMAL, -0.3, "a step", (-0.5, "and on")) == (-0.5, "and on")
    assert foresight(CandidateKind.NORMAL, -0.3, "a step", None) == (None, "")


def test_beams_without_a_step_are_found() -> None:
    kinds = [CandidateKind.EMPTY, CandidateKind.NORMAL, CandidateKind.EMPTY, CandidateKind.EMPTY]
    assert starved_beams(kinds, [0, 0, 1, 1], [0, 1, 2]) == [1, 2]


@ALL
@SEARCHED
@given(
    A=st.lists(LOGPROB, min_size=1, max_size=6),
    u=st.lists(st.floats(0.01, 0.99), min_size=6, max_size=6),
    data=st.data(),
)
def test_a_completion_is_always_chosen(
    profile: PhiProfile, A: list[float | None], u: list[float], data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.sampled_from(WORDS), min_size=len(A), max_size=len(A)))
    for final in ("joint", "argmax", "majority2"):
        variant = replace(profile, final=final)  # type: ignore[arg-type]
        chosen = choose_final(A, texts, variant, u[: len(A)])
        order = ranking(A, texts, variant, chosen)
        assert order[0] == chosen
        assert sorted(order) == list(range(len(A)))


def test_majority_draws_within_the_larger_cluster() -> None:
    texts = ["nine apples", "forty pears", "forty pears", "forty pears"]
    A = [5.0, 0.1, 0.2, 0.3]
    majority = replace(SERVER, final="majority2")
    assert set(final_pool(A, texts, majority).members) == {1, 2, 3}
    assert choose_final(A, texts, majority, [0.999, 0.5, 0.5, 0.5]) in {1, 2, 3}


def test_argmax_depends_on_the_completions_alone() -> None:
    A, texts = [0.1, 0.3, 0.2], ["nine apples", "forty pears", "nine apples"]
    argmax = replace(SERVER, final="argmax")
    p = final_pool(A, texts, argmax).probabilities
    assert choose_final(A, texts, argmax, [0.5] * 3) == p.index(max(p))
    assert choose_final(A, texts, argmax, [0.9, 0.01, 0.9]) == p.index(max(p))


def test_a_tie_of_clusters_goes_to_the_larger_mean_advantage_then_the_first() -> None:
    assert larger_cluster([0, 1, 1, 0], [0.0, 0.3, 0.1, 0.1]) == [1, 2]
    assert larger_cluster([0, 1, 1, 0], [0.2, 0.2, 0.2, 0.2]) == [0, 3]


def test_no_completion_is_an_error() -> None:
    with pytest.raises(ValueError, match="no completion"):
        choose_final([], [], SERVER, [])


@SEARCHED
@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=5))
def test_the_committed_prefix_is_the_longest_that_all_share(branches: list[list[int]]) -> None:
    n = committed_length(branches)
    assert all(branch[:n] == branches[0][:n] for branch in branches)
    longer = {tuple(branch[: n + 1]) for branch in branches}
    assert len(longer) > 1 or any(len(branch) == n for branch in branches)


def test_no_branches_commit_nothing() -> None:
    assert committed_length([]) == 0
