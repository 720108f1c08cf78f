"""LiteSearch: guided best-first search over steps with a budget of children per node (arXiv 2407.00320; AAAI 2025).

    greedy pass        v_hat its value, d_hat its number of steps
    repeat             s = argmax v(s) + lambda p(s);  s gets one child (incremental) or all it has left (batch)
    until              a finished solution is worth more than theta, or one of the other rules of `litesearch_tree`
    answer             the best finished solution, or the greedy one if that is worth strictly more

The first child of a node is greedy, so along the greedy path the tree repeats the greedy pass: its steps are reused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from strategies.errors import InvalidRequest
from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.litesearch_answer import LiteSearchFinal, Solution, final_answer, soft_vote
from strategies.search.litesearch_budget import LiteSearchRule
from strategies.search.litesearch_tree import (
    VALUE_DIGITS,
    Expansion,
    LiteSearchOptions,
    LiteSearchTree,
    uncalibrated,
)
from strategies.search.node import Node
from strategies.search.pace import Pace
from strategies.search.search import fault
from strategies.search.solutions import distinct
from strategies.search.step_search import StepSearch, bad_step
from strategies.search.valuation import Valuation

if TYPE_CHECKING:
    from strategies.scoring.value import ValueFunction

THETA = 0.8
FALLBACK = 2
"""Stage of the noise of the samples that the fallback votes on."""


class LiteSearch(StepSearch):
    """Best-first search over steps: the more a node promises, the fewer children it needs."""

    name: ClassVar = "litesearch"

    rule: Annotated[
        LiteSearchRule, Field(description="The budgets and stops of the authors' code, or those of the paper.")
    ] = "released"
    expansion: Annotated[
        Expansion, Field(description="All the children that a chosen node has left at once, or one at a time.")
    ] = "batch"
    max_children: Annotated[int, Field(ge=1, le=32, description="B: most children of a node.")] = 10
    expected_accuracy: Annotated[
        float, Field(ge=0.01, le=0.999, description="Epsilon: with this probability one of the children is to succeed.")
    ] = 0.9
    value_threshold: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Theta: a finished solution worth more ends the search; null: 0.8 for calibrated values, no "
            "such end for others.",
        ),
    ] = None
    progress_weight: Annotated[
        float, Field(ge=0, le=1, description="Lambda: what progress along the greedy solution's length counts (paper).")
    ] = 0.0
    max_iterations: Annotated[int, Field(ge=1, le=1000, description="N: most expansions.")] = 100
    max_finished: Annotated[
        int | None, Field(ge=1, le=128, description="So many finished solutions end the search; null: 5 (released).")
    ] = None
    min_value: Annotated[
        float | None,
        Field(ge=0, le=1, description="A best node worth less ends the search; null: 0.01, less for uncalibrated."),
    ] = None
    greedy_value_cap: Annotated[
        float, Field(ge=0, le=1, description="Most that the greedy solution's value counts in the budgets.")
    ] = 1.0
    static_budget: Annotated[bool, Field(description="B children for every node (the paper's ablation).")] = False
    depth_penalty: Annotated[bool, Field(description="Fewer children deeper down (false: the ablation).")] = True
    calibrate: Annotated[bool, Field(description="Budgets drawn to the greedy value (false: the ablation).")] = True
    final: Annotated[
        Literal["auto", "best", "first", "vote", "vote_fallback"],
        Field(
            description="The answer: the solution of highest value, the first over the threshold, votes weighted by "
            "value, or votes of further samples where the best is worth too little; auto: best, or vote if the values "
            "are not calibrated."
        ),
    ] = "auto"
    vote_threshold: Annotated[
        float, Field(ge=0, le=1, description="Alpha: a best value below it makes vote_fallback sample.")
    ] = 0.8
    vote_samples: Annotated[int, Field(ge=1, le=64, description="Samples of vote_fallback.")] = 20

    @model_validator(mode="after")
    def _one_rule(self) -> "LiteSearch":
        """Refuses what the chosen rule would ignore."""
        other = {"progress_weight": self.progress_weight > 0 and self.rule == "released"}
        other |= {
            name: getattr(self, name) is not None and self.rule == "paper" for name in ("max_finished", "min_value")
        }
        for name, ignored in other.items():
            if ignored:
                raise fault(name, f"plays no part in the {self.rule} rule")
        return self

    @property
    def most_answers(self) -> int:
        if self.rule == "paper":
            return 64
        return min(64, (self.max_finished or LiteSearchOptions().max_finished) + self.max_children)

    def check(self, scorers: "Mapping[str, ValueFunction]") -> None:
        super().check(scorers)
        kind = self.value_kind(scorers)
        if self.final == "first" and self.value_threshold is None and not scorers[kind].calibrated:
            raise InvalidRequest(
                f"'first' needs a threshold of its own: the values of {kind!r} are not calibrated",
                "decoding.search.value_threshold",
            )

    def options(self, *, calibrated: bool) -> LiteSearchOptions:
        """The parameters in the terms of the tree. What the request leaves open depends on the values."""
        options = LiteSearchOptions(
            rule=self.rule,
            expansion=self.expansion,
            cap=self.max_children,
            epsilon=self.expected_accuracy,
            theta=THETA,
            progress_weight=self.progress_weight,
            max_iterations=self.max_iterations,
            greedy_value_cap=self.greedy_value_cap,
            static_budget=self.static_budget,
            depth_penalty=self.depth_penalty,
            calibrate=self.calibrate,
        )
        if not calibrated:
            options = uncalibrated(options)
        return replace(
            options,
            theta=options.theta if self.value_threshold is None else self.value_threshold,
            max_finished=self.max_finished or options.max_finished,
            min_value=options.min_value if self.min_value is None else self.min_value,
        )

    async def run(self, context: SearchContext) -> Sequence[Node]:
        valuation = Valuation(context, self.value_kind(context.scorers))
        context.tell(value=valuation.kind, calibrated=valuation.calibrated)
        growth = _Growth(self, context, valuation, self.options(calibrated=valuation.calibrated))
        try:
            reason = await growth.grow()
        except BudgetExhausted:
            reason = "budget"
        context.tell(stopped_by=reason, reused_steps=growth.reused)
        return await self._answers(growth)

    async def _answers(self, growth: "_Growth") -> list[Node]:
        """By the final mode, then the others by value: one for each distinct answer first."""
        context, valuation = growth.context, growth.valuation
        solutions = growth.solutions
        if not solutions:
            return growth.greedy[-1:]
        answers = await context.compute(self.answer.canonical, [node.text for node in solutions])
        # What the budget did not pay to score is worth nothing, but still a solution.
        found = [Solution(valuation.rank(node), answer) for node, answer in zip(solutions, answers, strict=True)]
        for node, answer in zip(solutions, answers, strict=True):
            context.note(node, answer=answer)
        greedy = None
        if growth.greedy[-1] is solutions[-1] and not growth.greedy_in_tree:
            greedy = found.pop()
        mode = self.mode(calibrated=valuation.calibrated)
        final = final_answer(mode, found, greedy, theta=growth.options.theta, alpha=self.vote_threshold)
        chosen = None if final.source is None else len(found) if final.source == "greedy" else final.source
        if final.needs_samples and (voted := await self._fallback(context, valuation)) is not None:
            context.tell(fallback="vote")
            solutions = [*solutions, voted]
            answers = [*answers, *await context.compute(self.answer.canonical, [voted.text])]
            chosen = len(solutions) - 1
        order = sorted(range(len(solutions)), key=lambda i: -round(valuation.rank(solutions[i]), VALUE_DIGITS))
        if chosen is not None:
            order = [chosen, *(i for i in order if i != chosen)]
        first = distinct(order, answers, [node.text for node in solutions])
        unsolved = [node for node in growth.states[1:] if not node.finished]
        return [
            *(solutions[i] for i in first),
            *(solutions[i] for i in order if i not in first),
            *sorted(unsolved, key=lambda node: -round(valuation.rank(node), VALUE_DIGITS)),
        ]

    def mode(self, *, calibrated: bool) -> LiteSearchFinal:
        """The final mode that "auto" stands for."""
        if self.final == "auto":
            return "best" if calibrated else "vote"
        return self.final

    async def _fallback(self, context: SearchContext, valuation: Valuation) -> Node | None:
        """Soft voting: further whole samples, votes weighted by value; None where the budget or an answer lacks."""
        if context.exhausted:
            return None
        (samples,) = await context.extend(
            [context.root], self.vote_samples, temperature=self.temperature, stage=FALLBACK
        )
        samples = [node for node in samples if node.end == "stop"]
        try:
            values = await valuation.of(samples)
        except BudgetExhausted:
            values = [1.0] * len(samples)
        answers = await context.compute(self.answer.canonical, [node.text for node in samples])
        winner = soft_vote([Solution(value, answer) for value, answer in zip(values, answers, strict=True)])
        return None if winner is None else samples[winner]


@dataclass(slots=True)
class _Growth:
    """One search's tree, beside the nodes of the context: state i of the tree is states[i]."""

    search: LiteSearch
    context: SearchContext
    valuation: Valuation
    options: LiteSearchOptions
    greedy: list[Node] = field(default_factory=list)
    states: list[Node] = field(default_factory=list)
    reused: int = 0

    async def grow(self) -> str:
        """The greedy pass and the tree. Returns why it stopped; raises BudgetExhausted."""
        context, search = self.context, self.search
        pace = Pace(context)
        # Stage 0: a reused step has the place in the tree, and so the noise below it, that a new one would have.
        (end,) = await search.complete(context, [context.root], stage=0)
        self.greedy = end.path
        if not self.greedy:
            return "budget"
        last = self.greedy[-1]
        context.propose(last)
        context.note(last, greedy=True)
        root_value, greedy_value = await self.valuation.of([context.root, last])
        pace.made(len(self.greedy))
        steps = sum(bool(node.step_text.strip()) for node in self.greedy)
        tree = LiteSearchTree(self.options, greedy_value, steps, root_value)
        self.states = [context.root]
        context.note(context.root, budget=tree.root.budget)
        greedy_child = dict(zip([context.root, *self.greedy], self.greedy, strict=False))
        while (reason := self._stop(tree)) is None:
            node = tree.select()
            assert node is not None
            state = self.states[node.number]
            plan = tree.begin_expansion(node, context.tokens_left, pace.mean)
            context.trace.called("iterations", 1)
            reused = [greedy_child[state]] if plan[0] and state in greedy_child else []
            rest = plan[len(reused) :]
            children = list(reused)
            if rest:
                heats = [0.0 if greedy else search.temperature for greedy in rest]
                (made,) = await search.grow(
                    context, [state], len(rest), first=node.spent + len(reused), temperature=heats
                )
                children += made
            self.reused += len(reused)
            bad = [bad_step(child) for child in children]
            scored = [child for child, worthless in zip(children, bad, strict=True) if not worthless]
            values = dict(zip(scored, await self.valuation.of(scored), strict=True))
            pace.made(len(rest))
            for child, worthless in zip(children, bad, strict=True):
                added = tree.add(node, values.get(child, 0.0), terminal=child.finished, bad=worthless)
                self.states.append(child)
                context.note(child, budget=added.budget, **({"bad": True} if worthless else {}))
        return reason

    def _stop(self, tree: LiteSearchTree) -> str | None:
        """The tree's rules, and for the mode "first" the first solution over theta, whatever the greedy value is."""
        theta = self.options.theta
        if self.search.final == "first" and theta is not None:
            over = (node for node in tree.finished if round(node.value, VALUE_DIGITS) > round(theta, VALUE_DIGITS))
            if next(over, None) is not None:
                return "threshold"
        return tree.stop_reason()

    @property
    def greedy_in_tree(self) -> bool:
        """Whether the tree has reused the greedy solution to its end; then it is one of its solutions."""
        return self.greedy[-1] in self.states

    @property
    def solutions(self) -> list[Node]:
        """The finished solutions in order of creation in the tree, those of a last batch that could not be scored, and
        last the greedy one if the tree does not hold it."""
        if not self.greedy:
            return []
        greedy = self.greedy[-1]
        nodes = [node for node in self.states if node.finished]
        nodes += [node for node in self.context.nodes if node.finished and node not in nodes and node is not greedy]
        return nodes if greedy in nodes or not greedy.finished else [*nodes, greedy]
