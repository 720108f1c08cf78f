"""Whether a reply is right, by the rule that the data set declares."""

import asyncio
import re
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from decoding_server.bench.answer_grading import AnswerGrader
from decoding_server.bench.code.judging import Judge
from decoding_server.bench.quality.tasks import Task
from strategies.scoring.answer_pattern import AnswerPattern
from strategies.scoring.answers import choice_letter, extract
from strategies.scoring.canonical import answers_equal, canonical, number
from strategies.search.program_replies import program_of

GraderName = Literal["math", "numeric", "exact", "choice", "regex", "contained", "code"]
GRADERS: tuple[str, ...] = get_args(GraderName)
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Graded:
    """answer: what was judged, as found in the reply; None where there was none. outcome: of programs, why. timed_out:
    it took too long to compare, and counts as wrong."""

    correct: bool
    answer: str | None
    outcome: str = ""
    timed_out: bool = False


class Grader(Protocol):
    async def grade(self, task: Task, reply: str, *, cut: bool) -> Graded:
        """cut: whether the reply is not complete. Raises GradingFailed, SandboxUnavailable: nobody can judge."""
        ...

    def close(self) -> None: ...


class TextGrader:
    """All rules that need nothing but the texts; see `grade_text`."""

    def __init__(self, name: str, *, tolerance: float = 0.0, pattern: str | None = None) -> None:
        """Raises ValueError for a pattern where there should be none, or none where there should be one."""
        if (name == "regex") != (pattern is not None):
            raise ValueError("--pattern goes with --grader regex")
        self.name, self.tolerance = name, tolerance
        self.pattern = None if pattern is None else AnswerPattern(pattern, "--pattern")

    async def grade(self, task: Task, reply: str, *, cut: bool) -> Graded:
        return await asyncio.to_thread(grade_text, self.name, task, reply, self.tolerance, self.pattern)

    def close(self) -> None:
        pass


def grade_text(
    name: str, task: Task, reply: str, tolerance: float = 0.0, pattern: AnswerPattern | None = None
) -> Graded:
    """exact: the whole reply, without white space around it. contained: the right answer stands in the reply, upper or
    lower case, as words of their own. choice: the letter that the reply chooses. numeric: the reply's answer (boxed,
    behind `####` or "answer is", else its last number) is a number within `tolerance` of the right one. regex: the last
    match of the pattern, its first group if it has one, equals the right answer in canonical form."""
    if name == "exact":
        return Graded(reply.strip() == task.gold.strip(), reply.strip())
    if name == "contained":
        found = re.search(rf"(?<!\w){re.escape(plain(task.gold))}(?!\w)", plain(reply))
        return Graded(found is not None, task.gold if found else None)
    if name == "choice":
        chosen = choice_letter(reply, task.letters)
        return Graded(chosen == task.gold, chosen)
    if name == "numeric":
        answer = extract(reply).raw
        found_number, gold = number(answer or ""), number(task.gold)
        right = found_number is not None and gold is not None and abs(found_number - gold) <= tolerance
        return Graded(right, answer)
    assert pattern is not None, f"{name} is no rule, or lacks its pattern"
    match = pattern.last_match(reply)
    return Graded(answers_equal(task.gold, match), match)


def plain(text: str) -> str:
    return _SPACE.sub(" ", text).strip().casefold()


class MathGrader:
    """Equal canonical forms, or equal by math-verify where that is installed."""

    def __init__(self) -> None:
        self._grader = AnswerGrader()
        self._one = asyncio.Lock()  # its worker process answers one question at a time

    async def grade(self, task: Task, reply: str, *, cut: bool) -> Graded:
        async with self._one:
            judged = await asyncio.to_thread(self._grader.judged, task.gold, reply)
        return Graded(judged.right, extract(reply).raw, timed_out=judged.timed_out)

    def close(self) -> None:
        self._grader.close()


class CodeGrader:
    """The data set's hidden tests, in a sandbox."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    async def grade(self, task: Task, reply: str, *, cut: bool) -> Graded:
        assert task.code is not None, task.name
        source = program_of(reply, cut=cut)
        (verdict,) = await self._judge.judged(task.code, [source])
        return Graded(verdict.right, source, verdict.outcome)

    def close(self) -> None:
        pass


def check_golds(name: str, tasks: list[Task]) -> None:
    """Raises ValueError for a right answer that nothing could equal under this rule."""
    for task in tasks:
        if name == "numeric" and number(task.gold) is None:
            raise ValueError(f"{task.name}: {task.gold[:80]!r} is no number")
        if name in ("math", "regex", "exact", "contained") and canonical(task.gold) is None:
            raise ValueError(f"{task.name}: {task.gold[:80]!r} is no answer")
