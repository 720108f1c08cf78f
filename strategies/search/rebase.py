"""REBASE: a reward-balanced tree search (arXiv 2408.00724).

    B = N; frontier: the root, N times
    at each depth      one step for each place of the frontier, and its reward R
                       B -= solutions completed, and nodes that are dead
                       W_j = share of B by exp(R_j / T_b);  node j goes on with W_j children, or is pruned at 0
    until              B = 0
    answer             a vote of the solutions, weighted by their rewards

There are no rollouts and no backups. Nodes left open at the depth cap are finished greedily.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.node import Node
from strategies.search.pace import Pace
from strategies.search.rebase_weights import Allocation, RewardTransform, allocate, remaining, transformed
from strategies.search.solutions import ranked
from strategies.search.step_search import SolvingSearch
from strategies.search.valuation import Valuation
from strategies.search.voting import Aggregate, aggregate

if TYPE_CHECKING:
    from strategies.scoring.value import ValueFunction

TRAINED = ("prm", "head")
"""What "auto" takes: with a reward that was not trained, sampling and a vote cost less and do no worse."""


class Rebase(SolvingSearch):
    """Samples N solutions step by step; at each depth the better steps get more of the N places."""

    name: ClassVar = "rebase"

    samples: Annotated[int, Field(ge=1, le=128, description="N: solutions, and places at each depth.")] = 16
    balance_temperature: Annotated[
        float | None,
        Field(
            ge=0.001,
            le=1000,
            description="T_b: how evenly places are shared; lower favours the best. null: 0.1, and 1 with 'logit'.",
        ),
    ] = None
    allocation: Annotated[
        Allocation,
        Field(description="How shares become whole numbers: the authors' code, largest remainders, the paper's Round."),
    ] = "seq_ceil"
    reward_transform: Annotated[
        RewardTransform, Field(description="Shares by the rewards, their log-odds (within 6), or their ranks.")
    ] = "none"
    aggregate: Annotated[Aggregate, Field(description="A solution's weight from the rewards of its steps.")] = "last"
    max_depth: Annotated[int, Field(ge=1, le=200, description="Most steps of a solution in the tree.")] = 25

    @property
    def most_answers(self) -> int:
        return self.samples

    @property
    def temperature_of_balance(self) -> float:
        """T_b."""
        if self.balance_temperature is not None:
            return self.balance_temperature
        return 1.0 if self.reward_transform == "logit" else 0.1

    def reward_kind(self, scorers: "Mapping[str, ValueFunction]") -> str | None:
        """The value function to allocate by; None: sample whole solutions instead."""
        if self.value != "auto":
            return self.value
        trained = (kind for kind in TRAINED if kind in scorers and getattr(scorers[kind], "automatic", True))
        return next(trained, None)

    def check(self, scorers: "Mapping[str, ValueFunction]") -> None:
        if self.value != "auto":
            super().check(scorers)

    async def run(self, context: SearchContext) -> Sequence[Node]:
        kind = self.reward_kind(context.scorers)
        context.tell(value=kind)
        if kind is None:
            return await self._sampled(context)
        tree = _Tree(self, context, Valuation(context, kind))
        try:
            await tree.grow()
        except BudgetExhausted:
            tree.reason = "budget"
        solved, weights = tree.solved()
        context.tell(stopped_by=tree.reason)
        return await self.conclude(context, solved, weights, tree.unsolved())

    async def _sampled(self, context: SearchContext) -> list[Node]:
        """Without a trained reward: N whole solutions and a majority vote."""
        context.tell(stopped_by="no_reward", sampled=True)
        (nodes,) = await context.extend([context.root], self.samples, temperature=self.temperature)
        finished = [node for node in nodes if node.finished]
        ranking = await ranked(context, finished, [1.0] * len(finished), self.answer, "majority")
        return ranking + sorted((node for node in nodes if not node.finished), key=lambda node: -len(node.tokens))


@dataclass(slots=True)
class _Tree:
    """One search's state: places left, open nodes with their places, solutions, and the dead."""

    search: Rebase
    context: SearchContext
    valuation: Valuation
    done: list[Node] = field(default_factory=list)
    dead: list[Node] = field(default_factory=list)
    open: list[Node] = field(default_factory=list)
    reason: str = "solved"

    async def grow(self) -> None:
        """Depth by depth. Raises BudgetExhausted."""
        context, search = self.context, self.search
        pace = Pace(context)
        places = max(search.affordable(pace, search.samples, solved=False), 1)
        self.open, children = [context.root], [places]
        for _ in range(search.max_depth):
            made = [child for group in await search.grow(context, self.open, children) for child in group]
            context.trace.called("depths", 1)
            dead = [child for child in made if child.end != "stop" and (child.finished or not child.step_text.strip())]
            alive = [child for child in made if child not in dead]
            finished = [child for child in alive if child.finished]
            self.open = [child for child in alive if not child.finished]
            self.done += finished
            self.dead += dead
            rewards = dict(zip(alive, await self.valuation.of(alive), strict=True))
            pace.made(len(made))
            places = remaining(places, len(finished), len(dead))
            if places <= 0 or not self.open:
                self.reason = "solved" if self.done else "cut_off"
                return
            context.propose(max(self.open, key=rewards.__getitem__))
            places = search.affordable(pace, places, solved=bool(self.done))
            if places == 0:
                self.reason = "budget"
                return
            shares = transformed([rewards[node] for node in self.open], search.reward_transform)
            children = allocate(shares, places, search.temperature_of_balance, search.allocation)
            for node, count in zip(self.open, children, strict=True):
                context.note(node, children=count)
            self.open = [node for node, count in zip(self.open, children, strict=True) if count]
            children = [count for count in children if count]
            context.commit([*self.done, *self.dead, *self.open])
        self.reason = "max_depth"
        ends = await search.complete(context, self.open)
        self.open = []
        self.dead += [node for node in ends if node.end != "stop"]
        await self.valuation.of([node for node in ends if node.end == "stop"])

    def solved(self) -> tuple[list[Node], list[float]]:
        """The solutions and their weights; also those of a last depth that the budget did not pay to score."""
        nodes = [node for node in self.context.nodes if node.finished and node.end == "stop"]
        weights = []
        for node in nodes:
            rewards = [self.valuation.known(one) for one in node.path]
            weights.append(aggregate([reward for reward in rewards if reward is not None], self.search.aggregate))
        return nodes, weights

    def unsolved(self) -> list[Node]:
        """Open nodes and those cut off, the best first."""
        leaves = [node for node in (*self.open, *self.dead) if node.step]
        return sorted(leaves, key=lambda node: (node.finished, -self.valuation.rank(node), node.number))
