"""The engine: one step is schedule, forward, sample, commit. It runs on its own thread; see `runtime`."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from models.torch_runtime.batch import PackedBatch, Segment
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.model import ForwardModel
from models.torch_runtime.scheduler import Scheduler, Work
from models.torch_runtime.sequence import Sequence as TokenSequence
from strategies.errors import RequestFailed
from strategies.randomness import gumbel_argmax
from strategies.runtime import ModelInfo, TokenLogprob
from strategies.sampling.pipeline import faulty_rows, process, sample

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The outcome of one row: the token, whether its distribution was unusable, and log-probabilities if asked for."""

    token: int
    faulty: bool
    logprob: TokenLogprob | None


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
    ) -> None:
        """Raises ValueError for a pool in which the longest sequence does not fit: it would preempt itself for ever."""
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
        self.scheduler = Scheduler(
            self.pool,
            info,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_cache=prefix_cache,
        )
        self.steps = 0
        self._draw = draw

    @torch.inference_mode()
    def step(self) -> bool:
        """Computes one forward pass for all that is scheduled. False when there was nothing to do."""
        works = self.scheduler.schedule()
        if not works:
            return False
        self.steps += 1
        batch = PackedBatch([self._segment(work) for work in works], self.model.shape.device)
        hidden = self.model.forward(batch, self.pool)
        scored = [i for i, work in enumerate(works) if work.sequence.wants_prompt_logits]
        for i in scored:
            self._score_prompt(works[i], hidden[batch.starts[i] : batch.starts[i] + works[i].count])
        for i, work in enumerate(works):
            if work.sequence.wants_hidden:
                end = min(work.count, work.sequence.num_prompt - work.start)
                work.sequence.add_hidden(work.start, hidden[batch.starts[i] : batch.starts[i] + end])
        sampling = [i for i, work in enumerate(works) if work.sample]
        ends = [batch.starts[i] + works[i].count - 1 for i in sampling]
        sampled = self._sample([works[i].sequence for i in sampling], hidden, ends) if sampling else []
        self._commit(works, dict(zip(sampling, sampled, strict=True)))
        return True

    @staticmethod
    def _segment(work: Work) -> Segment:
        tokens = work.sequence.tokens[work.start : work.start + work.count]
        return Segment.chain(tokens.astype(np.int64), work.slots, work.context)

    def _sample(self, sequences: Sequence[TokenSequence], hidden: Tensor, ends: Sequence[int]) -> list[Sampled]:
        """Draws one token per sequence from the hidden states at rows `ends`; one device-to-host copy."""
        logits = self.model.logits(hidden if len(ends) == len(hidden) else hidden[ends])
        wanted = {
            mode: [
                i
                for i, sequence in enumerate(sequences)
                if sequence.generation.logprobs is not None and sequence.generation.logprobs_mode == mode
            ]
            for mode in ("raw", "processed")
        }
        scored = [(wanted["raw"], logits[wanted["raw"]].log_softmax(-1))] if wanted["raw"] else []
        rows = [sequence.row for sequence in sequences]
        logits = process(logits, rows)
        if wanted["processed"]:
            scored.append((wanted["processed"], logits[wanted["processed"]].log_softmax(-1)))
        faulty = faulty_rows(logits)
        tokens = sample(logits, rows, [sequence.length for sequence in sequences], self._draw)
        host_tokens, host_faulty = torch.stack([tokens, faulty.to(tokens.dtype)]).tolist()
        logprobs: dict[int, TokenLogprob] = {}
        for members, values in scored:
            counts = [sequences[i].generation.logprobs or 0 for i in members]
            entries = token_logprobs(values, [host_tokens[i] for i in members], counts)
            logprobs |= zip(members, entries, strict=True)
        return [
            Sampled(token, bool(bad), logprobs.get(i))
            for i, (token, bad) in enumerate(zip(host_tokens, host_faulty, strict=True))
        ]

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

    def _commit(self, works: Sequence[Work], sampled: dict[int, Sampled]) -> None:
        """Appends tokens, emits deltas, ends sequences. A fault ends its own request only."""
        for i, work in enumerate(works):
            sequence = work.sequence
            try:
                if work.start < sequence.num_prompt <= work.start + work.count:
                    self.scheduler.finished_prefill(sequence)
                if i not in sampled:
                    if sequence.pending == 0:
                        sequence.finish("length")
                        self.scheduler.finish(sequence)
                elif sampled[i].faulty:
                    sequence.fail(RequestFailed("the model's logits are not finite; nothing can be sampled"))
                    self.scheduler.finish(sequence)
                elif not sequence.append(sampled[i].token, sampled[i].logprob):
                    self.scheduler.finish(sequence)
            except Exception as error:  # a bug met by one request must not take the others down
                log.exception("a request failed")
                sequence.fail(RequestFailed(f"internal error: {error}"))
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
