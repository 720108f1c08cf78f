"""What a value function is: the estimated probability that a partial answer leads to a right one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from strategies.search.context import SearchContext
    from strategies.search.node import Node


class ValueFunction(Protocol):
    """Scores nodes of a search. calibrated: whether the values may be read as probabilities (budgets and thresholds
    do); otherwise only their order counts.

    A value function with an attribute `automatic` that is false is only used by who asks for it, not by "auto".
    """

    @property
    def calibrated(self) -> bool: ...

    async def values(self, context: "SearchContext", nodes: "Sequence[Node]") -> list[float]:
        """A number in 0..1 for each node. Raises RequestFailed for what can't be scored, BudgetExhausted."""
