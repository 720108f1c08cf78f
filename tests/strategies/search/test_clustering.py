"""Clusters of foresight texts: tokens, TF-IDF, k-means without chance."""

import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.search.clustering import ClusteringImpossible, canonical_labels, cluster_texts, kmeans
from strategies.search.tfidf import EmptyVocabulary, math_tokens, tfidf, word_tokens

SEARCHED = settings(max_examples=50, deadline=None, derandomize=True)
WORDS = ["red", "blue", "apple", "pie", "sky", "12", "77"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join), max_size=8)


def inertia(rows: NDArray[np.float64], labels: list[int]) -> float:
    """Sum of squared distances to the means of the clusters."""
    members = [rows[[i for i, label in enumerate(labels) if label == k]] for k in set(labels)]
    return float(sum(((cluster - cluster.mean(axis=0)) ** 2).sum() for cluster in members))


def lloyd(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> list[int]:
    """The textbook iteration, on coordinates."""
    for _ in range(12):
        labels = ((rows[:, None, :] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
        centres = np.array(
            [rows[labels == k].mean(axis=0) if (labels == k).any() else c for k, c in enumerate(centres)]
        )
    return [int(label) for label in labels]


@SEARCHED
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 4))
def test_no_restart_from_random_rows_does_better(seed: int, n: int, k: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n, 3))
    k = min(k, n)
    ours = inertia(rows, kmeans(rows, k))
    for _ in range(10):
        assert ours <= inertia(rows, lloyd(rows, rows[random.choice(n, k, replace=False)])) + 1e-8


@SEARCHED
@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(1, 4))
def test_permuting_the_rows_permutes_the_partition(seed: int, n: int, k: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n, 3))
    order = random.permutation(n)
    labels = kmeans(rows, k)
    assert kmeans(rows[order], k) == canonical_labels([labels[i] for i in order])


@SEARCHED
@given(TEXTS.filter(lambda texts: len(texts) > 1 and any(texts)), st.integers(1, 4))
def test_equal_texts_share_a_cluster_and_labels_count_up(texts: list[str], k: int) -> None:
    labels = cluster_texts(texts, k)
    assert labels == canonical_labels(labels)
    assert len(set(labels)) == min(k, len({tuple(row) for row in np.round(tfidf(texts)[1], 12)}))
    for a, text in zip(labels, texts, strict=True):
        assert a == labels[texts.index(text)]


def test_texts_far_from_both_centres_join_the_better_side() -> None:
    """Rows at equal distance from all centres: with ties always to the first centre the best partition is missed."""
    rows = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.8, 0.6, 0], [0, 0, 0, 1.0]])
    best = min(inertia(rows, list(labels)) for labels in product(range(2), repeat=4) if len(set(labels)) == 2)
    assert inertia(rows, kmeans(rows, 2)) == pytest.approx(best)


@SEARCHED
@given(st.data())
def test_the_partition_of_texts_does_not_depend_on_their_order(data: st.DataObject) -> None:
    texts = data.draw(TEXTS.filter(lambda texts: len(texts) > 2 and sum(map(bool, texts)) > 1))
    order = data.draw(st.permutations(range(len(texts))))
    rows = tfidf(texts)[1]
    moved = [texts[i] for i in order]
    assert inertia(rows, kmeans(rows, 2)) == pytest.approx(inertia(tfidf(moved)[1], kmeans(tfidf(moved)[1], 2)))


def test_an_outlier_does_not_inflate_the_largest_cluster() -> None:
    rows = np.array([[0.0, 0], [0.1, 0], [1, 0], [1.1, 0], [0.5, 1.2]])
    assert kmeans(rows, 3) == [0, 0, 1, 1, 2]


def test_sixteen_texts_take_milliseconds() -> None:
    texts = [" ".join(f"word{(i * 7 + j * j) % 23}" for j in range(40)) for i in range(16)]
    started = time.process_time()
    assert len(set(cluster_texts(texts, 3))) == 3
    assert time.process_time() - started < 2.0


def test_fewer_texts_than_clusters_shrink_or_raise() -> None:
    texts = ["red apple", "blue sky"]
    assert cluster_texts(texts, 3) == [0, 1]
    with pytest.raises(ClusteringImpossible):
        cluster_texts(texts, 3, shrink=False)
    with pytest.raises(ClusteringImpossible):
        cluster_texts(texts[:1], 3)


def test_texts_without_words_fall_back_to_mathematical_tokens() -> None:
    texts = ["x = 5", "x = 5", "y + 7"]
    with pytest.raises(EmptyVocabulary):
        tfidf(texts, "words")
    assert cluster_texts(texts, 2) == [0, 0, 1]
    for rule in ("words", "math"):
        with pytest.raises(ClusteringImpossible):
            cluster_texts([" ", ".", "?"], 2, rule)  # type: ignore[arg-type]
    with pytest.raises(ClusteringImpossible):
        cluster_texts(texts, 2, shrink=False)


def test_a_blank_text_is_a_zero_row() -> None:
    _, rows = tfidf(["red apple", ""])
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 0])


def test_tokens() -> None:
    assert word_tokens("A red Apple costs 5, or 12%!") == ["red", "apple", "costs", "or", "12"]
    assert math_tokens("x = 3+42%, Then") == ["x", "=", "3", "+", "42", "%", "then"]
    assert math_tokens("5个苹果") == ["5", "个", "苹", "果", "个苹", "苹果"]
    assert math_tokens("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert "ค" in math_tokens("คำตอบ")


@pytest.mark.parametrize(("rows", "k"), [(np.zeros((0, 2)), 1), (np.ones((2, 2)), 0)])
def test_k_means_refuses_nothing_and_no_clusters(rows: NDArray[np.float64], k: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        kmeans(rows, k)
