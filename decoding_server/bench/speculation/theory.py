"""What block efficiency should be, from the distributions that were met, beside what it was.

Of sampled rounds two predictions are made from the draft's and the target's distributions. Given the tree that was
drawn, each method's rule says with which probability each node is reached, hence the expected tokens. And before the
draw, at the root, the acceptance of the first level has a closed form: sum min(p, q) for a chain, the recursion's and
k-SEQ's for the others. Both are exact, so the difference to what happened has mean 0.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.torch_runtime.speculation import Round
from strategies.speculative.acceptance import (
    chain_acceptance,
    k_seq_acceptance,
    tree_block_efficiency,
    with_replacement_by_try,
    without_replacement_by_try,
)
from strategies.speculative.rejection import probabilities
from strategies.speculative.support import support_columns
from strategies.speculative.verify import Verdict

ENUMERABLE = 2_000_000
"""Numbers held at most while refused draws are enumerated; beyond, a round has no closed form."""


@dataclass(slots=True)
class Prediction:
    """Expected and observed values of one quantity over the same rounds."""

    expected: list[float] = field(default_factory=list)
    observed: list[float] = field(default_factory=list)

    def add(self, expected: float, observed: float) -> None:
        self.expected.append(expected)
        self.observed.append(observed)

    def summary(self) -> dict[str, float]:
        """Means, and the standard error of their difference."""
        count = len(self.expected)
        if not count:
            return {"rounds": 0}
        differences = [o - e for e, o in zip(self.expected, self.observed, strict=True)]
        mean = sum(differences) / count
        variance = sum((one - mean) ** 2 for one in differences) / max(1, count - 1)
        return {
            "rounds": count,
            "expected": sum(self.expected) / count,
            "observed": sum(self.observed) / count,
            "standard_error": math.sqrt(variance / count),
        }


class TheoryCheck:
    """Watches an engine's rounds (`Engine.on_round`); of every `every`-th it predicts what it should yield."""

    def __init__(self, method: str, every: int = 3) -> None:
        self._method, self._every, self._seen = method, every, 0
        self.tokens = Prediction()
        self.first_level = Prediction()

    def __call__(self, one: Round, logits: Tensor, verdict: Verdict) -> None:
        """logits: float32 [N+1, V], the target's at every node of the tree."""
        self._seen += 1
        if self._seen % self._every or not len(one.tree):
            return
        self.tokens.add(tree_block_efficiency(one.method.rule, one.tree, logits), len(verdict.tokens))
        row = one.tree.draft_logprobs.get(0)
        if row is not None:
            expected = first_acceptance(self._method, row, logits[0], len(one.tree.tries[0]))
            if expected is not None:
                self.first_level.add(expected, float(bool(verdict.path)))


def first_acceptance(method: str, draft: Tensor, target: Tensor, tries: int) -> float | None:
    """Probability that one of `tries` draws at a node is accepted; None where there is no closed form.

    draft, target: logits [V]. Computed on the draft's support, with one entry for all other tokens.
    """
    columns = support_columns(draft[None])
    inside = probabilities(target)[columns]
    p = torch.cat([probabilities(draft)[columns], inside.new_zeros(1)])
    q = torch.cat([inside, (1.0 - inside.sum()).clamp(min=0.0)[None]])
    match method:
        case "chain":
            return chain_acceptance(p, q)
        case "multi-draft":
            return sum(with_replacement_by_try(p, q, tries))
        case "spectr":
            return k_seq_acceptance(p, q, tries)
        case "rsd-c":
            try:
                return sum(without_replacement_by_try(p, q, tries, ENUMERABLE))
            except ValueError:
                return None
    return None
