"""Self-evaluation: the served model is asked whether a solution so far will lead to the right answer.

    v = p(yes) / (p(yes) + p(no))        averaged over both orders of the options

read from the next token's log-probabilities behind a question: a new turn of the conversation where the template can
write one, else a paragraph behind the solution. It is no probability of success: small models say yes too often and
prefer an option by its letter (Kadavath et al., arXiv 2207.05221, find larger ones fair), hence both orders, and
`calibrated` is False.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from strategies.errors import InvalidRequest
from strategies.text import Tokenizer

if TYPE_CHECKING:
    from strategies.search.context import SearchContext
    from strategies.search.node import Node

QUESTION = "Judge the solution so far. Will it lead to the correct final answer?\n{}\nReply"
TURN = QUESTION + " with A or B alone."
PARAGRAPH = "\n\n" + QUESTION + ":"
ORDERS = ("A) yes\nB) no", "A) no\nB) yes")
YES, NO = "AB", "BA"
"""The letters of yes and no in each order."""
TOP = 50
LEAST_MASS = 0.1
"""Of both options together: with less the model did not answer, and that order says 0.5."""
MARK = "\u2063solution\u2063"


@dataclass(slots=True)
class SelfEvaluation:
    """Implements `ValueFunction`. invalid: how often the model was asked and did not answer with an option."""

    calibrated: bool = False
    invalid: int = field(default=0, init=False)

    async def values(self, context: "SearchContext", nodes: "Sequence[Node]") -> list[float]:
        """Two reads of one next token per node; the solution's own tokens are in the cache. A node whose question does
        not fit the context any more is worth 0.5. Raises BudgetExhausted."""
        tokenizer = context.runtime.tokenizer
        suffixes = [suffix(tokenizer, order, chat=context.is_chat) for order in ORDERS]
        room = context.runtime.info.max_model_len - len(context.generation.prompt) - max(map(len, suffixes)) - 1
        asked = [node for node in nodes if len(node.tokens) <= room]
        reads = [behind(node, tokens, context.runtime.info.eos_token_ids) for node in asked for tokens in suffixes]
        entries = await context.next_logprobs(reads, TOP)
        letters = {letter: spellings(letter, tokenizer) for letter in "AB"}
        shares = [yes_share(dict(entry.top), letters, YES[i % 2], NO[i % 2]) for i, entry in enumerate(entries)]
        invalid = shares.count(None)
        if invalid:
            self.invalid += invalid
            context.trace.called("self_eval_invalid", invalid)
        answered = [0.5 if share is None else share for share in shares]
        values = {node: (answered[2 * i] + answered[2 * i + 1]) / 2 for i, node in enumerate(asked)}
        return [values.get(node, 0.5) for node in nodes]


def suffix(tokenizer: Tokenizer, order: str, *, chat: bool) -> list[int]:
    """The tokens that ask, behind an answer that has no end-of-sequence token."""
    text = turn(tokenizer, TURN.format(order)) if chat else None
    return tokenizer.encode(PARAGRAPH.format(order) if text is None else text, add_special_tokens=False)


def turn(tokenizer: Tokenizer, question: str) -> str | None:
    """What the chat template writes between an assistant's answer and the next one, with a user's question between
    them; None if it can't."""
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": MARK},
        {"role": "user", "content": question},
    ]
    try:
        _, found, rest = tokenizer.render_chat(messages, add_generation_prompt=True).partition(MARK)
    except InvalidRequest:
        return None
    return rest if found and question in rest else None


def behind(node: "Node", tokens: Sequence[int], ends: frozenset[int]) -> "tuple[Node, list[int]]":
    """The node and further tokens that put `tokens` behind its answer: an end-of-sequence token is not repeated."""
    if node.step and node.step[-1] in ends and node.parent is not None:
        return node.parent, [*node.step[:-1], *tokens]
    return node, list(tokens)


def yes_share(logprobs: Mapping[int, float], letters: Mapping[str, Sequence[int]], yes: str, no: str) -> float | None:
    """p(yes) / (p(yes) + p(no)); None where the model hardly answers with either."""
    p = option_masses(logprobs, letters)
    mass = p[yes] + p[no]
    return p[yes] / mass if mass >= LEAST_MASS else None


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
