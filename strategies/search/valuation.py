"""What the nodes of one search are worth: asked for once per state, and remembered."""

from collections.abc import Sequence

from strategies.search.context import SearchContext
from strategies.search.node import Node


class Valuation:
    """The values of one search by one value function. Equal states (same tokens, both finished or not) are scored once:
    a score must not change between two looks, and siblings often coincide at a low temperature."""

    def __init__(self, context: SearchContext, kind: str) -> None:
        self.kind = kind
        self.calibrated = context.scorers[kind].calibrated
        self._context = context
        self._known: dict[tuple[tuple[int, ...], bool], float] = {}

    async def of(self, nodes: Sequence[Node]) -> list[float]:
        """A value in 0..1 for each node. Raises BudgetExhausted, RequestFailed."""
        new = {self._state(node): node for node in reversed(nodes) if self._state(node) not in self._known}
        values = await self._context.values(list(new.values())[::-1], self.kind)
        self._known.update(zip(list(new)[::-1], values, strict=True))
        for node in nodes:
            if "value" not in node.notes:
                self._context.note(node, value=self._known[self._state(node)])
        return [self._known[self._state(node)] for node in nodes]

    def known(self, node: Node) -> float | None:
        """The value found before; None for a node that was not scored."""
        return self._known.get(self._state(node))

    def rank(self, node: Node) -> float:
        """The same to sort by: what the budget did not pay to score is worth nothing."""
        return self._known.get(self._state(node), 0.0)

    @staticmethod
    def _state(node: Node) -> tuple[tuple[int, ...], bool]:
        return node.tokens, node.finished
