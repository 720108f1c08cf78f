"""Self-consistency: sample whole solutions and return the answer that most of them give (Wang et al. 2022)."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from strategies.scoring.answer_options import AnswerOptions
from strategies.search.context import SearchContext
from strategies.search.node import Node
from strategies.search.search import Search
from strategies.search.voting import ranked_answers


class Majority(Search):
    """Samples solutions and returns the most frequent answer's first solution."""

    name: ClassVar = "majority"
    whole_answers: ClassVar = True

    samples: Annotated[int, Field(ge=1, le=128, description="Solutions to sample.")] = 8
    answer: AnswerOptions = AnswerOptions()

    @property
    def most_answers(self) -> int:
        return self.samples

    async def run(self, context: SearchContext) -> Sequence[Node]:
        (nodes,) = await context.extend([context.root], self.samples)
        answers = await context.compute(self.answer.canonical, [node.text for node in nodes])
        for node, answer in zip(nodes, answers, strict=True):
            context.note(node, answer=answer)
        winners = [nodes[vote.representative] for vote in ranked_answers(answers) if vote.representative is not None]
        # Behind the distinct answers, for whoever wants more choices than those: the rest, finished ones first.
        return winners + sorted((node for node in nodes if node not in winners), key=lambda node: not node.finished)
