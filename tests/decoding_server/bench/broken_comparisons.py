"""Stand-ins for math-verify that die or hang. Light, since every worker process imports them."""

import os
import time
from pathlib import Path

MARK = "TEST_ANSWER_GRADING_MARK"
PING = "1"
"""The right answer of the question that asks whether a worker is there."""


def dies(gold: str, answer: str) -> bool:
    os._exit(1)


def dies_once(gold: str, answer: str) -> bool:
    mark = Path(os.environ[MARK])
    if gold != PING and not mark.exists():
        mark.touch()
        os._exit(1)
    return True


def hangs(gold: str, answer: str) -> bool:
    if gold != PING:
        time.sleep(60)
    return True
