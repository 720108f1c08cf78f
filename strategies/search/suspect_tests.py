"""Generated tests that are likely wrong: programs that can be trusted agree on another value."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TypeVar

from strategies.sandbox.outcome import Outcome, Result
from strategies.search.visible_tests import Origin

WITNESSES = 2
"""Programs that have to agree."""

Item = TypeVar("Item")


def suspect_tests(origins: Sequence[Origin], programs: Sequence[Sequence[Result]]) -> list[int]:
    """The places of generated tests on which two different programs, which pass every given and prompt test, return
    the same other value. None where no test is given or in the prompt: then no program can be trusted more than a test.

    programs: the results of textually different programs, one for each test.
    """
    trusted = [i for i, origin in enumerate(origins) if origin != "generated"]
    if not trusted:
        return []
    witnesses = [results for results in programs if all(results[i].passed for i in trusted)]
    found = []
    for i, origin in enumerate(origins):
        values = [results[i].behaviour for results in witnesses if results[i].outcome is Outcome.WRONG_VALUE]
        if origin == "generated" and values and max(Counter(values).values()) >= WITNESSES:
            found.append(i)
    return found


def without(items: Sequence[Item], places: Collection[int]) -> list[Item]:
    return [item for i, item in enumerate(items) if i not in places]
