"""Predictive decoding as a search: one partial answer, whose next step is drawn by where it would lead."""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from strategies.search.complete_answers import CompleteAnswers
from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.lookahead import FINAL, Candidate, look_ahead, rollouts
from strategies.search.node import Node
from strategies.search.phi_budget import Round, affordable_foresight, affordable_round
from strategies.search.phi_candidate import CandidateKind
from strategies.search.phi_options import CompletionOptions, ForesightOptions, StepOptions
from strategies.search.predictive import ORIGINAL_TAU, PHI_TAU, predictive_choice, predictive_value
from strategies.search.predictive_pool import RolloutPool
from strategies.search.search import Search


class Predictive(Search):
    """Predictive decoding: samples next steps, continues each to the end, and draws the step to keep by the likelihood
    of the whole.

    "phi" is how phi-decoding's authors run it: value = mean log-probability of step and foresight together. "original"
    (Ma et al. 2024) samples whole answers, values each by its first lines, lets equal first lines pool their weights,
    and goes on using the answers that begin with the chosen line.
    """

    name: ClassVar = "predictive"

    variant: Annotated[
        Literal["phi", "original"], Field(description="Whose rules: phi-decoding's baseline, or the method's authors'.")
    ] = "phi"
    rollouts: Annotated[int, Field(ge=1, le=64, description="Steps (or whole answers) sampled per step.")] = 8
    t_max: Annotated[
        int, Field(ge=0, le=64, description="Steps deliberated before the rest is completed; 0 is plain sampling.")
    ] = 8
    tau: Annotated[
        float | None, Field(gt=0.0, le=100.0, description="Temperature of the draw; 0.1, or 0.05 (original).")
    ] = None
    lines: Annotated[int, Field(ge=1, le=64, description="Steps that an answer is valued by (original).")] = 6
    step: StepOptions = StepOptions()
    foresight: ForesightOptions = ForesightOptions()
    final: CompletionOptions = CompletionOptions()

    @property
    def most_answers(self) -> int:
        return self.rollouts

    async def run(self, context: SearchContext) -> Sequence[Node]:
        path = Path(self, context)
        try:
            while path.steps < self.t_max and not path.end.finished:
                stepped = await (path.step() if self.variant == "phi" else path.step_of_whole_answers())
                if not stepped:
                    break
            return path.answered.first(await path.completed())
        except BudgetExhausted:
            return path.answered.first([])


class Path:
    """The one partial answer, and the complete ones seen on the way."""

    def __init__(self, options: Predictive, context: SearchContext) -> None:
        self.options = options
        self.context = context
        self.end = context.root
        self.steps = 0
        self.answered = CompleteAnswers(context)
        self.pool = RolloutPool(context.runtime.tokenizer, options.step, options.lines)

    async def step(self) -> bool:
        """One step by the rules of phi-decoding's authors. False: there is nothing to deliberate on."""
        context, options, t = self.context, self.options, self.steps + 1
        planned = Round(options.rollouts, options.step.cap, options.foresight.max_tokens)
        affordable = affordable_round(planned, 1, context.room(self.end), context.tokens_left, self.reserve())
        if affordable is None:
            return False
        found = await rollouts(context, [self.end], affordable.rollouts, options.step, affordable.step_cap)
        candidates = [c for c in found if c.kind is not CandidateKind.EMPTY]
        self.check([c.node for c in candidates])
        if not candidates:
            return False
        paths = sum(c.kind is not CandidateKind.TERMINAL for c in candidates)
        cap = affordable_foresight(paths, options.foresight.max_tokens, context.tokens_left, self.reserve())
        if cap == 0 and options.foresight.max_tokens:
            return False
        if cap:
            await look_ahead(context, candidates, options.foresight, cap)
        self.check([c.outlook for c in candidates])
        values = [self.value(c) for c in candidates]
        uniforms = context.uniforms("select", len(candidates), t)
        chosen = predictive_choice(values, uniforms, options.tau or PHI_TAU)
        for number, candidate in enumerate(candidates):
            context.note(candidate.node, step=t, value=values[number], chosen=number == chosen)
        order = sorted(range(len(candidates)), key=lambda i: (i != chosen, -(values[i] or -math.inf)))
        self.go_on(candidates[chosen].node, [candidates[i].outlook or candidates[i].node for i in order])
        return True

    @staticmethod
    def value(candidate: Candidate) -> float | None:
        """Mean log-probability over the step and its foresight."""
        step, ahead = candidate.node, candidate.outlook
        if ahead is None or ahead is step:
            return predictive_value(step.logprob, len(step.logprobs), 0.0, 0)
        return predictive_value(step.logprob, len(step.logprobs), ahead.logprob, len(ahead.logprobs))

    async def step_of_whole_answers(self) -> bool:
        """One step by the rules of the method's authors. False: the budget has nothing left for it."""
        context, options, t = self.context, self.options, self.steps + 1
        most = options.foresight.max_tokens or options.step.cap
        planned = Round(options.rollouts, 0, most)
        affordable = affordable_round(planned, 1, context.room(self.end), context.tokens_left, self.reserve())
        if affordable is None:
            return False
        (found,) = await context.extend(
            [self.end],
            affordable.rollouts,
            max_tokens=affordable.foresight_cap,
            temperature=options.foresight.temperature,
        )
        self.check(found)
        self.pool.add(found)
        for node in found:
            context.note(node, stage="rollout", step=t)
        drawn = self.pool.draw(options.tau or ORIGINAL_TAU, lambda count: context.uniforms("select", count, t))
        if drawn is None:
            return False
        node = context.append(self.end, drawn.tokens, drawn.logprobs, child=APPENDED)
        context.note(node, step=t, value=drawn.probability, chosen=True)
        self.go_on(node, self.pool.answers(node.tokens))
        return True

    def go_on(self, node: Node, complete: Sequence[Node]) -> None:
        """Takes a step, and sends it."""
        self.end, self.steps = node, self.steps + 1
        self.context.trace.called("steps", 1)
        self.answered.add(complete)
        self.answered.commit([node])
        self.context.propose(self.answered.best or node, self.steps)

    async def completed(self) -> list[Node]:
        """The path's end, or its completions, one for each choice; under a low budget an answer that was seen."""
        context, options = self.context, self.options.final
        if self.end.finished:
            return [self.end]
        left, room = context.tokens_left, context.room(self.end)
        cap = room if options.max_tokens is None else min(options.max_tokens, room)
        count = context.n if left is None or context.n * cap <= left else 1
        if left is not None and left < cap and self.answered.best is not None:
            return []
        (nodes,) = await context.extend(
            [self.end], count, max_tokens=options.max_tokens, temperature=options.temperature, stage=FINAL
        )
        if context.exhausted:  # a part of an answer only where there is no whole one
            whole = [node for node in nodes if node.finished]
            has_answer = whole or self.answered.best is not None
            return whole if has_answer else sorted(nodes, key=lambda node: -len(node.tokens))
        return nodes

    def reserve(self) -> int:
        """Tokens to keep for finishing: none once there is a whole answer, until then half of what is left if a
        completion may take so much."""
        left = self.context.tokens_left
        return 0 if left is None or self.answered.best is not None else min(self.context.room(self.end), left // 2)

    def check(self, nodes: Sequence[Node | None]) -> None:
        """Raises BudgetExhausted where the budget ended a step halfway; what is complete of it is kept."""
        if self.context.exhausted:
            self.answered.add(nodes)
            raise BudgetExhausted("the budget is spent")


APPENDED = 4 << 32
"""Child index of a step that is taken over from a whole answer: no other stage's."""
