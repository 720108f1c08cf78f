"""Which candidates phi-decoding keeps, over many seeds, against probabilities worked out here from the formulae.

The model says `a` (0.55) or `b`, a newline, then one word whose likelihood differs; foresight is greedy, so F is known
exactly: F_a = (log 0.9) / 2, F_b = (log 0.6) / 2. Of four candidates two are drawn. False-alarm rate: p < 1e-7 in each
of three tests, below 1e-6 in all.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from search_stories import END, PROMPT, logits, solve
from torch import Tensor

from models.scripted import ByteTokenizer, scripted_runtime
from strategies.search.phi import Phi

APPLE, PEACH, OTHER = 260, 261, 262
TOKENIZER = ByteTokenizer(pieces=[b"apple", b"peach", b"other"])
A, B, NEWLINE = ord("a"), ord("b"), ord("\n")
F = {"a": math.log(0.9) / 2, "b": math.log(0.6) / 2}
RUNS = 500
TABLE = {
    (): logits({A: 0.55, B: 0.45}, TOKENIZER.vocab_size),
    (A,): logits({NEWLINE: 1.0}, TOKENIZER.vocab_size),
    (B,): logits({NEWLINE: 1.0}, TOKENIZER.vocab_size),
    (A, NEWLINE): logits({APPLE: 0.9, OTHER: 0.1}, TOKENIZER.vocab_size),
    (B, NEWLINE): logits({PEACH: 0.6, OTHER: 0.4}, TOKENIZER.vocab_size),
}
OVER = logits({END: 1.0}, TOKENIZER.vocab_size)


def model(context: Sequence[int]) -> Tensor:
    return TABLE.get(tuple(context[len(PROMPT) :]), OVER)


def softmax(values: Sequence[float], tau: float) -> list[float]:
    weights = [math.exp(value / tau) for value in values]
    return [weight / sum(weights) for weight in weights]


def weights(profile: str, a: int) -> tuple[float, float]:
    """Probabilities of one candidate `a` and one `b` when there are `a` of the former and 4 - a of the latter."""
    advantages = [F["a"]] * a + [F["b"]] * (4 - a)  # F_prev is 0
    shares = [a / 4] * a + [(4 - a) / 4] * (4 - a)
    if profile == "origin":  # nobody's advantage is positive: no clusters
        p = softmax(advantages, 0.1)
    elif profile == "server":
        p = [(x + y) / 2 for x, y in zip(softmax(advantages, 0.1), softmax(shares, 1.0), strict=True)]
    else:
        value = [x + y for x, y in zip(softmax(advantages, 0.6), softmax(shares, 0.6), strict=True)]
        p = softmax(value, 0.6)
    return p[0], p[-1]


def chosen_distribution(profile: str, a: int) -> list[float]:
    """Probabilities that 0, 1 or 2 of the two drawn are `a`: draws without replacement."""
    pa, pb = weights(profile, a)
    first_a, first_b = a * pa, (4 - a) * pb
    both = first_a * ((a - 1) * pa / (1 - pa)) if a > 1 else 0.0
    none = first_b * ((3 - a) * pb / (1 - pb)) if a < 3 else 0.0
    return [none, 1 - both - none, both]


def tail(statistic: float, freedom: int) -> float:
    """The probability of a chi-square at least so large."""
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@pytest.mark.parametrize("profile", ["server", "paper", "origin"])
async def test_selection_follows_the_profile(profile: str) -> None:
    search = Phi.model_validate(
        {
            "profile": profile,
            "beams": 2,
            "rollouts": 2,
            "t_max": 1,
            "width_k": 16,  # nothing is pruned
            "step": {"temperature": 1.0},
            "foresight": {"temperature": 0.0},
        }
    )
    runtime = scripted_runtime(model, TOKENIZER, max_num_seqs=256)
    found: dict[int, Counter[int]] = {1: Counter(), 2: Counter(), 3: Counter()}
    for start in range(0, RUNS, 50):
        for solved in await asyncio.gather(*(solve(runtime, search, seed=start + i) for i in range(50))):
            candidates = [node for node in solved.nodes if node.get("stage") == "rollout"]
            a = sum(node["text"] == "a\n" for node in candidates)
            kept = [node for node in candidates if node.get("chosen")]
            assert len(candidates) == 4
            assert len(kept) == 2
            if a in found:
                assert all(node["F"] == pytest.approx(F[node["text"][0]], abs=1e-5) for node in candidates)
                found[a][sum(node["text"] == "a\n" for node in kept)] += 1
    runtime.close()
    statistic, freedom = 0.0, 0
    for a, counts in found.items():
        runs, expected = sum(counts.values()), chosen_distribution(profile, a)
        assert sum(expected) == pytest.approx(1)
        cells = [(counts[i], runs * p) for i, p in enumerate(expected) if p > 0]
        # A cell with few expected runs joins its neighbour; the chi-square law holds for the others.
        while len(cells) > 1 and min(cells, key=lambda cell: cell[1])[1] < 8:
            small = min(cells, key=lambda cell: cell[1])
            cells.remove(small)
            other = min(cells, key=lambda cell: cell[1])
            cells[cells.index(other)] = (other[0] + small[0], other[1] + small[1])
        statistic += sum((count - mean) ** 2 / mean for count, mean in cells)
        freedom += len(cells) - 1
    assert freedom >= 2
    assert tail(statistic, freedom) > 1e-7


def test_the_profiles_are_far_enough_apart_to_be_told_from_each_other() -> None:
    pairs = [("server", "paper"), ("server", "origin"), ("paper", "origin")]
    for one, other in pairs:
        gap = sum(
            abs(x - y)
            for a in (1, 2, 3)
            for x, y in zip(chosen_distribution(one, a), chosen_distribution(other, a), strict=True)
        )
        assert gap > 0.3, (one, other)
