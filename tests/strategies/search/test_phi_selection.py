"""Which candidates phi-decoding keeps, over many seeds, against probabilities worked out here from the formulae.

The model says `a` (0.55) or `b`, a newline, then one word whose likelihood differs; foresight is greedy, so F is known
exactly: half the log-probability of that word, an end is certain. Of four candidates two are drawn. False-alarm rate:
p < 1e-7 in each of three tests, below 1e-6 in all.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from search_stories import END, PROMPT, logits, solve

from models.scripted import ByteTokenizer, Distribution, scripted_runtime
from strategies.search.phi import Phi

WORDS = [b"apple", b"peach", b"guess", b"other", b"third"]
TOKENIZER = ByteTokenizer(pieces=WORDS)
APPLE, PEACH, OTHERS = 260, 261, (262, 263, 264)
A, B, NEWLINE = ord("a"), ord("b"), ord("\n")
RUNS = 500
LIKELIHOOD = {"server": (0.9, 0.6), "origin": (0.9, 0.6), "paper": (0.9, 0.26)}
"""Of the word behind `a`, and of the one behind `b`: the paper's formula is so flat that it takes more difference."""


def model(profile: str) -> Distribution:
    after_a, after_b = LIKELIHOOD[profile]
    size = TOKENIZER.vocab_size
    table = {
        (): logits({A: 0.55, B: 0.45}, size),
        (A,): logits({NEWLINE: 1.0}, size),
        (B,): logits({NEWLINE: 1.0}, size),
        (A, NEWLINE): logits({APPLE: after_a} | dict.fromkeys(OTHERS, (1 - after_a) / 3), size),
        (B, NEWLINE): logits({PEACH: after_b} | dict.fromkeys(OTHERS, (1 - after_b) / 3), size),
    }
    over = logits({END: 1.0}, size)
    return lambda context: table.get(tuple(context[len(PROMPT) :]), over)


def softmax(values: Sequence[float], tau: float) -> list[float]:
    weights = [math.exp(value / tau) for value in values]
    return [weight / sum(weights) for weight in weights]


def weights(profile: str, a: int) -> tuple[float, float]:
    """Probabilities of one candidate `a` and one `b` when there are `a` of the former and 4 - a of the latter."""
    F = [math.log(likelihood) / 2 for likelihood in LIKELIHOOD[profile]]
    advantages = [F[0]] * a + [F[1]] * (4 - a)  # F_prev is 0
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
    runtime = scripted_runtime(model(profile), TOKENIZER, max_num_seqs=256)
    found: dict[int, Counter[int]] = {1: Counter(), 2: Counter(), 3: Counter()}
    for start in range(0, RUNS, 50):
        for solved in await asyncio.gather(*(solve(runtime, search, seed=start + i) for i in range(50))):
            candidates = [node for node in solved.nodes if node.get("stage") == "rollout"]
            a = sum(node["text"] == "a\n" for node in candidates)
            kept = [node for node in candidates if node.get("chosen")]
            assert len(candidates) == 4
            assert len(kept) == 2
            if a in found:
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
