"""A request's budget where the engine asks nobody before it computes: what sequences may still cost is set aside."""

import asyncio
from collections.abc import Sequence

from strategies.budget import BudgetUnit, Meter
from strategies.runtime import ModelInfo


class Account:
    """All sequences of one request draw on it. Only the engine's event loop touches it.

    limited: whether the budget has limits of amount; without, nothing is counted here.
    """

    def __init__(self, meter: Meter, info: ModelInfo, block: int) -> None:
        """block: tokens of a block of vLLM's prefix cache, 0 without one."""
        budget = meter.budget
        self.meter, self.holders = meter, 0
        self.limited = (budget.forward_tokens, budget.output_tokens, budget.flops) != (None, None, None)
        self._info, self._block = info, block
        self._tokens, self._flops, self._outputs, self._held = 0, 0.0, 0, 0
        self._computed: set[int] = set()
        self._changed = asyncio.Event()

    def estimate(self, tokens: Sequence[int]) -> int:
        """Tokens of a prompt that are still to be computed, one at least: what this request has computed before is
        taken for cached."""
        if not self._block:
            return len(tokens)
        known = 0
        for key in self._keys(tokens):
            if key not in self._computed:
                break
            known += self._block
        return len(tokens) - min(known, len(tokens) - 1)

    def computed(self, tokens: Sequence[int]) -> None:
        """These are in the prefix cache now."""
        if self._block and self.limited:
            self._computed.update(self._keys(tokens))

    async def reserve(self, fresh: int, length: int, outputs: int) -> BudgetUnit | None:
        """Sets aside what computing the last `fresh` of `length` tokens costs, and `outputs` tokens, if need be after
        others have given back what they hold. The unit that doesn't cover it, or None."""
        while (unit := self.try_reserve(fresh, length, outputs)) is not None and self._held:
            self._changed.clear()
            await self._changed.wait()
        return unit

    def try_reserve(self, fresh: int, length: int, outputs: int) -> BudgetUnit | None:
        """As `reserve`, at once."""
        flops = self._info.flops(fresh, length - fresh)
        unit = self.meter.lacks(tokens=self._tokens + fresh, flops=self._flops + flops, outputs=self._outputs + outputs)
        if unit is None:
            self._tokens, self._flops = self._tokens + fresh, self._flops + flops
            self._outputs, self._held = self._outputs + outputs, self._held + 1
        return unit

    def give_back(self, fresh: int, length: int, outputs: int) -> None:
        """Ends what `reserve` has set aside; what was really spent is charged to the meter."""
        self._tokens -= fresh
        self._flops -= self._info.flops(fresh, length - fresh)
        self._outputs, self._held = self._outputs - outputs, self._held - 1
        self._changed.set()

    def _keys(self, tokens: Sequence[int]) -> list[int]:
        """One for each whole block, which depends on all tokens up to its end."""
        keys, key = [], 0
        for end in range(self._block, len(tokens) + 1, self._block):
            key = hash((key, *tokens[end - self._block : end]))
            keys.append(key)
        return keys
