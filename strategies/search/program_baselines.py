"""What Scattered Forest Search is compared with, under the same tests, sandbox and budget (sources: its released code).

code-best-of-n  independent programs, until one passes all tests
code-line       one program, reflected on and rewritten (like Reflexion)
code-tree       Monte Carlo tree search whose children are plain rewrites (like LATS)
code-greedy     one greedy program; nothing is run
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from strategies.search.asking import Question
from strategies.search.attempt import Attempt, kept
from strategies.search.coding_search import CodingSearch
from strategies.search.node import Node
from strategies.search.program_forest import ProgramForest
from strategies.search.program_prompts import REPAIR
from strategies.search.uct import SelectionRule
from strategies.search.workshop import Workshop

REFLECTION_TOKENS = 256


class CodeBestOfN(CodingSearch):
    """Samples programs, tests them in a sandbox, and returns the best."""

    name: ClassVar = "code-best-of-n"

    @property
    def rivals(self) -> int:
        return self.k

    async def find(self, work: Workshop) -> None:
        while len(work.attempts) < self.k:
            first = len(work.attempts)
            drafts = await work.first_drafts(min(self.wave, self.k - first), first=first)
            attempts = await work.evaluate(drafts, [1] * len(drafts))
            if any(attempt.solved for attempt in attempts):
                work.stop_reason = "solved"
                return


class CodeLine(CodingSearch):
    """Tests a program in a sandbox, lets the model say what is wrong, and has it rewritten, again and again."""

    name: ClassVar = "code-line"

    submit: Annotated[
        Literal["last", "best"], Field(description="Which program is the answer; the released code's is the last.")
    ] = "last"

    async def find(self, work: Workshop) -> None:
        drafts = await work.first_drafts(1)
        (attempt,) = await work.evaluate(drafts, [1])
        while not attempt.solved and len(work.attempts) < self.k:
            if not work.tests:
                work.stop_reason = "no_tests"
                return
            number = len(work.attempts)
            question = work.question(
                "reflection",
                f"n{attempt.number}",
                work.prompts.reflection_system.format(entry_point=work.function),
                work.prompts.reflection.format(
                    task=work.task,
                    program=attempt.program,
                    results=work.feedback(attempt),
                    entry_point=work.function,
                ),
                temperature=self.code_temperature,
                max_tokens=REFLECTION_TOKENS,
            )
            (reflection,) = await work.context.ask([question])
            first, second = (rewrite(work, attempt, number, reflection.text.strip(), again) for again in (0, 1))
            drafts = await work.write([first], [second])
            kept(drafts)
            (attempt,) = await work.evaluate(drafts, [attempt.depth + 1])
        if attempt.solved:
            work.stop_reason = "solved"

    async def answers(self, work: Workshop) -> Sequence[Node]:
        ranked = work.ranked(self.final)
        if self.submit == "last":
            ranked.sort(key=lambda attempt: -attempt.number)
        return await work.answers(ranked)


class CodeTree(CodingSearch):
    """Grows a tree of rewritten programs by UCT, tests them in a sandbox, and returns the best."""

    name: ClassVar = "code-tree"

    branching: Annotated[int, Field(ge=1, le=8, description="Children of each program.")] = 2
    c: Annotated[float, Field(ge=0, le=100, description="Exploration.")] = 2.0**0.5
    selection: Annotated[SelectionRule, Field(description="How a pass chooses among children.")] = "uct"
    stop: Annotated[
        Literal["eager", "official", "never"],
        Field(description="Ends when any program passes all tests, when a pass meets one, or only at `k`."),
    ] = "eager"

    async def find(self, work: Workshop) -> None:
        forest = ProgramForest(c=self.c, rule=self.selection, slots=self.branching)
        drafts = await work.first_drafts(1)
        for attempt in await work.evaluate(drafts, [1]):
            forest.seed(attempt.score, solved=attempt.solved)
        while len(work.attempts) < self.k:
            if not work.tests:
                work.stop_reason = "no_tests"
                return
            solved = self.stop == "eager" and any(attempt.solved for attempt in work.attempts)
            picked = forest.pick(min(self.wave, self.k - len(work.attempts)), stop_at_solved=self.stop == "official")
            if solved or picked is None:
                work.stop_reason = "solved"
                return
            bases = [work.attempts[job.node.number] for job in picked]
            first = len(work.attempts)
            asked, again = (
                [rewrite(work, base, number, "", retry) for number, base in enumerate(bases, first)] for retry in (0, 1)
            )
            drafts = await work.write(asked, again)
            places = kept(drafts)
            attempts = await work.evaluate([drafts[i] for i in places], [bases[i].depth + 1 for i in places])
            for place, attempt in zip(places, attempts, strict=True):
                job, base = picked[place], bases[place]
                node = forest.add(job, attempt.score, solved=attempt.solved)
                work.context.note(attempt.node, parent_program=base.number, value=node.value)
            self._rescore(work, forest)


class CodeGreedy(CodingSearch):
    """Asks for one program, greedily, in the words of the other searches for programs. Nothing is run."""

    name: ClassVar = "code-greedy"
    runs_programs: ClassVar = False

    async def find(self, work: Workshop) -> None:
        kept(await work.write(*([work.plain_question(0.0, attempt=again)] for again in (0, 1))))


def rewrite(work: Workshop, base: Attempt, number: int, reflection: str, attempt: int) -> Question:
    """Asks for a whole program again. number: of the program to be."""
    user = work.prompts.rewrite.format(
        task=work.task,
        program=base.program,
        results=work.feedback(base),
        reflection=reflection,
        order=REPAIR,
        entry_point=work.function,
    )
    return work.code_question("code", f"n{number}", user, work.search.code_temperature, attempt=attempt)
