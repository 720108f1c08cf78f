"""What a run of an untrusted program can end in, and the limits it runs under."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The class of one test's result. Everything but `PASS` counts as a failure."""

    PASS = "pass"
    WRONG_VALUE = "wrong_value"
    ASSERT_FAIL = "assert_fail"
    """A statement that ran inside the sandbox raised AssertionError."""
    EXCEPTION = "exception"
    TIMEOUT = "timeout"
    OOM = "oom"
    OUTPUT_LIMIT = "output_limit"
    FILE_LIMIT = "file_limit"
    FORBIDDEN = "forbidden"
    """Killed by the system call filter. A refused call that merely failed shows as PermissionError."""
    EXIT = "exit"
    """The process ended, with whatever code, before there was a result."""
    CRASH = "crash"
    SYNTAX_ERROR = "syntax_error"
    MISSING_ENTRY_POINT = "missing_entry_point"
    OPAQUE_VALUE = "opaque_value"
    """The result, or a part of it, is not of an exact built-in type (or too large), so it equals nothing."""
    NOT_RUN = "not_run"


@dataclass(frozen=True, slots=True)
class Result:
    """One test's result. Texts come from the program: quote them, never interpret them.

    got:       what was returned or printed, at most 100 characters; empty when there was nothing.
    error:     the exception's class; message: at most 200 characters of its text; line: of the program, 1-based.
    spoofable: the verdict was reached inside the sandbox, where the program could forge it.
    retried:   this is the second try, after a timeout on a busy machine.
    behaviour: equal for two programs exactly when they did the same on this test: for counting votes.
    seconds:   wall time of the test, start to result.
    """

    outcome: Outcome
    got: str = ""
    error: str = ""
    message: str = ""
    line: int | None = None
    spoofable: bool = False
    retried: bool = False
    behaviour: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASS


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one candidate program.

    test_s:    wall seconds of each test.
    memory_mb: address space, the interpreter's own 40 MB or so included.
    output_kb: everything printed, over all tests of a process.
    """

    test_s: float = 5.0
    memory_mb: int = 512
    output_kb: int = 64

    def __post_init__(self) -> None:
        if not 0.05 <= self.test_s <= 300:
            raise ValueError("test_s must be between 0.05 and 300")
        if not 96 <= self.memory_mb <= 1 << 16:
            raise ValueError("memory_mb must be between 96 and 65536")
        if not 1 <= self.output_kb <= 1 << 14:
            raise ValueError("output_kb must be between 1 and 16384")

    def beyond(self, ceiling: "Limits") -> str | None:
        """The name of a field that is above the ceiling's, None if there is none."""
        return next((name for name in self.__slots__ if getattr(self, name) > getattr(ceiling, name)), None)


@dataclass(frozen=True, slots=True)
class Program:
    """A candidate. entry_point: the function that tests call; setup: trusted code run after it, in its namespace."""

    source: str
    entry_point: str | None = None
    setup: str = ""


class SandboxUnavailable(Exception):
    """No allowed backend works here; the text says why and what would help. Not a result of any program."""
