"""Whether an answer is right: equal canonical forms, else math-verify, in a process of its own with a time limit."""

import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

from strategies.scoring.answers import extract
from strategies.scoring.canonical import answers_equal

SECONDS = 10.0
START_SECONDS = 120.0
"""For the worker to start and import sympy, once."""
MAX_CHARACTERS = 4000


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
        self._pool: ProcessPoolExecutor | None = None
        try:
            import math_verify  # noqa: F401  # only whether it is there
        except ImportError:
            self.verifies = False
        else:
            self.verifies = True

    def __enter__(self) -> "AnswerGrader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def right(self, gold: str, text: str) -> bool:
        """Whether the solution ends in the right answer."""
        answer = extract(text[-MAX_CHARACTERS:]).raw
        if answer is None:
            return False
        if answers_equal(gold, answer):
            return True
        return self.verifies and self._verify(gold, answer)

    def _verify(self, gold: str, answer: str) -> bool:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            self._pool.submit(_verified, "1", "1").result(timeout=START_SECONDS)
            return self._pool.submit(_verified, gold, answer).result(timeout=SECONDS)
        except (TimeoutError, BrokenProcessPool):
            self.timeouts += 1
            self.close()
            return False

    def close(self) -> None:
        """Ends the worker; a later answer starts another."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
