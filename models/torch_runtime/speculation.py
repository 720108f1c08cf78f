"""Speculation inside the engine's step: plan, draft level by level in batched forwards, verify after the target's.

A round of one sequence: the root is its last token, whose keys and values are still to be computed; below it hangs the
draft tree. Node i of the tree lives in slot i of the step's work, so accepting a path moves no memory.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.torch_runtime.adaptive import AdaptiveSpeculation
from models.torch_runtime.batch import Segment
from models.torch_runtime.drafters import CATCH_UP, EARLY_EXIT, Drafter
from models.torch_runtime.kv_pool import Slots
from models.torch_runtime.sequence import Sequence as TokenSequence
from strategies.errors import InvalidRequest
from strategies.runtime import ModelInfo
from strategies.sampling.pipeline import faulty_rows, process, sample
from strategies.speculative.auto import NGRAM
from strategies.speculative.coupled import CoupledNoise, verify_by_samples
from strategies.speculative.method import Method
from strategies.speculative.ngram import PromptLookup, continuation
from strategies.speculative.noise import Noise, RoundNoise
from strategies.speculative.speculation import AutoSpeculation, NgramSpeculation, Speculation
from strategies.speculative.support import most_likely
from strategies.speculative.verify import Verdict, verify

log = logging.getLogger(__name__)

DRAFT_SUPPORT = 256
"""Most likely tokens of a draft distribution that are drawn from; what is cut is accepted next to never."""


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """What a round may cost at most. levels 0: the draft only catches up with the sequence's history.

    draft_tokens and draft_flops: computed by the draft.
    """

    levels: int
    nodes: int
    draft_tokens: int
    draft_flops: float


class Round:
    """One sequence's draft tree in the making. rows[i] is the sampling row after node i."""

    def __init__(self, sequence: TokenSequence, speculation: Speculation, plan: DraftPlan, slots: Slots) -> None:
        self.sequence, self.plan, self.slots = sequence, plan, slots
        self.method = speculation.method(plan.levels)
        self.tree = self.method.new_tree(int(sequence.tokens[-1]), sequence.stop_ids)
        self.rows = [sequence.row]
        self.coupled = speculation.coupled
        self.path: tuple[int, ...] = ()
        self.fault: Exception | None = None
        self.draft_tokens = 0
        self.draft_flops = 0.0
        generation = sequence.generation
        self.noise: Noise | None = None
        if self.coupled:
            self.noise = CoupledNoise(sequence.row.stream, sequence.length, self.tree)
        if not (self.coupled or sequence.row.greedy):
            self.noise = RoundNoise(generation.seed, generation.branch, sequence.length)
        self.draft_noise = None if sequence.row.greedy else self.noise

    @property
    def drafting(self) -> bool:
        return self.fault is None and self.tree.depth < self.plan.levels and bool(self.tree.frontier())

    def grow_rows(self) -> None:
        """Rows of the nodes that were added since. A state that fails on a draft token is this round's fault alone."""
        try:
            for node in range(len(self.rows), len(self.tree.tokens)):
                row = self.rows[self.tree.parents[node]].fork()
                row.append(self.tree.tokens[node])
                self.rows.append(row)
        except Exception as error:
            log.exception("a draft failed")
            self.fault = error

    def draft_segments(self, drafter: Drafter) -> list[Segment]:
        """What the draft computes next: its missing history and the root, then one token per node of the frontier."""
        sequence, tree = self.sequence, self.tree
        if tree.depth == 0:
            known = drafter.computed(sequence.slots)
            fresh = np.concatenate([sequence.slots[known:], self.slots[:1]])
            return [Segment.chain(sequence.tokens[known:].astype(np.int64), fresh, sequence.slots[:known])]
        segments = []
        for node in tree.frontier():
            path = [0, *tree.path(node)[:-1]]
            context = np.concatenate([sequence.slots, self.slots[path]])
            segments.append(Segment.chain([tree.tokens[node]], self.slots[node : node + 1], context))
        return segments

    def target_segment(self) -> Segment:
        """The root and all nodes, for the target's forward."""
        tree, sequence = self.tree, self.sequence
        count = len(tree.tokens)
        chain = all(parent == node - 1 for node, parent in enumerate(tree.parents))
        return Segment(
            np.asarray(tree.tokens, np.int64),
            sequence.length - 1 + np.asarray(tree.depths, np.int64),
            self.slots[:count],
            sequence.slots,
            None if chain else tree.ancestor_mask().numpy(),
        )


def verdicts(
    rounds: Mapping[int, Round],
    spans: Mapping[int, range],
    logits: Tensor,
    draw: Callable[[Tensor, Tensor], Tensor],
) -> dict[int, Verdict]:
    """What each round emits; all trees of one method are walked together, level by level.

    logits: float32 [R, V], the target's after the pipeline, free of NaN. spans: for each round its tree's rows of them.
    """
    found: dict[int, Verdict] = {}
    sampled: list[int] = []
    by_method: dict[type[Method], list[int]] = {}
    for i, one in rounds.items():
        if one.coupled or one.noise is None:
            sampled.append(i)
        else:
            by_method.setdefault(type(one.method), []).append(i)
    if sampled:
        rows = [row for i in sampled for row in rounds[i].rows]
        positions = [rounds[i].sequence.length + depth for i in sampled for depth in rounds[i].tree.depths]
        places = [row for i in sampled for row in spans[i]]
        together = len(places) == places[-1] + 1 - places[0]  # then a view, not a copy of some megabytes
        picked = logits[places[0] : places[-1] + 1] if together else logits[places]
        tokens = sample(picked, rows, positions, draw).tolist()
        start = 0
        for i in sampled:
            tree = rounds[i].tree
            found[i] = verify_by_samples(tree, tokens[start : start + len(tree) + 1])
            start += len(tree) + 1
    for group in by_method.values():
        trees, noises = [rounds[i].tree for i in group], [rounds[i].noise for i in group]
        targets = [logits[spans[i].start : spans[i].stop] for i in group]
        walked = verify(rounds[group[0]].method.rule, trees, targets, noises)
        found |= zip(group, walked, strict=True)
    return found


class Speculator:
    """Plans and drafts for all sequences of a step."""

    def __init__(
        self,
        info: ModelInfo,
        drafters: Mapping[str, Drafter],
        num_slots: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """drafters: by name, the default one first. num_slots: of the target's pool."""
        self._info, self._clock, self.num_slots = info, clock, num_slots
        self.drafters = dict(drafters)
        self.adaptive = AdaptiveSpeculation(info, drafters, clock)

    def check(self, speculation: Speculation) -> None:
        """Raises InvalidRequest for a drafter that isn't there."""
        param = "decoding.speculation.drafter"
        if isinstance(speculation, AutoSpeculation):
            if speculation.drafter not in (None, NGRAM, *self.drafters):
                known = ", ".join([*self.drafters, NGRAM])
                raise InvalidRequest(f"{str(speculation.drafter)[:100]!r} is no drafter; there are: {known}", param)
        elif not speculation.uses_draft:
            if speculation.drafter is not None:
                raise InvalidRequest(f"{speculation.name} drafts from the context and takes no drafter", param)
        elif not self.drafters:
            raise InvalidRequest(
                f"the server has nobody to draft for {speculation.name}: start it with --draft-model, or ask for ngram",
                "decoding.speculation",
            )
        elif speculation.drafter is not None and speculation.drafter not in self.drafters:
            known = ", ".join(self.drafters)
            raise InvalidRequest(f"{speculation.drafter[:100]!r} is no drafter; there are: {known}", param)

    def drafter_of(self, speculation: Speculation) -> Drafter:
        return self.drafters[speculation.drafter or next(iter(self.drafters))]

    def plan(self, sequence: TokenSequence, room: int, siblings: int) -> DraftPlan | None:
        """The largest round that the sequence's length, its request's budget and `room` slots allow, or None; with
        fixed rounds, that an empty pool allows.

        siblings: sequences of the same budget that are planned after it; a token is left for each of them.
        Only for a sequence with nothing but its last token left to compute, and never for the first output: whether the
        prompt's last token is computed alone depends on the cache, and a seeded result must not.
        """
        speculation = sequence.speculation
        if speculation is None or sequence.num_outputs == 0:
            return None
        levels = min(speculation.length, sequence.max_length - sequence.length - 1)
        if sequence.fixed_rounds:
            room = self.num_slots - sequence.computed  # what it has when it is alone: others are preempted for it
        if isinstance(speculation, NgramSpeculation):
            lookup = speculation.method(max(levels, 1))
            assert isinstance(lookup, PromptLookup)
            levels = min(levels, len(continuation(sequence.tokens, lookup.max_ngram, lookup.min_ngram, lookup.length)))
        while levels >= 1:
            plan = self._cost(sequence, speculation, levels)
            tokens = 1 + plan.nodes
            flops = self._info.flops(tokens, sequence.computed) + plan.draft_flops
            lacks = sequence.meter.lacks(
                tokens=tokens + plan.draft_tokens + siblings,
                flops=flops + siblings * self._info.flops(1, sequence.computed),
                outputs=plan.levels + 1 + siblings,
            )
            if tokens <= room and lacks is None:
                return plan
            if not plan.levels:
                return None
            levels -= 1
        return None

    def _cost(self, sequence: TokenSequence, speculation: Speculation, levels: int) -> DraftPlan:
        if not speculation.uses_draft:
            return DraftPlan(levels, levels, 0, 0.0)
        drafter = self.drafter_of(speculation)
        missing = sequence.computed - drafter.computed(sequence.slots)
        if missing > CATCH_UP:
            return DraftPlan(0, 0, CATCH_UP, drafter.flops(CATCH_UP, sequence.computed))
        tokens = missing + speculation.draft_tokens(levels)
        return DraftPlan(levels, speculation.nodes(levels), tokens, drafter.flops(tokens, sequence.length + levels))

    def catch_up(self, sequences: Sequence[TokenSequence]) -> None:
        """Lets the drafts compute the next CATCH_UP tokens of each sequence's history."""
        for name, drafter in self.drafters.items():
            segments = []
            for sequence in sequences:
                speculation = sequence.speculation
                if speculation is not None and self.drafter_of(speculation).name == name:
                    known = drafter.computed(sequence.slots)
                    tokens = sequence.tokens[known : known + CATCH_UP].astype(np.int64)
                    slots = sequence.slots
                    segments.append(Segment.chain(tokens, slots[known : known + CATCH_UP], slots[:known]))
            if segments:
                started = self._clock()
                logits = drafter.logits(segments)
                if logits.is_cuda:
                    torch.cuda.synchronize(logits.device)
                self.adaptive.observe_draft(name, sum(len(one.tokens) for one in segments), self._clock() - started)

    def draft(self, rounds: Sequence[Round]) -> None:
        """Grows every round's tree; one forward of a drafter per level, for all rounds that it drafts for."""
        groups: dict[str, list[Round]] = {}
        for one in rounds:
            speculation = one.sequence.speculation
            assert speculation is not None
            if isinstance(one.method, PromptLookup):
                one.method.draft(one.tree, one.sequence.tokens)
                one.grow_rows()
            else:
                groups.setdefault(self.drafter_of(speculation).name, []).append(one)
        for name, active in groups.items():
            while active:
                self._draft_level(self.drafters[name], active)
                active = [one for one in active if one.drafting]

    def _draft_level(self, drafter: Drafter, active: Sequence[Round]) -> None:
        started = self._clock()
        segments = [one.draft_segments(drafter) for one in active]
        logits = drafter.logits([segment for part in segments for segment in part])
        rows = [one.rows[node] for one in active for node in one.tree.frontier()]
        logits = process(logits, rows)
        logits[faulty_rows(logits)] = float("-inf")  # a draft that is no distribution proposes nothing
        start = 0
        for one, part in zip(active, segments, strict=True):
            one.method.propose(one.tree, most_likely(logits[start : start + len(part)], DRAFT_SUPPORT), one.draft_noise)
            one.grow_rows()
            start += len(part)
            for segment in part:
                one.draft_tokens += len(segment.tokens)
                one.draft_flops += drafter.flops(len(segment.tokens), len(segment.context))
        tokens = sum(len(segment.tokens) for part in segments for segment in part)
        self.adaptive.observe_draft(drafter.name, tokens, self._clock() - started)


def default_first(drafters: Sequence[Drafter]) -> dict[str, Drafter]:
    """By name; draft models before early exit."""
    return {one.name: one for one in sorted(drafters, key=lambda one: one.name == EARLY_EXIT)}


def without_nan(logits: Tensor) -> tuple[Tensor, list[bool]]:
    """Rows [R, V] with faulty ones made flat, and which they were."""
    faulty = faulty_rows(logits)
    which = faulty.tolist()
    return (torch.where(faulty[:, None], 0.0, logits) if any(which) else logits), which
