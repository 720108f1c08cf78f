"""A search in a package of its own: `"decoding": {"search": {"type": "longest", "samples": 4}}`."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from strategies.search.context import SearchContext
from strategies.search.node import Node
from strategies.search.search import Search


class Longest(Search):
    """Samples answers and returns the longest that ended by itself."""

    name: ClassVar = "longest"
    whole_answers: ClassVar = True

    samples: Annotated[int, Field(ge=1, le=32, description="Answers to sample.")] = 4

    @property
    def most_answers(self) -> int:
        return self.samples

    async def run(self, context: SearchContext) -> Sequence[Node]:
        (nodes,) = await context.extend([context.root], self.samples)
        for node in nodes:
            context.note(node, length=len(node.text))
        return sorted(nodes, key=lambda node: (not node.finished, -len(node.text)))
