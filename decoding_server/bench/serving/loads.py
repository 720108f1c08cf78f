"""When requests are sent: at a rate, whatever becomes of those before (open loop), or as others end (closed loop)."""

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["closed", "poisson", "constant"]


@dataclass(frozen=True, slots=True)
class Load:
    """value: requests in flight of a closed loop, requests a second of an open one."""

    kind: Kind
    value: float

    @property
    def name(self) -> str:
        shown = f"{self.value:g}"
        return f"concurrency {shown}" if self.kind == "closed" else f"{self.kind} {shown}/s"

    def arrivals(self, count: int, seed: int) -> list[float]:
        """Seconds after the start at which each request of an open loop is sent; the first one at 0."""
        if self.kind == "constant":
            return [i / self.value for i in range(count)]
        draw = random.Random(f"{seed}|{self.value}")
        times = [0.0]
        for _ in range(count - 1):
            times.append(times[-1] + draw.expovariate(self.value))
        return times[:count]
