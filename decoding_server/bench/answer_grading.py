"""Whether an answer is right: equal canonical forms, else math-verify, in a process of its own with a time limit."""

import importlib.util
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType

from strategies.errors import DecodingError
from strategies.scoring.answers import extract
from strategies.scoring.canonical import answers_equal

SECONDS = 10.0
START_SECONDS = 120.0
"""For the worker to start and import sympy, once."""
MAX_CHARACTERS = 4000
TRIES = 2
"""Workers that may die over one answer before nobody judges it."""
TIMEOUT = "timeout"
"""What a row's `grading` says of an answer that took longer than `SECONDS` to compare."""


class GradingFailed(DecodingError):
    """Nothing is known of the answer, since the process that compares answers dies."""


@dataclass(frozen=True, slots=True)
class Judged:
    """timed_out: the comparison took longer than `SECONDS`, which counts as wrong."""

    right: bool
    timed_out: bool = False


def verifies() -> bool:
    """Whether math-verify is installed. It finds more answers right than canonical forms alone."""
    return importlib.util.find_spec("math_verify") is not None


def _verified(gold: str, answer: str) -> bool:
    """Runs in the worker: sympy may hang or take all memory there, and its time limits need the main thread."""
    from math_verify import parse, verify

    logging.disable(logging.ERROR)
    return bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))


class AnswerGrader:
    """Grades answers one by one. Without math-verify installed, canonical forms alone decide.

    timeouts: answers that took too long to compare and count as wrong.
    """

    def __init__(self) -> None:
        self.timeouts = 0
        self.verifies = verifies()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "AnswerGrader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def right(self, gold: str, text: str) -> bool:
        """Whether the solution ends in the right answer. Raises as `judged`."""
        return self.judged(gold, text).right

    def judged(self, gold: str, text: str) -> Judged:
        """The same, and whether that took too long to find out. Raises GradingFailed."""
        answer = extract(text[-MAX_CHARACTERS:]).raw
        if answer is None:
            return Judged(False)
        if answers_equal(gold, answer):
            return Judged(True)
        return self._verify(gold, answer) if self.verifies else Judged(False)

    def _verify(self, gold: str, answer: str) -> Judged:
        for _ in range(TRIES):
            try:
                worker = self._worker()
                try:
                    return Judged(worker.submit(_verified, gold, answer).result(timeout=SECONDS))
                except TimeoutError:
                    self.timeouts += 1
                    self.close()
                    return Judged(False, timed_out=True)
            except (TimeoutError, BrokenProcessPool):  # no worker, which is no fault of the answer
                self.close()
        raise GradingFailed(f"math-verify can't compare answers: its process does not start, or died {TRIES} times")

    def _worker(self) -> ProcessPoolExecutor:
        """Raises TimeoutError and BrokenProcessPool for one that does not answer."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._pool.submit(_verified, "1", "1").result(timeout=START_SECONDS)
        return self._pool

    def close(self) -> None:
        """Ends the worker; a later answer starts another."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
