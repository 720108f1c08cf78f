"""Beam search over steps with a value function: keep the best states of a depth, continue each several times.

    n candidates at each depth: m continuations of each of the n / m states kept before (at first, n of the root)
    the n / m best live on; a solution among them keeps its place to the end
    independent: the n / m beams do not compete, each keeps its own best (DVTS, diverse verifier tree search)

With n = 25 and m = 5 it is tree of thoughts, breadth first, as LiteSearch's paper runs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.node import Node
from strategies.search.pace import Pace
from strategies.search.solutions import Selection
from strategies.search.step_beam_places import StepBeamPlaces
from strategies.search.step_search import SolvingSearch, bad_step
from strategies.search.valuation import Valuation


class StepBeam(SolvingSearch):
    """Keeps the best partial solutions of each depth and continues each of them several times."""

    name: ClassVar = "step-beam"

    beams: Annotated[int, Field(ge=1, le=128, description="n: candidates at each depth; a multiple of samples.")] = 16
    samples: Annotated[int, Field(ge=1, le=32, description="m: continuations of each state that is kept.")] = 4
    independent: Annotated[bool, Field(description="The n / m beams do not compete (DVTS).")] = False
    max_depth: Annotated[int, Field(ge=1, le=200, description="Most steps of a solution in the tree.")] = 40
    final: Annotated[Selection, Field(description="How the answer is chosen among the finished solutions.")] = (
        "best-of-n"
    )

    @model_validator(mode="after")
    def _whole_beams(self) -> "StepBeam":
        if self.beams % self.samples:
            message = f"must be a multiple of samples ({self.samples})"
            raise PydanticCustomError("value", "{message}", {"message": message, "field": "beams"})
        return self

    @property
    def most_answers(self) -> int:
        return self.beams // self.samples

    async def run(self, context: SearchContext) -> Sequence[Node]:
        valuation = Valuation(context, self.value_kind(context.scorers))
        context.tell(value=valuation.kind)
        tree = _Tree(self, context, valuation)
        try:
            await tree.grow()
        except BudgetExhausted:
            tree.reason = "budget"
        context.tell(stopped_by=tree.reason)
        # A depth whose values were not paid for is lost, but for what it solved if nothing else is.
        solved = tree.solved or [node for node in context.nodes if node.end == "stop" and node not in tree.lost]
        return await self.conclude(context, solved, [valuation.rank(node) for node in solved], tree.live)


@dataclass(slots=True)
class _Tree:
    """One search's state: states that live, solutions that keep a place, and what fell out."""

    search: StepBeam
    context: SearchContext
    valuation: Valuation
    live: list[Node] = field(default_factory=list)
    solved: list[Node] = field(default_factory=list)
    lost: set[Node] = field(default_factory=set)
    reason: str = "solved"

    async def grow(self) -> None:
        """Depth by depth. Raises BudgetExhausted."""
        context, search = self.context, self.search
        places = StepBeamPlaces(search.beams, search.samples, search.independent)
        pace = Pace(context)
        frontier, counts = [context.root], [search.beams]
        group_of: dict[Node, int] = {}
        for _ in range(search.max_depth):
            wanted = sum(counts)
            paid = search.affordable(pace, wanted, solved=bool(self.solved))
            if paid == 0 and frontier != [context.root]:
                self.reason = "budget"
                return
            if paid < wanted:
                counts = shared(max(paid, 1), len(frontier))
            grown = await search.grow(context, frontier, counts)
            context.trace.called("depths", 1)
            for node, group in zip(frontier, grown, strict=True):
                for i, child in enumerate(group):
                    group_of[child] = i // search.samples if node is context.root else group_of[node]
            made = [child for group in grown for child in group]
            scored = [child for child in made if not bad_step(child)]
            known = dict(zip(scored, await self.valuation.of(scored), strict=True))
            pace.made(len(made))
            values = [known.get(child, 0.0) for child in made]
            kept, ended = places.keep(values, [child.finished for child in made], [group_of[child] for child in made])
            self.live = [made[i] for i in kept]
            self.solved += [made[i] for i in ended if made[i].end == "stop"]
            cut = [made[i] for i in ended if made[i].end != "stop"]
            for i, child in enumerate(made):
                if i not in kept and i not in ended:
                    self.lost.add(child)
                    context.note(child, pruned=True)
            best = [*self.solved, *self.live] or cut
            context.propose(max(best, key=lambda node: (node.end == "stop", self.valuation.rank(node))))
            if not self.live:
                self.live = cut
                self.reason = "solved" if self.solved else "cut_off"
                return
            context.commit([*self.solved, *self.live])
            frontier, counts = self.live, [search.samples] * len(self.live)
        self.reason = "max_depth"
        ends = await search.complete(context, self.live)
        self.solved += [node for node in ends if node.end == "stop"]
        self.live = [node for node in ends if node.end != "stop"]
        await self.valuation.of([node for node in ends if node.end == "stop"])


def shared(steps: int, nodes: int) -> list[int]:
    """So many steps over nodes that are ordered best first, as evenly as they go; the last may get none."""
    return [steps // nodes + (i < steps % nodes) for i in range(nodes)]
