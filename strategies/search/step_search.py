"""Searches that grow solutions step by step: what a step is, when a solution is complete, what a bad step is."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Literal

from pydantic import Field

from strategies.scoring.answer_options import AnswerOptions
from strategies.scoring.answers import last_boxed
from strategies.search.context import BLANK_LINE, NEWLINE, BudgetExhausted, SearchContext
from strategies.search.node import Node
from strategies.search.pace import Pace
from strategies.search.solutions import Selection, ranked
from strategies.search.valued import ValuedSearch

StepEnd = Literal["newline", "blank_line", "chunk"]
STEP_ENDS: dict[StepEnd, tuple[str, ...]] = {"newline": NEWLINE, "blank_line": BLANK_LINE, "chunk": ()}

MAX_STEP_CHARACTERS = 1024
"""A longer step is worth nothing (LiteSearch's released code)."""
COMPLETION = 1
"""Stage of the noise of solutions that are finished in one go."""


class StepSearch(ValuedSearch):
    """Base of the searches over steps.

    A step ends behind its separator or at `step_tokens`. The step that carries the answer ends its solution, as does
    the end of the sequence, a client's stop string, or `max_tokens`.
    """

    step: Annotated[
        StepEnd, Field(description="What ends a step: a line, a blank line, or `step_tokens` tokens whatever they say.")
    ] = "newline"
    step_tokens: Annotated[int, Field(ge=1, le=4096, description="Most tokens of a step; it is cut there.")] = 256
    temperature: Annotated[
        float | None, Field(ge=0, le=5, description="For sampled steps; null: the request's temperature.")
    ] = None
    solution_end: Annotated[
        Literal["answer", "sequence"],
        Field(description="Whether the step that carries an answer is the last, or only the end of the sequence ends."),
    ] = "answer"
    answer: Annotated[AnswerOptions, Field(description="How answers are found in solutions.")] = AnswerOptions()

    async def grow(
        self,
        context: SearchContext,
        nodes: Sequence[Node],
        n: int | Sequence[int],
        *,
        first: int = 0,
        temperature: float | Sequence[float | None] | None = None,
        stage: int = 0,
    ) -> list[list[Node]]:
        """`n` next steps of each node; those that end their solution are finished, with the end "stop". Raises
        BudgetExhausted; what was made until then is among the context's nodes, and a cut step counts as nothing."""
        children = await context.extend(
            nodes,
            n,
            step_ends=STEP_ENDS[self.step],
            max_tokens=self.step_tokens,
            temperature=self.temperature if temperature is None else temperature,
            first=first,
            stage=stage,
        )
        await self._mark_final(context, [child for group in children for child in group])
        if context.exhausted:
            raise BudgetExhausted("the budget is spent")
        return children

    async def complete(self, context: SearchContext, nodes: Sequence[Node], *, stage: int = COMPLETION) -> list[Node]:
        """Each node's solution, finished by greedy steps; where the budget ends, as far as they went."""
        ends = list(nodes)
        while (open_ := [i for i, node in enumerate(ends) if not node.finished]) and not context.exhausted:
            before = len(context.nodes)
            with suppress(BudgetExhausted):  # the nodes are there all the same
                await self.grow(context, [ends[i] for i in open_], 1, temperature=0.0, stage=stage)
            for i, node in zip(open_, context.nodes[before:], strict=True):
                ends[i] = node if node.step or node.finished else ends[i]
        return ends

    async def _mark_final(self, context: SearchContext, nodes: Sequence[Node]) -> None:
        candidates = [node for node in nodes if node.end in ("step", "length")]
        if self.solution_end == "sequence" or not candidates:
            return
        texts = [completed_lines(node) for node in candidates]
        final = await context.compute(lambda: [self.answer.is_final(text) for text in texts])
        for node, ends in zip(candidates, final, strict=True):
            if ends:
                node.finished, node.end = True, "stop"
                context.note(node, finished=True, end="stop")


class SolvingSearch(StepSearch):
    """Base of the searches that may run out of budget before anything is solved, and so keep something back for it.

    final: how the answer is chosen among the solutions.
    """

    final: Annotated[Selection, Field(description="How the answer is chosen among the finished solutions.")] = (
        "weighted-majority"
    )
    answer_reserve: Annotated[
        int,
        Field(
            ge=0,
            le=65536,
            description="Tokens of the budget kept back, until there is a solution, to finish the best one with.",
        ),
    ] = 128

    def affordable(self, pace: Pace, steps: int, *, solved: bool) -> int:
        """How many of `steps` the budget pays for; the reserve is not for them."""
        return pace.affords(steps, 0 if solved else self.answer_reserve)

    async def conclude(
        self, context: SearchContext, solved: Sequence[Node], weights: Sequence[float], unsolved: Sequence[Node]
    ) -> list[Node]:
        """The answers, best first. unsolved: other leaves, best first; the first open one is finished greedily if
        nothing is solved and the budget still pays for it."""
        rest = list(unsolved)
        best = next((node for node in rest if not node.finished), None)
        if not solved and best is not None and not context.exhausted:
            context.propose(best)
            context.tell(completed_greedily=True)
            (end,) = await self.complete(context, [best])
            rest = [end, *(node for node in rest if node is not best)]
        ranking = await ranked(context, solved, weights, self.answer, self.final)
        return [*ranking, *rest]


def bad_step(node: Node) -> bool:
    """Whether a step is worth nothing: blank, the step before over again, longer than 1,024 characters, or cut off by
    the length limit. The end of a sequence alone is no blank step: the solution that it ends counts."""
    text = node.step_text
    blank = not text.strip() and node.end != "stop"
    repeated = bool(text) and node.parent is not None and node.parent.depth > 0 and text == node.parent.step_text
    return blank or repeated or len(text) > MAX_STEP_CHARACTERS or cut_off(node)


def completed_lines(node: Node) -> str:
    """The lines that a step completed, whole, also where an earlier step began them. What a step that was cut leaves
    unfinished may be half an answer; a box is complete once its braces balance."""
    assert node.parent is not None
    start = node.text.rfind("\n", 0, len(node.parent.text)) + 1
    lines = node.text[start:]
    if node.end == "step" or last_boxed(lines) is not None:
        return lines
    return lines[: lines.rfind("\n") + 1]


def cut_off(node: Node) -> bool:
    """Whether the solution ran into its length limit instead of an end."""
    return node.finished and node.end != "stop"
