"""Values from the operator's own verifier over HTTP. Its address is configured, never taken from a request.

    POST {"version": 1, "items": [{"id": 0, "question": ..., "steps": [...], "text": ..., "complete": false}, ...]}
    200  {"values": [0.7, ...]}     one number in 0..1 per item, in the same order

A call that fails (no answer in time, another status, values that are not such numbers) is made once more; then the
search fails, or its nodes are worth 0.5, as configured. Redirects are not followed.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import httpx

from strategies.errors import RequestFailed
from strategies.search.context import SearchContext
from strategies.search.node import Node

log = logging.getLogger(__name__)

Policy = Literal["error", "neutral"]
ATTEMPTS = 2
MOST_ITEMS = 256
"""Nodes of one call."""
NEUTRAL = 0.5


class VerifierError(Exception):
    """The verifier did not answer as it should."""


class HttpVerifier:
    """Implements `ValueFunction`. failures: calls that failed twice."""

    calibrated = False

    def __init__(self, url: str, *, timeout: float = 2.0, policy: Policy = "error") -> None:
        """timeout: seconds, of one call as a whole."""
        self.url = url
        self.policy = policy
        self.failures = 0
        self._timeout = timeout
        self._client: httpx.AsyncClient | None = None

    async def values(self, context: SearchContext, nodes: Sequence[Node]) -> list[float]:
        """Raises RequestFailed where the verifier fails and the policy is "error"."""
        items = [item(i, context, node) for i, node in enumerate(nodes)]
        values: list[float] = []
        for start in range(0, len(items), MOST_ITEMS):
            values += await self._some_values(items[start : start + MOST_ITEMS])
        return values

    async def close(self) -> None:
        """Closes its connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _some_values(self, items: list[dict[str, Any]]) -> list[float]:
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                return checked(await self._ask(items), len(items))
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, VerifierError) as error:
                reason = str(error) or type(error).__name__
                log.warning("the verifier failed: %s", reason)
        self.failures += 1
        if self.policy == "error":
            raise RequestFailed(f"the verifier that values partial answers failed: {reason}")
        return [NEUTRAL] * len(items)

    async def _ask(self, items: list[dict[str, Any]]) -> Any:
        if self._client is None:  # belongs to the event loop that it first works on
            self._client = httpx.AsyncClient(timeout=self._timeout)
        async with asyncio.timeout(self._timeout):  # httpx's own limits each wait for some bytes
            response = await self._client.post(self.url, json={"version": 1, "items": items})
        if response.status_code != 200:
            raise VerifierError(f"status {response.status_code}")
        try:
            return response.json()
        except ValueError as error:
            raise VerifierError("the answer is not JSON") from error


def item(number: int, context: SearchContext, node: Node) -> dict[str, Any]:
    """What the verifier is told of a node."""
    return {
        "id": number,
        "question": context.question,
        "steps": node.steps,
        "text": node.text,
        "complete": node.finished,
    }


def checked(content: Any, count: int) -> list[float]:
    """The values of an answer. Raises VerifierError unless they are `count` numbers in 0..1."""
    values = content.get("values") if isinstance(content, dict) else None
    if not isinstance(values, list) or len(values) != count:
        raise VerifierError(f"the answer must hold {count} values")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise VerifierError("a value is not a number")
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise VerifierError(f"a value is {value}, outside 0..1")
    return [float(value) for value in values]
