"""Self-evaluation: the served model is asked whether a solution so far will lead to the right answer.

    v = p(A) / (p(A) + p(B))        averaged over both orders of the options

read from the next token's log-probabilities behind a question that is appended to the solution. It is no probability
of success: small models say yes too often and prefer an option by its letter (Kadavath et al., arXiv 2207.05221, find
larger ones fair), hence both orders, and `calibrated` is False.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from strategies.text import Tokenizer

if TYPE_CHECKING:
    from strategies.search.context import SearchContext
    from strategies.search.node import Node

QUESTION = "\n\nIs the solution so far correct, and will it end in the right answer?\n{}\nReply:"
ORDERS = ("A) yes\nB) no", "A) no\nB) yes")
TOP = 50
LEAST_MASS = 0.1
"""Of both options together: with less the model did not answer, and the value is 0.5."""


@dataclass(slots=True)
class SelfEvaluation:
    """Implements `ValueFunction`. invalid: how often the model did not answer with an option."""

    calibrated: bool = False
    invalid: int = field(default=0, init=False)

    async def values(self, context: "SearchContext", nodes: "Sequence[Node]") -> list[float]:
        """Two reads of one next token per node; the solution's own tokens are in the cache."""
        tokenizer = context.runtime.tokenizer
        suffixes = [tokenizer.encode(QUESTION.format(order), add_special_tokens=False) for order in ORDERS]
        entries = await context.next_logprobs([(node, suffix) for node in nodes for suffix in suffixes], TOP)
        letters = {letter: spellings(letter, tokenizer) for letter in "AB"}
        values = []
        for i in range(len(nodes)):
            shares = []
            for order in range(2):
                p = option_masses(dict(entries[2 * i + order].top), letters)
                mass = p["A"] + p["B"]
                yes = "AB"[order]
                shares.append(p[yes] / mass if mass >= LEAST_MASS else 0.5)
                self.invalid += mass < LEAST_MASS
            values.append(sum(shares) / 2)
        return values


def spellings(letter: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of the single tokens that write the letter, with and without a space."""
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in (letter, f" {letter}")]
    return [ids[0] for ids in encoded if len(ids) == 1]


def option_masses(logprobs: Mapping[int, float], letters: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Probability of each letter, all spellings together; what is not among the most likely tokens counts as 0."""
    return {
        letter: sum(math.exp(logprobs[token]) for token in set(ids) if token in logprobs)
        for letter, ids in letters.items()
    }
