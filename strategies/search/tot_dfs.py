"""Tree of thoughts, depth first, as a baseline of LiteSearch (arXiv 2407.00320): see `tot` for the tree's rules."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.node import Node
from strategies.search.pace import Pace
from strategies.search.solutions import Selection
from strategies.search.step_search import SolvingSearch, bad_step
from strategies.search.tot import DepthFirstTree
from strategies.search.valuation import Valuation


class TotDfs(SolvingSearch):
    """Goes into the first step that is worth enough, and back where none is; the first solution ends it."""

    name: ClassVar = "tot-dfs"

    prune_below: Annotated[float, Field(ge=0, le=1, description="A step worth less is not gone into.")] = 0.5
    max_children: Annotated[int, Field(ge=1, le=32, description="Most steps tried from one state.")] = 5
    max_depth: Annotated[int, Field(ge=1, le=200, description="Most steps of a solution.")] = 40
    max_nodes: Annotated[int, Field(ge=1, le=2000, description="Most steps tried in all.")] = 200
    final: Annotated[Selection, Field(description="How answers are ranked, where `n` asks for several.")] = "best-of-n"

    @property
    def most_answers(self) -> int:
        return 16

    async def run(self, context: SearchContext) -> Sequence[Node]:
        valuation = Valuation(context, self.value_kind(context.scorers))
        context.tell(value=valuation.kind, calibrated=valuation.calibrated)
        tree = DepthFirstTree(
            self.prune_below, self.max_children, self.max_depth, self.max_nodes, solutions_wanted=context.n
        )
        states = [context.root]
        try:
            reason = await self._grow(context, valuation, tree, states)
        except BudgetExhausted:
            reason = "budget"
        context.tell(stopped_by=reason)
        solved = [states[node.number] for node in tree.solutions]
        if not solved:
            # Nothing passed: what was solved all the same, pruned or not scored, is better than an open state.
            solved = [node for node in context.nodes if node.end == "stop"]
        best = tree.best()
        leaves = [] if best is None else [states[best.number]]
        unsolved = [node for node in leaves if node.end != "stop"]
        return await self.conclude(context, solved, [valuation.rank(node) for node in solved], unsolved)

    async def _grow(
        self, context: SearchContext, valuation: Valuation, tree: DepthFirstTree, states: list[Node]
    ) -> str:
        pace = Pace(context)
        while (node := tree.current) is not None:
            if len(states) > 1 and not self.affordable(pace, 1, solved=bool(tree.solutions)):
                return "budget"
            ((child,),) = await self.grow(context, [states[node.number]], 1, first=node.spent)
            value = 0.0 if bad_step(child) else (await valuation.of([child]))[0]
            pace.made(1)
            added = tree.add(value, terminal=child.finished)
            states.append(child)
            if added.pruned:
                context.note(child, pruned=True)
            best = tree.best()
            if best is not None:
                context.propose(states[best.number])
        return "solved" if tree.solutions else "exhausted"
