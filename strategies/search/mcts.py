"""Monte Carlo tree search over steps with a value function, without rollouts (arXiv 2408.00724, appendices B and C).

    descend by UCT (or PUCT) to a node without children; sample several; back up the value of each to the root

The tree's rules are in `uct`. At the depth cap a node's one child is the rest of its solution, greedily.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from strategies.search.boltzmann import softmax
from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.node import Node
from strategies.search.pace import Pace
from strategies.search.step_search import SolvingSearch, bad_step
from strategies.search.uct import MctsTree, SelectionRule
from strategies.search.valuation import Valuation

Q_DIGITS = 6


class Mcts(SolvingSearch):
    """Grows a tree where upper confidence bounds on the values point, and chooses among all that it finished."""

    name: ClassVar = "mcts"

    root_children: Annotated[int, Field(ge=1, le=64, description="Children of the root.")] = 4
    children: Annotated[int, Field(ge=1, le=32, description="Children of any other node.")] = 2
    expansions: Annotated[int, Field(ge=1, le=512, description="Most nodes that get children.")] = 32
    exploration: Annotated[float, Field(ge=0, le=100, description="c: the weight of what was seldom visited.")] = 1.0
    selection: Annotated[
        SelectionRule,
        Field(description="UCT; or PUCT, whose prior is a step's share of its siblings' mean token probabilities."),
    ] = "uct"
    max_depth: Annotated[int, Field(ge=1, le=200, description="Deeper down, solutions are finished greedily.")] = 25

    @property
    def most_answers(self) -> int:
        return min(64, self.expansions + max(self.root_children, self.children))

    async def run(self, context: SearchContext) -> Sequence[Node]:
        valuation = Valuation(context, self.value_kind(context.scorers))
        context.tell(value=valuation.kind)
        tree = MctsTree(self.root_children, self.children, self.expansions, self.exploration, self.selection)
        states = [context.root]
        try:
            reason = await self._grow(context, valuation, tree, states)
        except BudgetExhausted:
            reason = "budget"
        context.tell(stopped_by=reason)
        for node, state in zip(tree.nodes, states, strict=True):
            context.note(state, visits=node.visits, q=round(node.q, Q_DIGITS))
        solved = [node for node in context.nodes if node.end == "stop"]
        leaves = [state for node, state in zip(tree.nodes, states, strict=True) if not node.children and state.step]
        unsolved = sorted(
            (state for state in leaves if state.end != "stop"),
            key=lambda state: (state.finished, -valuation.rank(state), state.number),
        )
        return await self.conclude(context, solved, [valuation.rank(node) for node in solved], unsolved)

    async def _grow(self, context: SearchContext, valuation: Valuation, tree: MctsTree, states: list[Node]) -> str:
        pace = Pace(context)
        solved = False
        while (node := tree.select()) is not None:
            state = states[node.number]
            width = self.affordable(pace, tree.width(node), solved=solved)
            if width == 0 and node is not tree.root:
                return "budget"
            if node.depth >= self.max_depth:
                children = await self.complete(context, [state])
                if context.exhausted:
                    raise BudgetExhausted("the budget is spent")
            else:
                (children,) = await self.grow(context, [state], max(width, 1))
            context.trace.called("expansions", 1)
            bad = [bad_step(child) for child in children]
            scored = [child for child, worthless in zip(children, bad, strict=True) if not worthless]
            known = dict(zip(scored, await valuation.of(scored), strict=True))
            pace.made(len(children))
            priors = softmax([child.mean_logprob or 0.0 for child in children], 1.0)
            tree.expand(
                node, [known.get(child, 0.0) for child in children], [child.finished for child in children], priors
            )
            states += children
            solved = solved or any(child.end == "stop" for child in children)
            best = max(states[1:], key=lambda one: (one.end == "stop", valuation.rank(one), -one.number))
            context.propose(best)
        if not tree.root.closed:
            return "expansions"
        return "solved" if solved else "cut_off"
