"""Rows for the tests of the baseline transforms, and each definition written again in plain Python floats and lists,
one row at a time, straight from its source."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from strategies.runtime import Generation
from strategies.sampling import pipeline
from strategies.sampling.row import Row
from strategies.sampling.standard import sampling
from strategies.sampling.transform import Transform
from strategies.text import Tokenizer

INF = math.inf


def baseline_row(
    *transforms: Transform,
    prompt: Sequence[int] = (0,),
    output: Sequence[int] = (),
    seed: int = 0,
    branch: tuple[int, ...] = (0,),
    temperature: float = 1.0,
    tokenizer: Tokenizer | None = None,
) -> Row:
    """A row with this history and these transforms."""
    generation = Generation(
        prompt=list(prompt),
        sampling=sampling(temperature=temperature, transforms=transforms),
        seed=seed,
        branch=branch,
    )
    row = Row(generation, frozenset(), tokenizer)
    for token in output:
        row.append(token)
    return row


def process_row(logits: Sequence[float], row: Row) -> list[float]:
    """The pipeline's result for a batch of this one row."""
    return pipeline.process(torch.tensor([list(logits)]), [row])[0].tolist()


def kept_by(logits: Sequence[float], *transforms: Transform) -> set[int]:
    """Tokens that transforms leave; checks that the values of those are what they were."""
    found = process_row(logits, baseline_row(*transforms))
    left = {v for v, x in enumerate(found) if x > -INF}
    assert left
    before: Tensor = torch.tensor(list(logits))
    assert all(found[v] == before[v].item() for v in left)
    return left


def distribution(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


def entropy_nats(probabilities: Sequence[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


def typical_set(logits: Sequence[float], mass: float, slack: float) -> set[int]:
    """Tokens from the most typical on until their mass is `mass`, with all whose distance from the entropy is no more
    than that of the last one plus `slack`."""
    p = distribution(logits)
    expected = entropy_nats(p)
    distance = {v: abs(-math.log(q) - expected) for v, q in enumerate(p) if q > 0}
    total, last = 0.0, 0.0
    for v in sorted(distance, key=lambda v: distance[v]):
        if total >= mass and total > 0:
            break
        total, last = total + p[v], distance[v]
    return {v for v, d in distance.items() if d <= last + slack}


def at_least(logits: Sequence[float], cutoff: float) -> set[int]:
    """Tokens of probability at least `cutoff`, or the most likely ones."""
    p = distribution(logits)
    return {v for v, q in enumerate(p) if q > 0 and (q >= cutoff or logits[v] == max(logits))}


def eta(logits: Sequence[float], epsilon: float) -> float:
    return min(epsilon, math.sqrt(epsilon) * math.exp(-entropy_nats(distribution(logits))))


def sigma_threshold(logits: Sequence[float], n: float) -> float:
    finite = [x for x in logits if x > -INF]
    mean = math.fsum(finite) / len(finite)
    return max(finite) - n * math.sqrt(math.fsum((x - mean) ** 2 for x in finite) / len(finite))


def exclude_top(logits: Sequence[float], threshold: float) -> set[int]:
    """What is left when all choices of probability at least `threshold` go but the least likely ones of them."""
    p = distribution(logits)
    top = [x for x, q in zip(logits, p, strict=True) if q > 0 and q >= threshold]
    return {v for v, q in enumerate(p) if q > 0 and (not top or logits[v] <= min(top))}


def repeated_ngram(tokens: Sequence[int], size: int) -> set[int]:
    tokens = list(tokens)
    if len(tokens) < size - 1:
        return set()
    suffix = tokens[len(tokens) - size + 1 :]
    return {tokens[i + size - 1] for i in range(len(tokens) - size + 1) if tokens[i : i + size - 1] == suffix}


def dry_lengths(tokens: Sequence[int], breakers: set[int], allowed: int, last_n: int) -> dict[int, int]:
    """Longest repetition, of at most 50 tokens, that each next token would continue; by comparing every position."""
    tokens = list(tokens)[-last_n:] if last_n >= 0 else list(tokens)
    found: dict[int, int] = {}
    for position in range(len(tokens) - 1):
        length = 0
        while (
            length < min(50, position + 1)
            and tokens[position - length] == tokens[-1 - length]
            and tokens[position - length] not in breakers
        ):
            length += 1
        following = tokens[position + 1]
        if length >= allowed and following not in breakers:
            found[following] = max(found.get(following, 0), length)
    return found


def bad_word_ends(sequences: Sequence[Sequence[int]], output: Sequence[int]) -> set[int]:
    output = list(output)
    return {
        s[-1] for s in sequences if len(s) - 1 <= len(output) and output[len(output) - len(s) + 1 :] == list(s[:-1])
    }
