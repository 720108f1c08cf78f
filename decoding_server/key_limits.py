"""What each API key uses of the server, and where it stops.

Limits of a key (see `api_keys`) hold for each of its requests as it arrives. Tokens are counted when a request has
ended, so a key may overdraw by what its running requests compute; it then waits until that is made up for. All
times are of the monotonic clock, everything is in memory, and a restart begins anew.

Beside its own limits a key may hold no more sequences, running or waiting, than there is room left for others: one key
that floods the server gets half of it, two a third each, and there is room for whoever comes next.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from decoding_server.api_keys import ApiKey, KeyRing
from decoding_server.errors import KeyLimited, failure_of
from decoding_server.metrics import KeyMetrics

MINUTE, DAY = 60.0, 86400.0
BUSY_SECONDS = 1.0
"""What a client is told to wait for one of its own requests to end."""


@dataclass(slots=True)
class Allowance:
    """Fills up to `limit` in `seconds`, evenly. It may be overdrawn."""

    limit: int
    seconds: float
    level: float
    since: float

    @classmethod
    def full(cls, limit: int, seconds: float, now: float) -> "Allowance":
        return cls(limit, seconds, limit, now)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until there is this much, 0.0 if there is."""
        rate = self.limit / self.seconds
        self.level = min(float(self.limit), self.level + (now - self.since) * rate)
        self.since = now
        return max(0.0, (amount - self.level) / rate)

    def take(self, amount: float) -> None:
        self.level -= amount


@dataclass(slots=True)
class KeyUse:
    """What a tenant has in use."""

    requests: int = 0
    sequences: int = 0
    allowances: dict[tuple[str, int], Allowance] = field(default_factory=dict)

    def allowance(self, what: str, limit: int, seconds: float, now: float) -> Allowance:
        """The present one, full at first and when the limit has changed."""
        found = self.allowances.get((what, limit))
        if found is None:
            for old in [one for one in self.allowances if one[0] == what]:
                del self.allowances[old]
            found = self.allowances[what, limit] = Allowance.full(limit, seconds, now)
        return found


class KeyLimits:
    """capacity: sequences that may run and wait at once. clock: seconds that never go back."""

    def __init__(
        self, capacity: int, keys: KeyRing, metrics: KeyMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.capacity = capacity
        self.keys = keys
        self.metrics = metrics
        self.clock = clock
        self.uses: dict[str, KeyUse] = {}
        self.sequences = 0

    def admit(self, key: ApiKey) -> "KeyPass":
        """Leave for one request. Raises KeyLimited."""
        use = self.uses.setdefault(key.tenant, KeyUse())
        try:
            self._check(key, use)
        except KeyLimited:
            self.metrics.of(key.label)[1].inc()
            raise
        use.requests += 1
        return KeyPass(self, key, use)

    def _check(self, key: ApiKey, use: KeyUse) -> None:
        now = self.clock()
        if key.concurrent_requests is not None and use.requests >= key.concurrent_requests:
            raise KeyLimited(f"This API key may run {key.concurrent_requests} requests at once.", BUSY_SECONDS)
        requests = None
        if key.requests_per_minute is not None:
            requests = use.allowance("requests", key.requests_per_minute, MINUTE, now)
            if wait := requests.wait(1, now):
                raise KeyLimited(f"This API key may send {key.requests_per_minute} requests a minute.", wait)
        for limit, seconds, unit in ((key.tokens_per_minute, MINUTE, "minute"), (key.tokens_per_day, DAY, "day")):
            # A whole token: what is owed must have been made up for.
            if limit is not None and (wait := use.allowance(unit, limit, seconds, now).wait(1, now)):
                raise KeyLimited(f"This API key may compute {limit} tokens a {unit}.", wait, quota=unit == "day")
        if requests is not None:
            requests.take(1)

    def charge(self, key: ApiKey, use: KeyUse, tokens: int) -> None:
        now = self.clock()
        for limit, seconds, unit in ((key.tokens_per_minute, MINUTE, "minute"), (key.tokens_per_day, DAY, "day")):
            if limit is not None:
                allowance = use.allowance(unit, limit, seconds, now)
                allowance.wait(0, now)
                allowance.take(tokens)

    def forget_idle(self) -> None:
        """Drops what keys that are gone have left, so that changing keys for years fills no memory."""
        known = {key.tenant for key in self.keys.keys}
        for tenant in [one for one, use in self.uses.items() if one not in known and not use.requests]:
            del self.uses[tenant]


class KeyPass:
    """One request of a key, from its arrival to its end."""

    __slots__ = ("_limits", "_refused", "_sequences", "_use", "key")

    def __init__(self, limits: KeyLimits, key: ApiKey, use: KeyUse) -> None:
        self._limits, self._use, self.key = limits, use, key
        self._sequences = 0
        self._refused = False

    def queue(self, sequences: int) -> None:
        """The request is about to queue so many. Raises KeyLimited for more than the key's share."""
        limits = self._limits
        if len(limits.keys.keys) > 1:
            room = limits.capacity - limits.sequences
            # One more request is never too many for whoever has none: the runtime knows whether its queue is full.
            if self._use.sequences and self._use.sequences + sequences > room - sequences:
                self._refused = True
                raise KeyLimited(
                    f"This API key has {self._use.sequences} sequences running or waiting, its share of the queue.",
                    BUSY_SECONDS,
                )
        self._use.sequences += sequences
        self._sequences += sequences
        limits.sequences += sequences

    def end(self, tokens: int) -> None:
        """tokens: what forward passes computed for it."""
        self._use.requests -= 1
        self._use.sequences -= self._sequences
        self._limits.sequences -= self._sequences
        admitted, refused, computed = self._limits.metrics.of(self.key.label)
        (refused if self._refused else admitted).inc()
        computed.inc(tokens)
        self._limits.charge(self.key, self._use, tokens)
        self._limits.forget_idle()


class LimitKeys:
    """Middleware behind the key guard: holds the observed routes to their key's limits, and charges them at the end."""

    def __init__(self, app: ASGIApp, limits: KeyLimits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        observer, key = state.get("observer"), state.get("api_key")
        if observer is None or key is None:
            await self.app(scope, receive, send)
            return
        observer.record.key = key.name
        try:
            leave = self.limits.admit(key)
        except KeyLimited as error:
            await failure_of(error).response()(scope, receive, send)
            return
        observer.leave = leave
        try:
            await self.app(scope, receive, send)
        finally:
            meter = observer.record.meter
            spend = None if meter is None else meter.spend
            leave.end(0 if spend is None else spend.target_tokens + spend.draft_tokens + spend.scorer_tokens)
