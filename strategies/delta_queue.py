"""An answer on its way to whoever reads it: deltas in order, then the last one or an error."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from strategies.errors import DecodingError
from strategies.runtime import Delta

Item = Delta | DecodingError


class DeltaQueue:
    """The reading side of a `GenerationStream`, for one reader. Everything runs on the reader's event loop."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._arrived = asyncio.Event()

    def deliver(self, item: Item) -> None:
        """Never waits: what bounds the queue is the generation's own length."""
        self._items.append(item)
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Ends behind the delta with a finish reason. Raises the error that was delivered."""
        while True:
            while not self._items:
                self._arrived.clear()
                await self._arrived.wait()
            item = self._items.popleft()
            if isinstance(item, DecodingError):
                raise item
            yield item
            if item.finish_reason is not None:
                return
