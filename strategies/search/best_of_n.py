"""Best of n and weighted majority: sample whole solutions and let a value function choose (arXiv 2408.00724, 3.1)."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from strategies.scoring.answer_options import AnswerOptions
from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.node import Node
from strategies.search.valued import ValuedSearch
from strategies.search.voting import ranked_answers


class BestOfN(ValuedSearch):
    """Samples solutions and returns the one of highest value."""

    name: ClassVar = "best-of-n"
    whole_answers: ClassVar = True

    samples: Annotated[int, Field(ge=1, le=128, description="Solutions to sample.")] = 8

    @property
    def most_answers(self) -> int:
        return self.samples

    async def run(self, context: SearchContext) -> Sequence[Node]:
        nodes, values = await self.valued_samples(context)
        return [nodes[i] for i in sorted(range(len(nodes)), key=lambda i: (not nodes[i].finished, -values[i]))]

    async def valued_samples(self, context: SearchContext) -> tuple[list[Node], list[float]]:
        """Solutions and their values; all 0 where the budget did not pay for values."""
        (nodes,) = await context.extend([context.root], self.samples)
        try:
            return nodes, await context.values(nodes, self.value_kind(context.scorers))
        except BudgetExhausted:
            return nodes, [0.0] * len(nodes)


class WeightedMajority(BestOfN):
    """Samples solutions; each votes for its answer with its value."""

    name: ClassVar = "weighted-majority"

    answer: AnswerOptions = AnswerOptions()

    async def run(self, context: SearchContext) -> Sequence[Node]:
        nodes, values = await self.valued_samples(context)
        answers = await context.compute(self.answer.canonical, [node.text for node in nodes])
        for node, answer in zip(nodes, answers, strict=True):
            context.note(node, answer=answer)
        # Without values every vote counts the same.
        votes = ranked_answers(answers, values if any(values) else None)
        winners = [nodes[vote.representative] for vote in votes if vote.representative is not None]
        return winners + sorted((node for node in nodes if node not in winners), key=lambda node: not node.finished)
