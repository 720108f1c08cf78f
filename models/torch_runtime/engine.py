"""The engine: one step is schedule, forward, sample, commit. It runs on its own thread; see `runtime`."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from models.torch_runtime.batch import PackedBatch, Segment
from models.torch_runtime.contrast import contrast
from models.torch_runtime.drafters import Drafter
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.model import ForwardModel
from models.torch_runtime.scheduler import Scheduler, Work
from models.torch_runtime.sequence import Sequence as TokenSequence
from models.torch_runtime.speculation import Round, Speculator, default_first, verdicts, without_nan
from models.torch_runtime.step_trace import Record, probabilities, round_record, token_record, traced
from strategies.errors import RequestFailed
from strategies.randomness import gumbel_argmax
from strategies.runtime import LogprobsMode, ModelInfo, TokenLogprob
from strategies.sampling.pipeline import Target, target
from strategies.sampling.row import Row
from strategies.speculative.speculation import AutoSpeculation
from strategies.speculative.verify import Verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The outcome of one row: the token, whether its distribution was unusable, log-probabilities and trace if asked
    for."""

    token: int
    faulty: bool
    logprob: TokenLogprob | None
    trace: list[Record] | None = None


class Engine:
    """Continuous batching over one model. Not thread-safe: one thread calls `step`."""

    def __init__(
        self,
        model: ForwardModel,
        info: ModelInfo,
        *,
        num_slots: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: bool = True,
        draw: Callable[[Tensor, Tensor], Tensor] = gumbel_argmax,
        drafters: Callable[[SlotPool], Sequence[Drafter]] = lambda pool: (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """drafters: makes them, given the target's pool. clock: seconds, by which `auto` learns what steps cost.

        Raises ValueError for a pool in which the longest sequence does not fit: it would preempt itself for ever.
        """
        if num_slots < info.max_model_len:
            raise ValueError(f"{num_slots} KV slots can't hold a sequence of {info.max_model_len} tokens")
        shape = model.shape
        self.model = model
        self.pool = SlotPool(
            num_layers=shape.num_layers,
            num_slots=num_slots,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.kv_dtype,
            device=shape.device,
        )
        self.speculator = Speculator(info, default_first(drafters(self.pool)), num_slots, clock)
        self.scheduler = Scheduler(
            self.pool,
            info,
            self.speculator,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_cache=prefix_cache,
        )
        self.steps = 0
        self._draw = draw
        self.on_round: Callable[[Round, Tensor, Verdict], None] | None = None  # sees every round, for measurements
        self._clock = clock
        self._verifying = 0.0  # seconds of this step

    @torch.inference_mode()
    def step(self) -> bool:
        """Computes one forward pass for all that is scheduled. False when there was nothing to do."""
        started = self._clock()
        works = self.scheduler.schedule()
        if not works:
            return False
        self.steps += 1
        scheduled = self._clock()
        works, rounds = self._draft(works)
        drafting = self._clock() - scheduled
        if not works:
            return True
        segments = [rounds[i].target_segment() if i in rounds else self._segment(work) for i, work in enumerate(works)]
        batch = PackedBatch(segments, self.model.shape.device)
        hidden = self.model.forward(batch, self.pool)
        self._read_prompts(works, batch, hidden)
        self._verifying = 0.0
        self._commit(works, rounds, self._sample(works, rounds, batch, hidden))
        self.speculator.adaptive.observe_step(
            batch.num_tokens,
            len(rounds),
            target=self._clock() - started - drafting - self._verifying,
            draft=drafting,
            verify=self._verifying,
            whole=all(work.count == 1 and work.sample and not len(work.extra) for work in works),
        )
        return True

    @staticmethod
    def _segment(work: Work) -> Segment:
        tokens = work.sequence.tokens[work.start : work.start + work.count]
        return Segment.chain(tokens.astype(np.int64), work.slots, work.context)

    def _draft(self, works: list[Work]) -> tuple[list[Work], dict[int, Round]]:
        """What is left to compute by the target, and the draft trees by number of the work that they belong to. A
        request whose draft failed ends here."""
        rounds: dict[int, Round] = {}
        behind: list[TokenSequence] = []
        for i, work in enumerate(works):
            speculation = work.sequence.speculation
            if work.plan is None or speculation is None:
                continue
            if work.plan.levels:
                rounds[i] = Round(work.sequence, speculation, work.plan, work.slots)
            else:
                behind.append(work.sequence)
        if behind:
            self.speculator.catch_up(behind)
        if rounds:
            self.speculator.draft(list(rounds.values()))
            for i, one in rounds.items():
                work, tree = works[i], one.tree
                self.scheduler.settle_draft(work, len(tree), one.draft_tokens, one.draft_flops)
        done = [i for i, work in enumerate(works) if not work.count]
        for i, one in rounds.items():
            if one.fault is not None:
                works[i].sequence.fail(RequestFailed(f"internal error: {one.fault}"))
                self.scheduler.free_round(works[i], [])
                self.scheduler.finish(works[i].sequence)
                done.append(i)
        if done:
            kept = [i for i in range(len(works)) if i not in done]
            rounds = {place: rounds[i] for place, i in enumerate(kept) if i in rounds}
            works = [works[i] for i in kept]
        return works, rounds

    def _sample(
        self, works: Sequence[Work], rounds: Mapping[int, Round], batch: PackedBatch, hidden: Tensor
    ) -> dict[int, list[Sampled]]:
        """The tokens that each work emits: one, or a round's verdict."""
        spans: dict[int, range] = {}
        picks: list[int] = []
        rows: list[Row] = []
        for i, work in enumerate(works):
            if work.sample:
                end = batch.starts[i] + batch.lengths[i]
                first = batch.starts[i] if i in rounds else end - 1
                spans[i] = range(len(picks), len(picks) + end - first)
                picks += range(first, end)
                rows += rounds[i].rows if i in rounds else [work.sequence.row]
        if not spans:
            return {}
        logits = self.model.logits(hidden if len(picks) == len(hidden) else hidden[picks])
        scores = self._scores(works, spans, lambda: logits, "raw")
        telling = traced(works, spans)
        raw = probabilities(telling, spans, logits)
        targets = target(logits, rows)
        scores |= self._scores(works, spans, lambda: targets.logits, "processed")
        final = probabilities(telling, spans, targets.logits) if telling else {}
        single = [i for i in spans if i not in rounds]
        outcomes: dict[int, list[Sampled]] = {}
        if rounds:  # reads rows of all tokens; else a row may stay as few as it keeps
            values = targets.logits
            if values.is_cuda:
                torch.cuda.synchronize(values.device)  # else the forward would count as verification
            verifying = self._clock()
            outcomes = self._draw_rounds(rounds, spans, values, scores)
            self._verifying = self._clock() - verifying
            targets = Target(values[[spans[i].start for i in single]])
        if single:
            outcomes |= self._draw_single(works, single, targets, scores)
        for i in telling:
            outcomes[i] = self._told(works[i].sequence, rounds.get(i), outcomes[i], raw[i], final[i])
        return outcomes

    @staticmethod
    def _told(
        sequence: TokenSequence, one: Round | None, outcomes: Sequence[Sampled], raw: Tensor, final: Tensor
    ) -> list[Sampled]:
        """The outcomes with their records; raw, final: probabilities of the work's rows [N, V]."""
        nodes = [0] if one is None else [0, *one.path][: len(outcomes)]
        rows = [sequence.row] if one is None else one.rows
        told = []
        for place, (node, outcome) in enumerate(zip(nodes, outcomes, strict=True)):
            records: list[Record] = []
            if one is not None and place == 0 and not any(other.faulty for other in outcomes):
                records.append(round_record(one, final, [other.token for other in outcomes]))
            if not outcome.faulty:
                records.append(token_record(rows[node], outcome.token, raw[node], final[node]))
            told.append(replace(outcome, trace=records))
        return told

    @staticmethod
    def _scores(
        works: Sequence[Work], spans: Mapping[int, range], logits: Callable[[], Tensor], mode: LogprobsMode
    ) -> dict[int, Tensor]:
        """Log-probabilities of the rows of those that want them in this mode, by work. logits: asked for if needed."""
        wanted = [
            i
            for i in spans
            if works[i].sequence.generation.logprobs is not None and works[i].sequence.generation.logprobs_mode == mode
        ]
        if not wanted:
            return {}
        values = logits()[[row for i in wanted for row in spans[i]]].log_softmax(-1)
        sizes = [len(spans[i]) for i in wanted]
        return dict(zip(wanted, torch.split(values, sizes), strict=True))

    def _draw_single(
        self,
        works: Sequence[Work],
        single: Sequence[int],
        targets: Target,
        scores: Mapping[int, Tensor],
    ) -> dict[int, list[Sampled]]:
        """One token for each of the works `single`, of which `targets` has one row each; one device-to-host copy."""
        sequences = [works[i].sequence for i in single]
        faulty = targets.faulty()
        rows = [sequence.row for sequence in sequences]
        tokens = targets.sample(rows, [sequence.length for sequence in sequences], self._draw)
        searching = [j for j, i in enumerate(single) if len(works[i].extra)]
        if searching:
            sound = [j for j in searching if not bool(faulty[j])]
            searched = [works[single[j]] for j in sound]
            if sound:
                taken = contrast(self.model, self.pool, searched, targets.logits[sound])
                tokens[sound] = torch.tensor(taken, device=tokens.device)
            for j in searching:
                self.pool.free(works[single[j]].extra)
        host_tokens, host_faulty = torch.stack([tokens, faulty.to(tokens.dtype)]).tolist()
        chosen = dict(zip(single, host_tokens, strict=True))
        entries: dict[int, TokenLogprob] = {}
        scored = [i for i in single if i in scores]
        if scored:
            counts = [works[i].sequence.generation.logprobs or 0 for i in scored]
            values = torch.cat([scores[i] for i in scored])
            entries |= zip(scored, token_logprobs(values, [chosen[i] for i in scored], counts), strict=True)
        return {
            i: [Sampled(token, bool(bad), entries.get(i))]
            for i, token, bad in zip(single, host_tokens, host_faulty, strict=True)
        }

    def _draw_rounds(
        self,
        rounds: Mapping[int, Round],
        spans: Mapping[int, range],
        logits: Tensor,
        scores: Mapping[int, Tensor],
    ) -> dict[int, list[Sampled]]:
        """Each round's verdict: the tokens of the accepted path, and one more."""
        logits, faulty = without_nan(logits)
        drawn: dict[int, list[Sampled]] = {}
        for i, verdict in verdicts(rounds, spans, logits, self._draw).items():
            one, start = rounds[i], spans[i].start
            one.path = verdict.path
            if self.on_round is not None:
                self.on_round(one, logits[start : spans[i].stop], verdict)
            nodes = [0, *verdict.path][: len(verdict.tokens)]
            entries: list[TokenLogprob | None] = [None] * len(nodes)
            if i in scores:
                count = one.sequence.generation.logprobs or 0
                entries = [*token_logprobs(scores[i][nodes], verdict.tokens, [count] * len(nodes))]
            drawn[i] = [
                Sampled(token, faulty[start + node], entry)
                for token, node, entry in zip(verdict.tokens, nodes, entries, strict=True)
            ]
        return drawn

    def _read_prompts(self, works: Sequence[Work], batch: PackedBatch, hidden: Tensor) -> None:
        """Hands prompt positions' log-probabilities and hidden states to those who asked for them."""
        for i, work in enumerate(works):
            sequence, start = work.sequence, batch.starts[i]
            if sequence.wants_prompt_logits:
                self._score_prompt(work, hidden[start : start + work.count])
            if sequence.candidates:
                sequence.add_history(work.start, hidden[start : start + work.count])
            if sequence.wants_hidden:
                end = min(work.count, sequence.num_prompt - work.start)
                sequence.add_hidden(work.start, hidden[start : start + end])

    def _score_prompt(self, work: Work, hidden: Tensor) -> None:
        """Records log-probabilities of the prompt tokens that follow this chunk's positions."""
        sequence = work.sequence
        end = min(work.start + work.count, sequence.num_prompt - 1)
        targets = sequence.tokens[work.start + 1 : end + 1].tolist()
        if not targets:
            return
        raw = self.model.logits(hidden[: len(targets)]).log_softmax(-1)
        count = sequence.generation.prompt_logprobs or 0
        chosen = raw.gather(-1, torch.tensor(targets, device=raw.device)[:, None])
        ranks = (raw > chosen).sum(-1).tolist()
        for i, entry in enumerate(token_logprobs(raw, targets, [count] * len(targets))):
            sequence.add_prompt_logprob(work.start + 1 + i, replace(entry, rank=ranks[i] + 1))

    def _commit(
        self, works: Sequence[Work], rounds: Mapping[int, Round], outcomes: Mapping[int, Sequence[Sampled]]
    ) -> None:
        """Appends tokens, emits deltas, ends sequences. A fault ends its own request only."""
        for i, work in enumerate(works):
            sequence, one, unsettled = work.sequence, rounds.get(i), i in rounds
            try:
                if work.start < sequence.num_prompt <= work.start + work.count:
                    self.scheduler.finished_prefill(sequence)
                if i not in outcomes:
                    if sequence.pending == 0:
                        sequence.finish("length")
                        self.scheduler.finish(sequence)
                    continue
                emitted, going = 0, True
                for outcome in outcomes[i]:
                    if outcome.faulty:
                        sequence.fail(RequestFailed("the model's logits are not finite; nothing can be sampled"))
                        going = False
                    else:
                        going = sequence.append(outcome.token, outcome.logprob, outcome.trace)
                        emitted += 1
                    if not going:
                        break
                if isinstance(sequence.generation.speculation, AutoSpeculation) and sequence.num_outputs > emitted:
                    sequence.meter.spend.picks("off" if one is None else sequence.picked)
                if one is not None:
                    unsettled = False
                    self.scheduler.commit_round(work, one.path, emitted)
                    self.speculator.adaptive.observe_round(sequence, one.tree, one.path)
                if not going:
                    self.scheduler.finish(sequence)
            except Exception as error:  # a bug met by one request must not take the others down
                log.exception("a request failed")
                sequence.fail(RequestFailed(f"internal error: {error}"))
                if unsettled:
                    self.scheduler.free_round(work, [])
                if sequence in self.scheduler.running:
                    self.scheduler.finish(sequence)


def token_logprobs(raw: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Entries for `tokens` from log-probabilities float32 [R, V], each with its `counts[r]` most likely tokens."""
    chosen = raw.gather(-1, torch.tensor(tokens, device=raw.device)[:, None])[:, 0].tolist()
    most = min(max(counts), raw.shape[-1])
    if most == 0:
        return [TokenLogprob(token, value) for token, value in zip(tokens, chosen, strict=True)]
    values, ids = raw.topk(most, dim=-1)
    tops = [list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)]
    return [
        TokenLogprob(token, value, tuple(top[:count]))
        for token, value, top, count in zip(tokens, chosen, tops, counts, strict=True)
    ]
