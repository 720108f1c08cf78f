"""What a worker reports, read strictly, and what the end of its process means.

The untrusted program can write anything into the result pipe. So a record counts only if it is exactly what may come
next: `start` of the unit after the last one that ended, or the end of the unit that has started. Everything else is
ignored, and the total size is bounded.
"""

import json
import math
import signal
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from strategies.sandbox.inside.codec import Encoded
from strategies.sandbox.outcome import Outcome

MAX_RESULTS = (1 << 20) + 4096
"""Bytes of records from one process."""

Killed = Literal["wall", "output", "results", "files", "closed"]
"""Why the parent ended the process. closed: the program closed the result pipe."""

SIGNALS = {
    signal.SIGXCPU: Outcome.TIMEOUT,
    signal.SIGXFSZ: Outcome.FILE_LIMIT,
    signal.SIGSYS: Outcome.FORBIDDEN,
    signal.SIGKILL: Outcome.OOM,  # not by us, so by the kernel
}
KILLS = {
    "wall": Outcome.TIMEOUT,
    "output": Outcome.OUTPUT_LIMIT,
    "results": Outcome.OUTPUT_LIMIT,
    "files": Outcome.FILE_LIMIT,
    "closed": Outcome.EXIT,
}


@dataclass(slots=True)
class Observation:
    """What happened to one unit. outcome: None for a value, which is then in `value`; size: the record's bytes."""

    outcome: Outcome | None
    value: Encoded | None = None
    error: str = ""
    message: str = ""
    line: int | None = None
    seconds: float = 0.0
    size: int = 0


class Records:
    """Reads the records of one process with `units` units."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.observations: list[Observation] = []
        self.ready = False
        """The worker has confined itself and waits for its job."""
        self.started = False
        """The unit after the observed ones has started."""
        self._since = 0.0
        self._pending = b""
        self._size = 0

    @property
    def complete(self) -> bool:
        return len(self.observations) == self.units

    @property
    def too_large(self) -> bool:
        return self._size > MAX_RESULTS

    def feed(self, data: bytes, now: float) -> None:
        """Takes bytes as they come; now: the parent's clock, seconds."""
        self._size += len(data)
        if self.too_large:
            self._pending = b""
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            record = parse(line)
            if record is not None:
                self._take(record, len(line), now)

    def _take(self, record: dict[str, Any], size: int, now: float) -> None:
        event = record.get("ev")
        if event == "ready":
            self.ready = True
        index = record.get("i")
        if type(index) is not int or index != len(self.observations) or self.complete:
            return
        if event == "start":
            if not self.started:
                self.started, self._since = True, now
            return
        if not self.started:
            return
        observation = observed(record)
        if observation is None:
            return
        observation.seconds, observation.size = now - self._since, size
        self.started = False
        # A program that doesn't compile fails every unit alike.
        copies = self.units - index if observation.outcome is Outcome.SYNTAX_ERROR else 1
        self.observations += [observation] * copies

    def finish(self, returncode: int, killed: Killed | None, now: float, cpu_exhausted: bool = False) -> None:
        """Classifies the unit that was running when the process ended. The rest stays unobserved.

        returncode: negative for a signal, or 128 + signal as bubblewrap reports it.
        """
        if self.complete or not self.started:
            return
        number = -returncode if returncode < 0 else returncode - 128 if returncode > 128 else 0
        message = ""
        if killed is not None:
            outcome = KILLS[killed]
        elif number == signal.SIGKILL and cpu_exhausted:
            outcome = Outcome.TIMEOUT
        elif number in SIGNALS:
            outcome = SIGNALS[signal.Signals(number)]
        elif number:
            outcome, message = Outcome.CRASH, f"signal {number}"
        else:
            outcome, message = Outcome.EXIT, f"exit code {returncode}"
        self.observations.append(Observation(outcome, message=message, seconds=now - self._since))
        self.started = False


def refuse(_: str) -> NoReturn:
    raise ValueError("no such number in a record")


def small_integer(text: str) -> int:
    if len(text) > 18:
        refuse(text)
    return int(text)


def parse(line: bytes) -> dict[str, Any] | None:
    """One record, None for anything that is not one."""
    try:
        record = json.loads(line, parse_float=refuse, parse_constant=refuse, parse_int=small_integer)
    except (ValueError, RecursionError):
        return None
    return record if type(record) is dict else None


def observed(record: dict[str, Any]) -> Observation | None:
    """The meaning of a unit's last record, None if it has none."""
    event, line = record.get("ev"), record.get("line")
    line = line if type(line) is int and 0 < line < 1 << 31 else None
    message = text(record.get("message"), 200)
    if event == "value":
        value = record.get("v")
        return Observation(None, value=value) if type(value) is list else None
    if event == "exc":
        error = text(record.get("type"), 100)
        outcome = {"MemoryError": Outcome.OOM, "AssertionError": Outcome.ASSERT_FAIL}.get(error, Outcome.EXCEPTION)
        return Observation(outcome, error=error, message=message, line=line)
    if event == "syntax":
        return Observation(Outcome.SYNTAX_ERROR, error="SyntaxError", message=message, line=line)
    if event == "missing":
        return Observation(Outcome.MISSING_ENTRY_POINT)
    return None


def text(value: object, limit: int) -> str:
    """A string's start, without what a terminal, a log line or an encoder would stumble over; "" for anything else."""
    if type(value) is not str:
        return ""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in value[:limit])


def cpu_seconds(units: int, test_s: float) -> int:
    """The CPU limit of a process, seconds."""
    return math.ceil(units * test_s) + 1
