"""What searches for programs are measured by: pass@k, pass@any by programs evaluated, and the programs' diversity."""

import difflib
import io
import math
import tokenize
from collections.abc import Mapping, Sequence
from itertools import combinations


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate from n samples, some of which are correct (arXiv 2107.03374)."""
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod((n - correct - i) / (n - i) for i in range(k))


def pass_any_curve(histogram: Mapping[int, float], k: int) -> list[float]:
    """histogram: share of problems by the index of their first right program. The share solved after 1..k programs."""
    total, curve = 0.0, []
    for index in range(k):
        total += histogram.get(index, 0.0)
        curve.append(total)
    return curve


def mean_iterations(histogram: Mapping[int, float], k: int) -> tuple[float, float, float]:
    """(share solved, mean index of the first right program, the same without the problems that the first program
    solved); an unsolved problem counts as k."""
    solved = sum(share for index, share in histogram.items() if index < k)
    mean = sum(index * share for index, share in histogram.items() if index < k) + k * (1.0 - solved)
    first = histogram.get(0, 0.0)
    return solved, mean, mean / (1.0 - first) if first < 1.0 else 0.0


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: the least number of insertions, deletions and substitutions.

    One column of the table at a time, as two bit sets of where it rises and falls by one downwards (Myers 1999, in the
    form of Hyyrö 2003): milliseconds where cell by cell takes a second.
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << i
    every, last = (1 << len(a)) - 1, 1 << len(a) - 1
    rises, falls, distance = every, 0, len(a)
    for character in b:
        equal = places.get(character, 0)
        level = (((equal & rises) + rises) ^ rises) | equal | falls
        right_rises = falls | ~(level | rises) & every
        right_falls = rises & level
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = (right_rises << 1 | 1) & every
        rises = right_falls << 1 & every | ~(level | right_rises) & every
        falls = right_rises & level
    return distance


def levenshtein_similarity(programs: Sequence[str]) -> float:
    """The mean over pairs of 1 - distance / length of the longest program of all; the released code's measure."""
    longest = max(map(len, programs))
    return _mean([1 - edit_distance(a, b) / longest for a, b in combinations(programs, 2)])


def token_similarity(programs: Sequence[str]) -> float:
    """The mean over pairs of the ratio of difflib's matching over Python's tokens, white space aside."""
    tokens = [
        [token.string for token in tokenize.generate_tokens(io.StringIO(program).readline) if token.string.strip()]
        for program in programs
    ]
    return _mean([difflib.SequenceMatcher(None, a, b).ratio() for a, b in combinations(tokens, 2)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
