"""Scattered Forest Search (Light et al., arXiv 2411.05010): several first programs of different styles, each the root
of a tree whose edges are directions of improvement; tests decide, UCT chooses, all branches share what was learned.

    scattering: directions are asked for several at a time, so they differ
    foresting:  every seed is written under another theme
    scouting:   after each change, the model rewrites one list of lessons, which the next directions are asked with
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from strategies.search.asking import Question
from strategies.search.attempt import Attempt, kept
from strategies.search.coding_search import CodingSearch, Temperature
from strategies.search.context import BudgetExhausted
from strategies.search.program_choice import split_programs
from strategies.search.program_forest import Direction, Expansion, ProgramForest, ProgramNode
from strategies.search.program_prompts import STOCK, THEMES
from strategies.search.program_replies import directions_of, lessons_of, same_words
from strategies.search.search import fault
from strategies.search.uct import SelectionRule
from strategies.search.workshop import Workshop

DIRECTION_TOKENS = 512
LESSON_TOKENS = 400
DIRECTION_TRIES = 3
NO_LESSONS = "None"
FIRST_DIRECTION = "Direction 1:"
"""How the reply begins for a model that wrote something else before: small ones like to write the program again."""
Theme = Annotated[str, Field(min_length=1, max_length=500)]


class ScatteredForest(CodingSearch):
    """Grows trees of programs by directions of improvement, tests them in a sandbox, and returns the best."""

    name: ClassVar = "scattered-forest"

    seeds: Annotated[int | None, Field(ge=1, le=128, description="First programs, at most `k`; null: half of `k`.")] = (
        None
    )
    directions: Annotated[int, Field(ge=1, le=8, description="Directions asked for at once.")] = 2
    c: Annotated[
        float | None, Field(ge=0, le=100, description="Exploration; null: the square root of 2, with puct 2.")
    ] = None
    selection: Annotated[SelectionRule, Field(description="How a pass chooses among children.")] = "uct"
    themes: Annotated[
        Literal["instruction", "role", "none"] | Annotated[tuple[Theme, ...], Field(max_length=64, strict=False)],
        Field(description="What makes first programs differ: styles, characters, nothing, or texts of your own."),
    ] = "instruction"
    tree: Annotated[
        bool, Field(description="Whether changed programs are changed again; false: only the best seed is.")
    ] = True
    scout: Annotated[bool, Field(description="Whether lessons are kept.")] = True
    stop: Annotated[
        Literal["eager", "official", "never"],
        Field(description="Ends when any program passes all tests, when a pass meets one, or only at `k`."),
    ] = "eager"
    direction_temperature: Annotated[Temperature, Field(description="For directions; null: the request's.")] = 0.7

    @model_validator(mode="after")
    def _consistent(self) -> "ScatteredForest":
        if not self.tree:
            # Without a tree no pass goes from a program to its children, so these would do nothing.
            idle = {"selection": self.selection == "puct", "c": self.c is not None, "stop": self.stop == "official"}
            if given := [name for name, asked in idle.items() if asked]:
                raise fault(given[0], "has no meaning without a tree")
        return self

    @property
    def first_programs(self) -> int:
        return min(self.seeds or split_programs(self.k)[0], self.k)

    @property
    def rivals(self) -> int:
        return self.first_programs

    async def find(self, work: Workshop) -> None:
        c = self.c if self.c is not None else 2.0 if self.selection == "puct" else 2.0**0.5
        forest = ProgramForest(m=self.directions, c=c, rule=self.selection, flat=not self.tree)
        try:
            await self._grow(work, forest)
        finally:
            for node in forest.nodes:
                self._note(work, node)

    @staticmethod
    def _note(work: Workshop, node: ProgramNode) -> None:
        """Tells the trace of a program's place in the forest, as it is now."""
        work.context.note(
            work.attempts[node.number].node,
            parent_program=node.parent.number if node.parent is not None and node.parent.number >= 0 else None,
            direction=node.direction.text if node.direction else None,
            value=round(node.value, 6),
            visits=node.visits,
        )

    async def _grow(self, work: Workshop, forest: ProgramForest) -> None:
        themes = THEMES[self.themes] if isinstance(self.themes, str) else self.themes
        drafts = await work.first_drafts(self.first_programs, themes)
        for first in range(0, len(drafts), self.wave):
            wave = drafts[first : first + self.wave]
            attempts = await work.evaluate(wave, [1] * len(wave))
            added = [forest.seed(attempt.score, solved=attempt.solved) for attempt in attempts]
            self._rescore(work, forest)
            for node in added:
                self._note(work, node)
            if self.stop != "never" and any(attempt.solved for attempt in work.attempts):
                work.stop_reason = "solved"
                return
        if len(drafts) < self.first_programs:
            raise BudgetExhausted("the budget cut first programs off")
        if not work.tests:
            work.stop_reason = "no_tests"
            return
        lessons = NO_LESSONS
        while len(work.attempts) < self.k:
            if self.stop == "eager" and any(attempt.solved for attempt in work.attempts):
                work.stop_reason = "solved"
                return
            picked = forest.pick(min(self.wave, self.k - len(work.attempts)), stop_at_solved=self.stop == "official")
            if picked is None:
                work.stop_reason = "solved"
                return
            jobs = await self._scatter(work, picked, lessons)
            jobs, attempts = await self._carry_out(work, jobs)
            children = [
                forest.add(
                    job,
                    attempt.score,
                    solved=attempt.solved,
                    closed=attempt.key == work.attempts[job.node.number].key,
                )
                for job, attempt in zip(jobs, attempts, strict=True)
            ]
            self._rescore(work, forest)
            for job, child in zip(jobs, children, strict=True):
                for node in (child, *job.path[1:]):
                    self._note(work, node)
            last = len(work.attempts) == self.k or (self.stop == "eager" and any(one.solved for one in attempts))
            if self.scout and not last:
                lessons = await self._scout(work, jobs, attempts, lessons)

    async def _scatter(self, work: Workshop, picked: list[Expansion], lessons: str) -> list[Expansion]:
        """Gives the directions of new expansions their texts. Returns the expansions that have one: a model may propose
        fewer than it was asked for, but each node that was picked gets at least one."""
        nodes = {job.node: None for job in picked if job.new}
        for attempt in range(DIRECTION_TRIES):
            empty = [node for node in nodes if all(one.text is None for one in unwritten(node, self.directions))]
            if not empty:
                break
            replies = await work.context.ask([self._directions(work, node, lessons, attempt) for node in empty])
            for node, reply in zip(empty, replies, strict=True):
                known = {same_words(one.text) for one in node.directions if one.text is not None}
                texts = [one for one in directions_of(reply.text, self.directions) if same_words(one) not in known]
                work.counts["replies_without_direction"] += not texts
                for direction, text in zip(unwritten(node, self.directions), texts, strict=False):
                    direction.text = text
                    direction.logprob = reply.logprob_of(text) if self.selection == "puct" else 0.0
        for node in nodes:
            new = unwritten(node, self.directions)
            if new[0].text is None:
                new[0].text = STOCK[(len(node.directions) - len(new)) % len(STOCK)]
                work.counts["stock_directions"] += 1
            for direction in new:
                if direction.text is None:
                    direction.state = "done"
                    node.directions.remove(direction)
            texts = [direction.text for direction in new if direction.text is not None]
            work.context.trace.happened("directions", program=node.number, directions=texts)
        return [job for job in picked if job.direction.text is not None]

    def _directions(self, work: Workshop, node: ProgramNode, lessons: str, attempt: int) -> Question:
        base = work.attempts[node.number]
        fields = {
            "task": work.task,
            "program": base.program,
            "results": work.feedback(base),
            "lessons": lessons,
            "m": self.directions,
            "entry_point": work.function,
        }
        return work.question(
            "directions",
            f"n{node.number}",
            work.prompts.directions_system.format(entry_point=work.function),
            work.prompts.directions.format(**fields),
            attempt=attempt + DIRECTION_TRIES * len(node.directions),
            temperature=self.direction_temperature,
            max_tokens=DIRECTION_TOKENS,
            scored=self.selection == "puct",
            prefix=FIRST_DIRECTION if attempt else "",
        )

    async def _carry_out(self, work: Workshop, jobs: Sequence[Expansion]) -> tuple[list[Expansion], list[Attempt]]:
        """Those of the expansions that the budget let the model carry out, and the programs."""
        questions, again = [], []
        for place, job in enumerate(jobs, len(work.attempts)):
            base = work.attempts[job.node.number]
            user = work.prompts.apply.format(
                task=work.task,
                program=base.program,
                results=work.feedback(base),
                direction=job.direction.text,
                entry_point=work.function,
            )
            questions.append(work.code_question("code", f"n{place}", user, self.code_temperature))
            again.append(work.code_question("code", f"n{place}", user, self.code_temperature, attempt=1))
        drafts = await work.write(questions, again)
        places = kept(drafts)
        done = [jobs[place] for place in places]
        attempts = await work.evaluate([drafts[place] for place in places], [job.node.depth + 1 for job in done])
        return done, attempts

    async def _scout(self, work: Workshop, jobs: Sequence[Expansion], attempts: Sequence[Attempt], lessons: str) -> str:
        """New lessons; the old ones where the reply holds none, or too many."""
        outcomes = []
        for job, attempt in zip(jobs, attempts, strict=True):
            base = work.attempts[job.node.number]
            outcomes.append(
                work.prompts.outcome.format(
                    program=base.program,
                    results=work.feedback(base),
                    direction=job.direction.text,
                    new_program=attempt.program,
                    new_results=work.feedback(attempt),
                    score=f"{base.score:.2f}",
                    new_score=f"{attempt.score:.2f}",
                    entry_point=work.function,
                )
            )
        question = work.question(
            "insights",
            f"n{attempts[-1].number}",
            work.prompts.lessons_system.format(entry_point=work.function),
            work.prompts.lessons.format(
                task=work.task, outcomes="\n\n".join(outcomes), lessons=lessons, entry_point=work.function
            ),
            temperature=0.0,
            max_tokens=LESSON_TOKENS,
        )
        (reply,) = await work.context.ask([question])
        found = lessons_of(reply.text)
        work.counts["replies_without_lessons"] += found is None
        if self.trace == "full":
            work.context.tell(lessons=found or lessons)
        work.context.trace.happened("lessons", lessons=found or lessons)
        return found or lessons


def unwritten(node: ProgramNode, m: int) -> list[Direction]:
    """The directions that a node got last, which the model is still to write."""
    return node.directions[-m:]
