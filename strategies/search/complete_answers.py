"""Complete answers that a search saw on its way, for the moment when its budget runs out."""

from collections.abc import Sequence

from strategies.search.committed_prefix import committed_length
from strategies.search.context import SearchContext
from strategies.search.node import Node


class CompleteAnswers:
    """The best of the latest step first. What was sent to the client narrows down which of them can still be given."""

    def __init__(self, context: SearchContext) -> None:
        self._context = context
        self._nodes: list[Node] = []

    @property
    def best(self) -> Node | None:
        """The first that begins with what has been sent."""
        sent = tuple(self._context.committed)
        return next((node for node in self._nodes if node.tokens[: len(sent)] == sent), None)

    def add(self, nodes: Sequence[Node | None]) -> None:
        """Puts what is complete of these in front, in their order."""
        self._nodes[:0] = [node for node in nodes if node is not None and node.finished]

    def commit(self, nodes: Sequence[Node]) -> None:
        """Sends what these nodes share. Under a budget never so much that no complete answer would be left to give."""
        best = self.best
        if self._context.limited and best is not None:
            shared = nodes[0].tokens[: committed_length([node.tokens for node in nodes])]
            if all(node.tokens[: len(shared)] != shared for node in self._nodes):
                nodes = [*nodes, best]
        self._context.commit(nodes)

    def first(self, nodes: Sequence[Node]) -> list[Node]:
        """Answers for all choices, the first of `nodes` first, different texts before repeated ones: these nodes, then
        others that are complete; without any, what there is of one."""
        fallback = self.best or self._context.fallback()
        found = list(nodes) or [fallback]
        distinct: list[Node] = []
        for node in [*found, *self._nodes]:
            if len(distinct) < self._context.n and all(node.text != other.text for other in distinct):
                distinct.append(node)
        return distinct + [node for node in found if node not in distinct]
