"""Which of the programs that a search evaluated is the answer, and how its budget and its chance are divided."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from strategies.search.program_forest import first_best


@dataclass(frozen=True, slots=True)
class Candidate:
    """A program as the choice sees it. votes: how many programs behaved as it did on every test."""

    order: int
    passed_given: int
    n_given: int
    passed_generated: int
    n_generated: int
    depth: int
    chars: int
    votes: int


def first_highest(scores: Sequence[float]) -> int:
    """The released code's choice: the first program of the highest score."""
    return first_best(scores)


def preference(candidate: Candidate) -> tuple[float, float, int, int, int, int]:
    """Smaller is better: the rate of given tests, of all tests, votes, depth, length, order."""
    passed, total = candidate.passed_given, candidate.n_given
    given = passed / total if total else 0.0
    passed, total = passed + candidate.passed_generated, total + candidate.n_generated
    return (
        -given,
        -(passed / total if total else 0.0),
        -candidate.votes,
        candidate.depth,
        candidate.chars,
        candidate.order,
    )


def split_programs(k: int) -> tuple[int, int]:
    """Seeds and iterations of a budget of k programs: half each."""
    seeds = max(1, k // 2)
    return seeds, k - seeds


def theme_order(seed: int, n: int) -> list[int]:
    """An order of n themes without repeats; seed i of the search takes theme order[i mod n]."""
    return sorted(range(n), key=lambda i: hashlib.sha256(f"{seed}:theme:{i}".encode()).hexdigest())


def derive_seed(seed: int, role: str, node: str, attempt: int) -> int:
    """The seed of one call of the model: 63 bits, by what the call is for."""
    digest = hashlib.sha256(f"sfs|{seed}|{role}|{node}|{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & ((1 << 63) - 1)
