"""phi-decoding at work: rounds of rollout, foresight and choice, then the completion of the beams and the last choice.

for t in 1..T_max:  rollouts -> in-width pruning -> foresight -> value -> draw M -> commit -> in-depth pruning
complete the beams -> draw one

A candidate that ends its answer leaves the beams for good; as many fewer are deliberated on. Whenever the budget runs
out, the best complete answer seen so far is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from strategies.search.committed_prefix import committed_length
from strategies.search.complete_answers import CompleteAnswers
from strategies.search.context import BudgetExhausted, SearchContext
from strategies.search.lookahead import FINAL, Candidate, closing, look_ahead, rollouts
from strategies.search.node import Node
from strategies.search.phi_budget import Round, affordable_completions, affordable_foresight, affordable_round
from strategies.search.phi_candidate import CandidateKind
from strategies.search.phi_final import choose_final, ranking
from strategies.search.phi_options import CompletionOptions, ForesightOptions, StepOptions
from strategies.search.phi_profile import PhiProfile
from strategies.search.phi_pruning import DepthPruning, surviving
from strategies.search.phi_step import StepChoice, choose_step

COUNTS = ("steps", "kept", "pruned", "early_stops", "rollout_tokens", "foresight_tokens", "final_tokens")
"""What a reply's usage tells of phi-decoding, beside what it tells of every search."""


@dataclass(frozen=True, slots=True)
class PhiPlan:
    """What a request asks for. reuse_foresight: None means under a budget."""

    profile: PhiProfile
    beams: int
    rollouts: int
    t_min: int
    t_max: int
    step: StepOptions
    foresight: ForesightOptions
    final: CompletionOptions
    reuse_foresight: bool | None
    commits: bool


@dataclass(frozen=True, slots=True, eq=False)
class Beam:
    """A partial or finished answer. F, advantage, probability: of the candidate it accepted last, 0 before the first.
    outlook: where that one's foresight ended."""

    node: Node
    F: float = 0.0
    advantage: float | None = None
    probability: float = 0.0
    outlook: Node | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one step, what tells whether to go on: the largest cluster's share, and the texts of the chosen steps."""

    share: float | None
    steps: list[str]


class Deliberation:
    """One request's beams on their way to answers."""

    def __init__(self, plan: PhiPlan, context: SearchContext) -> None:
        self.plan = plan
        self.context = context
        self.beams = [Beam(context.root)]
        self.done: list[Beam] = []
        self.answered = CompleteAnswers(context)
        self.steps = 0
        self.reuses = context.limited if plan.reuse_foresight is None else plan.reuse_foresight
        self.reuses = self.reuses and plan.foresight.max_tokens > 0
        for name in COUNTS:
            context.trace.called(name, 0)

    async def answers(self) -> list[Node]:
        """`context.n` answers where there are so many, the chosen one first."""
        context, plan = self.context, self.plan
        try:
            if plan.t_max == 0:
                options = plan.final
                (nodes,) = await context.extend(
                    [context.root], context.n, max_tokens=options.max_tokens, temperature=options.temperature
                )
                return nodes
            depth = DepthPruning.of(plan.profile, plan.t_min)
            while self.steps < plan.t_max and self.beams:
                outcome = await self.step()
                if outcome is None:
                    break
                if depth.observe(self.steps, outcome.share, outcome.steps) is not None:
                    context.trace.called("early_stops", 1)
                    break
            return self.answered.first(await self.chosen())
        except BudgetExhausted:
            return self.answered.first([])

    # -- one step ----------------------------------------------------------------------------------------------------

    async def step(self) -> "Outcome | None":
        """One deliberated step, 1-based; None where the budget, or the model, leaves nothing to deliberate on."""
        context, plan, t = self.context, self.plan, self.steps + 1
        nodes = [beam.node for beam in self.beams]
        at_root = plan.beams if t == 1 else 1  # there all M beams are the same one
        planned = Round(plan.rollouts, plan.step.cap, plan.foresight.max_tokens)
        room = max(context.room(node) for node in nodes)
        affordable = affordable_round(planned, len(nodes) * at_root, room, context.tokens_left, self.reserve())
        if affordable is None:
            return None
        candidates = await rollouts(context, nodes, affordable.rollouts * at_root, plan.step, affordable.step_cap)
        context.trace.called("rollout_tokens", sum(len(c.node.step) for c in candidates))
        if context.exhausted:
            self.cut_off(candidates)
        self.retire_starved(candidates)
        width = plan.beams - len(self.done)
        survivors = self.pruned(candidates, width, t)
        if not survivors or not await self.foreseen([candidates[i] for i in survivors]):
            return None
        self.steps = t
        context.trace.called("steps", 1)
        return self.adopt([candidates[i] for i in survivors], await self.drawn(candidates, survivors, width, t))

    def retire_starved(self, candidates: Sequence[Candidate]) -> None:
        """A beam without a next step, even when sampled twice, is a finished answer as it stands; but the root is none,
        it is simply completed."""
        fed = {c.beam for c in candidates if c.kind is not CandidateKind.EMPTY}
        for number, beam in enumerate(self.beams):
            if number not in fed and self.steps:
                beam.node.finished = True
                self.done.append(beam)

    def pruned(self, candidates: Sequence[Candidate], width: int, t: int) -> list[int]:
        """In-width pruning over one pool of all beams' candidates: the numbers of those that go on, S_t."""
        scores = [candidate.s for candidate in candidates]
        kept = surviving(scores, width, self.plan.profile, self.context.uniforms("fill", len(scores), t))
        for number, candidate in enumerate(candidates):
            self.context.note(candidate.node, step=t, pruned=number not in kept)
        self.context.trace.called("kept", len(kept))
        self.context.trace.called("pruned", len(candidates) - len(kept))
        return kept

    async def foreseen(self, pool: Sequence[Candidate]) -> bool:
        """Looks ahead from the survivors; False where the budget has nothing left for that."""
        context, options = self.context, self.plan.foresight
        if options.max_tokens == 0:
            for candidate in pool:
                candidate.outlook = candidate.node if candidate.node.finished else None
            return True
        paths = sum(candidate.kind is not CandidateKind.TERMINAL for candidate in pool)
        cap = affordable_foresight(paths, options.max_tokens, context.tokens_left, self.reserve())
        if cap == 0:
            return False
        await look_ahead(context, pool, options, cap)
        context.trace.called("foresight_tokens", sum(len(p.step) for c in pool if (p := c.outlook) and p is not c.node))
        if context.exhausted:
            self.cut_off(pool)
        return True

    async def drawn(self, candidates: Sequence[Candidate], survivors: Sequence[int], width: int, t: int) -> StepChoice:
        """The step value and the draw. Uniforms belong to candidates, so pruning shifts none."""
        pool = [candidates[i] for i in survivors]
        uniforms = self.context.uniforms("select", len(candidates), t)
        choice = await self.context.compute(
            choose_step,
            range(len(pool)),
            [c.s for c in pool],
            [c.beam for c in pool],
            [c.F for c in pool],
            [c.text for c in pool],
            [beam.F for beam in self.beams],
            width,
            self.plan.profile,
            [uniforms[i] for i in survivors],
        )
        value = choice.pool
        chosen = {new.candidate for new in choice.beams}
        for number, candidate in enumerate(pool):
            member = value.members.index(number) if number in value.members else None
            self.context.note(
                candidate.node,
                F=candidate.F,
                A=value.advantages[number],
                cluster=None if member is None or value.labels is None else value.labels[member],
                p=0.0 if member is None else value.probabilities[member],
                chosen=number in chosen,
            )
        return choice

    def adopt(self, pool: Sequence[Candidate], choice: StepChoice) -> "Outcome":
        """The drawn candidates become the beams, or are done."""
        probability = dict(zip(choice.pool.members, choice.pool.probabilities, strict=True))
        accepted = []
        for new in choice.beams:
            candidate, advantage = pool[new.candidate], choice.pool.advantages[new.candidate]
            accepted.append(Beam(candidate.node, new.F, advantage, probability[new.candidate], candidate.outlook))
        self.beams = [beam for beam in accepted if not beam.node.finished]
        self.done += [beam for beam in accepted if beam.node.finished]
        best = sorted([*self.beams, *self.done], key=lambda beam: -beam.probability)
        others = [pool[i].outlook for i in sorted(probability, key=lambda i: -probability[i])]
        self.answered.add([beam.outlook for beam in best] + others)
        if self.plan.commits:
            self.answered.commit([beam.node for beam in best])
        self.context.propose(self.answered.best or best[0].outlook or best[0].node, self.steps)
        return Outcome(choice.pool.share, [beam.node.step_text for beam in accepted])

    # -- the end -----------------------------------------------------------------------------------------------------

    async def chosen(self) -> list[Node]:
        """Completes the beams and draws the answer; the others follow by probability."""
        context, profile = self.context, self.plan.profile
        pending = [beam for beam in self.beams if beam not in self.done]
        nodes, advantages = [beam.node for beam in self.done], [beam.advantage for beam in self.done]
        if self.reuses:
            reused = [(beam, end) for beam in pending if (end := beam.outlook) is not None and end.finished]
            nodes += [end for _, end in reused]
            advantages += [beam.advantage for beam, _ in reused]
            pending = [beam for beam in pending if all(beam is not other for other, _ in reused)]
        same_scope = bool(nodes)
        pairs = await self.completions(pending)
        if context.exhausted:  # a part of an answer only where there is no whole one
            whole = [pair for pair in pairs if pair[1].finished]
            has_answer = whole or nodes or self.answered.best is not None
            pairs = whole if has_answer else sorted(pairs, key=lambda pair: -len(pair[1].tokens))[:1]
        for beam, node in pairs:
            score = closing(node)[0]
            nodes.append(node)
            advantages.append(None if score is None else score - beam.F)
        if not nodes:
            return []
        texts = self.texts(nodes, same_scope=same_scope)
        uniforms = context.uniforms("final", len(nodes))
        first = await context.compute(choose_final, advantages, texts, profile, uniforms)
        order = await context.compute(ranking, advantages, texts, profile, first)
        for number, node in enumerate(nodes):
            context.note(node, final_A=advantages[number], final=number == first)
        return [nodes[i] for i in order]

    async def completions(self, pending: Sequence[Beam]) -> list[tuple[Beam, Node]]:
        """Completions of these beams, or under a low budget of the most probable one, or of none if even that does not
        fit and there is an answer already. Of the root, where nothing was deliberated: one for each choice."""
        context, options = self.context, self.plan.final
        if not pending:
            return []
        copies = context.n if pending[0].node is context.root else 1
        cap = max(self.final_cap(beam.node) for beam in pending)
        wanted = len(pending) * copies
        count, affordable = affordable_completions(wanted, cap, context.tokens_left)
        if count < wanted:
            if affordable < cap and self.answered.best is not None:
                return []
            pending, copies = [max(pending, key=lambda beam: beam.probability)], 1
        found = await context.extend(
            [beam.node for beam in pending],
            copies,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            stage=FINAL,
        )
        pairs = [(beam, node) for beam, nodes in zip(pending, found, strict=True) for node in nodes]
        for _, node in pairs:
            context.note(node, stage="final")
        context.trace.called("final_tokens", sum(len(node.step) for _, node in pairs))
        return pairs

    def texts(self, nodes: Sequence[Node], *, same_scope: bool) -> list[str]:
        """What answers are clustered by: their completions, or if some have none of their own, every answer behind what
        all share."""
        own = [node.step_text for node in nodes]
        if not same_scope and all(text.strip() for text in own):
            return own
        shared = committed_length([node.tokens for node in nodes])
        return [self.context.runtime.tokenizer.decode(node.tokens[shared:]) for node in nodes]

    # -- bookkeeping -------------------------------------------------------------------------------------------------

    def reserve(self) -> int:
        """Tokens to keep for finishing. With foresight reused nothing once there is a whole answer; until then half of
        what is left, if a completion may take so much."""
        context = self.context
        left = context.tokens_left
        if left is None:
            return 0
        cap = max((self.final_cap(beam.node) for beam in self.beams), default=0)
        if not self.reuses:
            return (self.plan.beams - len(self.done)) * cap
        return 0 if self.answered.best is not None else min(cap, left // 2)

    def final_cap(self, node: Node) -> int:
        """The most tokens that completing a node may take."""
        room = self.context.room(node)
        return room if self.plan.final.max_tokens is None else min(self.plan.final.max_tokens, room)

    def cut_off(self, candidates: Sequence[Candidate]) -> NoReturn:
        """Ends deliberation in the middle of a step: its complete answers, by advantage, come before earlier ones."""

        def gain(candidate: Candidate) -> float:
            F = candidate.s if candidate.F is None else candidate.F
            return float("-inf") if F is None else F - self.beams[candidate.beam].F

        self.answered.add([c.outlook or c.node for c in sorted(candidates, key=gain, reverse=True)])
        raise BudgetExhausted("the budget is spent")
