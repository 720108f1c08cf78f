"""Clusters of foresight texts (phi-decoding, arXiv 2503.13288, section 2.2): TF-IDF rows, then k-means without chance.

The authors use one random k-means start from a global generator, so the same texts can cluster differently. Here
Lloyd's iteration runs from every k-subset of the distinct rows and the best result is kept: the outcome is a function
of the texts, not of their order. Texts without a common word are equally far from each other, so which centre a tie
goes to matters: every order of the centres is tried too, as long as that is affordable.
"""

import math
from collections.abc import Sequence
from itertools import combinations, islice, permutations

import numpy as np
from numpy.typing import NDArray

from strategies.search.tfidf import EmptyVocabulary, TokenRule, tfidf

MAX_STARTS = 4000
"""Starts in lexicographic order beyond which no more are tried; 16 rows and k = 3 have 560, in 6 orders each."""
MAX_ITERATIONS = 100


class ClusteringImpossible(ValueError):
    """There is nothing to cluster: too few texts, or none with a token."""


def cluster_texts(texts: Sequence[str], k: int, rule: TokenRule = "words", *, shrink: bool = True) -> list[int]:
    """The cluster of each text, numbered by first appearance.

    shrink: with fewer than k texts, use as many clusters as there are texts, and where `rule` sees no token at all try
    the "math" tokens; without it both raise, as the authors' code does (and then samples by advantage alone).
    Raises ClusteringImpossible for fewer than two texts (without `shrink`: fewer than k), or if no text has a token.
    """
    if len(texts) < (2 if shrink else max(k, 1)):
        raise ClusteringImpossible(f"{len(texts)} texts can't form {k} clusters")
    try:
        _, rows = tfidf(texts, rule)
    except EmptyVocabulary as error:
        if not shrink or rule == "math":
            raise ClusteringImpossible(str(error)) from error
        return cluster_texts(texts, k, "math")
    return kmeans(rows, k)


def kmeans(rows: NDArray[np.float64], k: int) -> list[int]:
    """Labels of the k-means partition of least inertia, numbered by first appearance; min(k, distinct rows) clusters.

    rows: float64 [n, d], n >= 1. Distances are rounded to 1e-12 with ties to the lowest centre, inertias to 1e-9 with
    ties to the lexicographically smallest labels. Raises ValueError for k < 1 or no rows.
    """
    if k < 1 or not len(rows):
        raise ValueError("k-means needs at least one cluster and one row")
    distinct = _distinct(rows)
    k = min(k, len(distinct))
    if k == 1:
        return [0] * len(rows)
    tries = permutations if math.perm(len(distinct), k) <= MAX_STARTS else combinations
    starts = np.array(list(islice(tries(distinct, k), MAX_STARTS)))  # [S, k], row indices
    labels, inertia = _lloyd(rows @ rows.T, starts)
    rounded = np.round(inertia, 9)
    return min(map(canonical_labels, labels[rounded == rounded.min()].tolist()))


def canonical_labels(labels: Sequence[int]) -> list[int]:
    """The same partition, its clusters numbered by first appearance."""
    number: dict[int, int] = {}
    return [number.setdefault(label, len(number)) for label in labels]


def _distinct(rows: NDArray[np.float64]) -> list[int]:
    """Indices of the rows that differ from all earlier ones."""
    first: dict[bytes, int] = {}
    for index, row in enumerate(np.round(rows, 12) + 0.0):  # + 0.0 makes -0.0 and 0.0 one
        first.setdefault(row.tobytes(), index)
    return list(first.values())


def _lloyd(gram: NDArray[np.float64], starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Lloyd's iteration from each start; runs that meet go on as one. gram: [n, n], inner products of the rows; starts:
    [S, k], rows as centres. Returns labels [R, n] and inertias [R], R <= S."""
    k = starts.shape[1]
    distances = _distances(gram, np.eye(len(gram))[starts])
    for _ in range(MAX_ITERATIONS):
        labels = _distinct_rows(np.argmin(distances, axis=1))
        members = (labels[:, None, :] == np.arange(k)[:, None]).astype(np.float64)  # [R, k, n]
        sizes = members.sum(axis=2, keepdims=True)
        # A centre that lost all its rows is out: nothing is near it.
        distances = np.where(sizes > 0, _distances(gram, members / np.maximum(sizes, 1.0)), np.inf)
        if (np.argmin(distances, axis=1) == labels).all():
            break
    return labels, np.take_along_axis(distances, labels[:, None, :], axis=1).sum(axis=(1, 2))


def _distinct_rows(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each row [n] of labels [R, n] once."""
    packed = np.ascontiguousarray(labels.astype(np.int32)).view(np.dtype((np.void, 4 * labels.shape[1])))
    return labels[np.unique(packed.ravel(), return_index=True)[1]]


def _distances(gram: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances [R, k, n] of all rows to all centres, rounded so that equal ones compare equal.

    A centre is a mean of rows, given by its weights over them [R, k, n], so that inner products are all that is needed:
    |x_i - c|^2 = G_ii - 2 (w G)_i + w G w.
    """
    products = weights @ gram
    norms = (products * weights).sum(axis=2, keepdims=True)
    distances: NDArray[np.float64] = np.round(np.diagonal(gram) - 2.0 * products + norms, 12)
    return distances
