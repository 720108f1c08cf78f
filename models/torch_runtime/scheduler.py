"""Decides what each engine step computes: admission, chunked prefill, decoding, KV pressure.

Smaller priorities first, then the tenant with the fewest sequences running, then whoever's request has the fewest (so
that a search with many branches holds nobody up), then first come, first served; but a request that is under way is
overtaken by few new ones, see `_rank`. Every decoding sequence gets its one token, prefill chunks share the rest of the
step's token budget. When slots run out the prefix cache is evicted first, then the youngest sequence is preempted: its
slots are given up and it is recomputed later, with the same output, since its tokens and its noise stay the same.
"""

import itertools
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from models.torch_runtime.kv_pool import SlotPool, Slots
from models.torch_runtime.prefix_cache import PrefixCache, common_prefix
from models.torch_runtime.sequence import Sequence
from models.torch_runtime.speculation import DraftPlan, Speculator
from strategies.runtime import ModelInfo

SHARE_AT_LEAST = 16
"""A waiting sequence is held back while a running one prefills at least this many tokens that it could then reuse."""
OVERTAKEN = 2
"""New requests that may be admitted before the next branch of a request under way, for each branch that it has running:
without that, its branches would wait for as long as new requests keep coming."""
EVICTION_BATCH = 256
"""Slots evicted at a time at least, so that the walk over the cache's leaves is not paid at every step."""
DRAFT_STEPS = 4
"""Nodes of all draft trees of one step, in multiples of `max_num_batched_tokens`: a bound of the step's length."""


@dataclass(slots=True)
class Totals:
    """Counters since the start, for metrics; see `RuntimeStatus`."""

    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    iteration_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence's share of a step: `count` tokens from `start`, their slots; sample after the last one or not.

    plan: the draft tree that goes with it; slots then has one more for each of its nodes, and the sequence owns none of
    them before `commit_round`. extra: slots for the candidates of contrastive search, freed after the step.
    """

    sequence: Sequence
    start: int
    count: int
    slots: Slots
    context: Slots
    sample: bool
    plan: DraftPlan | None = None
    extra: Slots = field(default_factory=lambda: np.empty(0, np.int64))


class Scheduler:
    """Owns waiting and running sequences, the slot pool and the prefix cache."""

    def __init__(
        self,
        pool: SlotPool,
        info: ModelInfo,
        speculator: Speculator,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: bool,
    ) -> None:
        self.pool = pool
        self.cache = PrefixCache(pool)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.totals = Totals()
        self.recomputed_tokens = 0
        self._info = info
        self._speculator = speculator
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._use_cache = prefix_cache
        self._step = 0
        self._admissions = 0

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence: behind those of its priority, before those of larger ones."""
        place = len(self.waiting)
        while place and self.waiting[place - 1].generation.priority > sequence.generation.priority:
            place -= 1
        self.waiting.insert(place, sequence)

    def schedule(self) -> list[Work]:
        """The next step's work; empty when there is nothing to compute."""
        self._step += 1
        self._drop_ended()
        while True:
            self._admit()
            works = self._plan()
            # A budget may have ended all that ran; then whoever waits starts in this very step.
            if works or self.running or not self.waiting:
                return works

    def _plan(self) -> list[Work]:
        """Gives every running sequence its share of the step."""
        works: list[Work] = []
        prefill_budget = self._max_num_batched_tokens - sum(s.pending == 1 for s in self.running)
        self._speculator.adaptive.choose(self.running, prefill_budget)
        drafting = self._drafting()
        needed = sum(s.pending for s in self.running)  # slots that trees must leave to those still to be planned
        reserved: set[int] = set()  # meters that hold more than was spent, for a round of this step
        sharing = Counter(id(s.meter) for s in self.running)  # by meter: those still to be planned
        # In order of admission, so that a victim of preemption (always the last) has no work in this step yet.
        for sequence in list(self.running):
            needed -= sequence.pending
            sharing[id(sequence.meter)] -= 1
            if sequence.node is None or self._over_budget(sequence, reserved=id(sequence.meter) in reserved):
                continue
            speculates = sequence.speculation is not None and sequence.pending == 1
            if speculates and sequence.num_outputs and id(sequence) not in drafting:
                continue
            count = 1 if sequence.pending == 1 else min(self._at_once(sequence), prefill_budget)
            extra = sequence.candidates if count == sequence.pending else 0
            if count <= 0 or not self._make_room(count + extra, sequence):
                continue
            if sequence.pending > 1:
                prefill_budget -= count
            plan = None
            if speculates:
                room = self.pool.num_free + self.cache.evictable - needed
                plan = self._speculator.plan(sequence, room, sharing[id(sequence.meter)])
            if plan is not None and not plan.levels and sequence.fixed_rounds:
                works.append(self._catch_up(sequence, plan))
            elif plan is not None and plan.levels:
                if not self._make_room(1 + plan.nodes, sequence):
                    continue
                sequence.last_round = self._step
                reserved.add(id(sequence.meter))
                works.append(self._round(sequence, plan))
            else:
                works.append(self._work(sequence, count, plan))
        return works

    @staticmethod
    def _at_once(sequence: Sequence) -> int:
        """Tokens that can be computed without sampling what a round must sample: after a preemption the last output is
        left for the round that it is the root of."""
        return sequence.pending - (sequence.fixed_rounds and sequence.num_outputs > 0)

    def _drafting(self) -> set[int]:
        """Ids of the sequences whose draft trees fit in this step together, those served longest ago first.

        The others sit the step out: a smaller tree, or none, would make a seeded result depend on the batch.
        """
        chosen: set[int] = set()
        nodes = 0
        for sequence in sorted(self.running, key=lambda sequence: sequence.last_round):
            speculation = sequence.speculation
            if speculation is None or sequence.pending != 1:
                continue
            size = speculation.nodes(speculation.length)
            if not chosen or nodes + size <= DRAFT_STEPS * self._max_num_batched_tokens:
                chosen.add(id(sequence))
                nodes += size
        return chosen

    def finished_prefill(self, sequence: Sequence) -> None:
        """Publishes a computed prompt in the prefix cache, so that others can share it while this one runs."""
        if self._use_cache:
            self._publish(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Takes an ended sequence out; what it computed stays in the prefix cache until it is evicted."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.meter.finish()

    def _drop_ended(self) -> None:
        """Takes out what was cancelled, and what ran out of time while it waited."""
        for sequence in [s for s in self.running if s.cancelled]:
            self.finish(sequence)
        for sequence in [s for s in self.waiting if s.cancelled or s.meter.budget.seconds is not None]:
            if not sequence.cancelled and sequence.meter.refuses() is None:
                continue
            if not sequence.cancelled:
                sequence.finish("length", f"budget:{sequence.meter.exhausted}")
            sequence.meter.finish()
            self.waiting.remove(sequence)

    def _admit(self) -> None:
        """Moves waiting sequences to running while there is room; none is overtaken because it needs more slots."""
        held: list[Sequence] = []
        shares = Counter(id(s.meter) for s in self.running)
        tenants = Counter(s.generation.tenant for s in self.running)
        while self.waiting and len(self.running) < self._max_num_seqs:
            sequence = self._next(tenants, shares)
            self.waiting.remove(sequence)
            reusable = 0 if sequence.computes_whole_prompt or not self._use_cache else sequence.length - 1
            node, slots = self.cache.match(sequence.tokens[:reusable], sequence.generation.cache_salt)
            if self._better_shared_later(sequence, reusable, len(slots)):
                held.append(sequence)
                continue
            self.cache.lock(node)
            needed = sequence.length - len(slots) + sum(s.pending + 1 for s in self.running)
            needed += sum(
                s.speculation.nodes(s.speculation.length)
                for s in (*self.running, sequence)
                if s.fixed_rounds and s.speculation is not None
            )
            if self.running and needed > self.pool.num_free + self.cache.evictable:
                self.cache.unlock(node)
                self.waiting.appendleft(sequence)
                break
            sequence.start(node, slots)
            if sequence.meter.admitted is None:
                sequence.meter.admitted = time.monotonic()
            self.totals.prefix_cache_queries += reusable
            self.totals.prefix_cache_hits += len(slots)
            if not sequence.charged:
                self.totals.prompt_tokens += sequence.num_prompt
            sequence.meter.spend.cached_tokens += max(0, len(slots) - sequence.charged)
            sequence.charged = max(sequence.charged, len(slots))
            self.running.append(sequence)
            self._admissions += 1
            sequence.meter.turn = self._admissions
            shares[id(sequence.meter)] += 1
            tenants[sequence.generation.tenant] += 1
        self.waiting.extendleft(reversed(held))

    def _next(self, tenants: Mapping[str, int], shares: Mapping[int, int]) -> Sequence:
        """Whose turn it is among those that wait. tenants, shares: running sequences by tenant and by meter."""
        first = self.waiting[0].generation.priority  # the queue is sorted by it
        candidates = itertools.takewhile(lambda s: s.generation.priority == first, self.waiting)
        return min(
            candidates, key=lambda s: (tenants.get(s.generation.tenant, 0), self._rank(s, shares.get(id(s.meter), 0)))
        )

    def _rank(self, sequence: Sequence, running: int) -> int:
        """0: its request is under way and has nothing running, so that a search which goes step by step does not queue
        anew for each, or it has been overtaken enough; then by what its request has running, new ones first."""
        meter = sequence.meter
        under_way = meter.admitted is not None
        if under_way and (not running or self._admissions - meter.turn >= OVERTAKEN * running):
            return 0
        return 1 + running

    def _better_shared_later(self, sequence: Sequence, reusable: int, cached: int) -> bool:
        """Whether a sequence that is prefilling now will soon offer a much longer prefix than the cache does."""
        if reusable < cached + SHARE_AT_LEAST:
            return False
        tokens = sequence.tokens[:reusable]
        return any(
            other.computed < other.num_prompt
            and not other.computes_whole_prompt
            and other.generation.cache_salt == sequence.generation.cache_salt
            and common_prefix(other.tokens[: other.num_prompt], tokens) >= cached + SHARE_AT_LEAST
            for other in self.running
        )

    def _over_budget(self, sequence: Sequence, *, reserved: bool) -> bool:
        """Ends a sequence whose next step its request's budget does not cover.

        reserved: another choice's round of this step holds part of the budget and may give some back; then the sequence
        only sits this step out.
        """
        fresh = sequence.length - max(sequence.computed, sequence.charged) + sequence.candidates
        flops = self._info.flops(fresh, sequence.length - fresh)
        outputs = int(sequence.length < sequence.max_length)
        if reserved:
            return sequence.meter.lacks(tokens=fresh, flops=flops, outputs=outputs) is not None
        unit = sequence.meter.refuses(tokens=fresh, flops=flops, outputs=outputs)
        if unit is None:
            return False
        sequence.finish("length", f"budget:{unit}")
        self.finish(sequence)
        return True

    def _make_room(self, count: int, sequence: Sequence) -> bool:
        """Sees to `count` free slots, if need be by eviction, then by preempting the youngest running sequence (False
        if that was `sequence` itself)."""
        while self.pool.num_free < count:
            if self.cache.evictable and self.cache.evict(max(count - self.pool.num_free, EVICTION_BATCH)):
                continue
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.totals.preemptions += 1
        self.recomputed_tokens += sequence.computed - sequence.shared
        self._release(sequence)
        self.waiting.appendleft(sequence)

    def _round(self, sequence: Sequence, plan: DraftPlan) -> Work:
        """Work that verifies a draft tree. The request pays for the largest one, and gets the rest back when it is
        settled: others that share its budget must not count on it meanwhile."""
        spend, tokens = sequence.meter.spend, 1 + plan.nodes
        flops = self._info.flops(tokens, sequence.computed) + plan.draft_flops
        sequence.meter.charge(tokens=tokens, flops=flops, step=self._step)
        spend.draft_tokens += plan.draft_tokens
        spend.output_tokens += plan.levels + 1
        return Work(sequence, sequence.computed, 1, self.pool.allocate(tokens), sequence.slots, True, plan)

    def _catch_up(self, sequence: Sequence, plan: DraftPlan) -> Work:
        """Work of the draft alone, in a step that the sequence itself sits out."""
        spend, none = sequence.meter.spend, np.empty(0, np.int64)
        spend.draft_tokens += plan.draft_tokens
        spend.flops += plan.draft_flops
        self.totals.iteration_tokens += plan.draft_tokens
        return Work(sequence, sequence.computed, 0, none, sequence.slots, False, plan)

    def settle_draft(self, work: Work, nodes: int, draft_tokens: int, draft_flops: float) -> None:
        """Charges a round what its tree of so many nodes really cost."""
        sequence, plan = work.sequence, work.plan
        assert plan is not None
        spend = sequence.meter.spend
        flops = self._info.flops(1 + nodes, sequence.computed) - self._info.flops(1 + plan.nodes, sequence.computed)
        spend.target_tokens += nodes - plan.nodes
        spend.draft_tokens += draft_tokens - plan.draft_tokens
        spend.flops += flops + draft_flops - plan.draft_flops
        spend.drafted_tokens += nodes
        self.totals.iteration_tokens += 1 + nodes + draft_tokens

    def commit_round(self, work: Work, path: tuple[int, ...], emitted: int) -> None:
        """After `emitted` tokens of a round were appended: the root and the accepted nodes among them keep their slots,
        all others are freed."""
        assert work.plan is not None
        sequence, spend = work.sequence, work.sequence.meter.spend
        # The last emitted token is not computed, unless it is an accepted node; then nothing follows it in this round.
        kept = [0, *path[: max(0, emitted - 1)]]
        sequence.extend(work.slots[kept])
        sequence.charged = max(sequence.charged, sequence.computed)
        self.free_round(work, kept)
        spend.output_tokens += emitted - (work.plan.levels + 1)
        accepted = min(len(path), emitted)
        spend.accepted_tokens += accepted
        spend.rounds += 1
        spend.accepted_by_level += [0] * (accepted - len(spend.accepted_by_level))
        for level in range(accepted):
            spend.accepted_by_level[level] += 1
        self.totals.generation_tokens += emitted

    def free_round(self, work: Work, kept: list[int]) -> None:
        """Gives back a round's slots but those of the nodes `kept`."""
        self.pool.free(np.delete(work.slots, kept))

    def _work(self, sequence: Sequence, count: int, plan: DraftPlan | None = None) -> Work:
        start, context, slots = sequence.computed, sequence.slots, self.pool.allocate(count)
        end = start + count
        fresh = max(0, end - max(start, sequence.charged))
        sequence.meter.charge(tokens=fresh, flops=self._info.flops(fresh, end - fresh), step=self._step)
        sequence.charged = max(sequence.charged, end)
        sequence.extend(slots)
        self.totals.iteration_tokens += count
        sample = end == sequence.length and sequence.length < sequence.max_length
        if sample:
            self.totals.generation_tokens += 1
            sequence.meter.spend.output_tokens += 1
        if plan is not None:
            sequence.meter.spend.draft_tokens += plan.draft_tokens
            self.totals.iteration_tokens += plan.draft_tokens
            sequence.meter.spend.flops += plan.draft_flops
        extra = self.pool.allocate(sequence.candidates if sample else 0)
        if len(extra):
            flops = len(extra) * self._info.flops(1, end)
            sequence.meter.charge(tokens=len(extra), flops=flops, step=self._step)
            self.totals.iteration_tokens += len(extra)
        return Work(sequence, start, count, slots, context, sample, plan, extra)

    def _publish(self, sequence: Sequence) -> None:
        """Hands what is computed to the prefix cache, and reads it from there from now on."""
        tokens, slots = sequence.tokens[: sequence.computed], sequence.slots
        salt = sequence.generation.cache_salt
        node, known = self.cache.insert(tokens, slots, salt)
        self.pool.free(slots[sequence.shared : known].copy())
        self.cache.lock(node)
        assert sequence.node is not None
        self.cache.unlock(sequence.node)
        _, cached = self.cache.match(tokens, salt)
        sequence.rebase(node, cached)

    def _release(self, sequence: Sequence) -> None:
        """Gives up a sequence's slots: to the prefix cache if it is on, else to the pool."""
        if self._use_cache:
            self._publish(sequence)
        else:
            self.pool.free(sequence.slots[sequence.shared :].copy())
        assert sequence.node is not None
        self.cache.unlock(sequence.node)
        sequence.node = None
        sequence.start_over()


def slots_in_use(scheduler: Scheduler) -> Slots:
    """Slots owned by running sequences (not by the cache), for invariant checks."""
    owned = [s.slots[s.shared :] for s in scheduler.running]
    return np.concatenate([np.empty(0, np.int64), *owned])
