"""What is known of one HTTP request: filled while it runs, read by metrics, log and traces when it has ended.

All times are seconds of `time.monotonic`, the clock of `strategies.budget.Meter`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from strategies.budget import Budget, BudgetUnit, Spend

Outcome = Literal["finished", "failed", "cancelled"]

STATUS_CLIENT_GONE = 499
"""nginx's code for a client that closed the connection first; nobody receives it, it is for logs and metrics."""


class RequestMeter(Protocol):
    """What a record reads of the request's meter (`strategies.budget.Meter`).

    `admitted` is when the engine first scheduled one of the request's sequences, or None before that. The engine
    thread writes while a cancelled request winds down, so numbers of such a request may miss its last step.
    """

    @property
    def budget(self) -> Budget: ...

    @property
    def spend(self) -> Spend: ...

    @property
    def exhausted(self) -> BudgetUnit | None: ...

    @property
    def admitted(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a request's work, from `started` to `ended`, with what it counted."""

    name: str
    started: float
    ended: float
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended - self.started)


@dataclass(slots=True)
class RequestRecord:
    """One request. `model` and `strategy` are names the server knows; both are empty if it failed before they were.

    key: the name of the API key, where it has one.
    status: of the reply, or what it would have been had it not begun when the request failed; 499: the client went.
    finish_reasons: by choice, None for one that has not ended. phases: those that the strategy reported, kept for
    traces only; phase_seconds: their sums by name. prompts and answers: kept only where the log shall have them.
    """

    id: str
    endpoint: str
    started: float = field(default_factory=time.monotonic)
    started_ns: int = field(default_factory=time.time_ns)
    trace_context: Mapping[str, str] = field(default_factory=dict)
    trace_id: str | None = None
    key: str | None = None

    model: str = ""
    strategy: str = ""
    stream: bool = False
    n: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None

    meter: RequestMeter | None = None
    submitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: list[str | None] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    phases_dropped: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    prompts: Sequence[str] = ()
    answers: list[list[str]] = field(default_factory=list)

    outcome: Outcome | None = None
    status: int | None = None
    error: str | None = None

    @property
    def seconds(self) -> float:
        """From the arrival of the request to its end, or to now."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    @property
    def seconds_to_first_token(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.started

    def engine_phases(self) -> list[Phase]:
        """queue, prefill and decode, as far as the request came.

        queue: submission to admission; prefill: to the first token; decode: to the last token. A phase in which the
        request ended is cut there. Where the runtime does not tell the admission, prefill includes the queue.
        """
        if self.submitted is None or self.meter is None:
            return []
        end = time.monotonic() if self.ended is None else self.ended
        spend = self.meter.spend
        started, admitted, phases = self.submitted, self.meter.admitted, []
        if admitted is not None or spend.target_tokens == 0:
            phases.append(Phase("queue", started, end if admitted is None else admitted))
        if admitted is None and spend.target_tokens == 0:
            return phases
        computed: dict[str, int] = {"prompt_tokens": self.prompt_tokens, "cached_tokens": spend.cached_tokens}
        first = end if self.first_token is None else self.first_token
        phases.append(Phase("prefill", started if admitted is None else admitted, first, computed))
        if self.first_token is not None and self.last_token is not None:
            generated = {"completion_tokens": self.completion_tokens, "forward_passes": spend.forward_passes}
            phases.append(Phase("decode", self.first_token, self.last_token, generated))
        return phases
