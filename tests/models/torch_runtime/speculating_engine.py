"""The stepped engine with draft models, each as strict about slots, positions and tokens as the target is.

A draft that reads a slot must find there what the target's sequence has at that place; a draft bookkeeping error fails
at once instead of merely lowering the acceptance.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from stepped_engine import CheckedModel, SteppedEngine
from torch import Tensor

from models.scripted import Distribution
from models.torch_runtime.batch import PackedBatch
from models.torch_runtime.drafters import Drafter, ModelDrafter
from models.torch_runtime.engine import Engine
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.scheduler import Scheduler
from models.torch_runtime.sequence import Sequence as TokenSequence
from strategies.budget import Budget, Meter
from strategies.runtime import Generation
from strategies.speculative.speculation import (
    AutoSpeculation,
    ChainSpeculation,
    MultiDraftSpeculation,
    NgramSpeculation,
    RecursiveConstant,
    RecursiveStochastic,
    SpecTrSpeculation,
    Speculation,
)


def rsd_c(*branching: int, **options: Any) -> RecursiveConstant:
    return RecursiveConstant.model_validate({"branching": branching, **options})


def rsd_s(width: int, length: int, **options: Any) -> RecursiveStochastic:
    return RecursiveStochastic.model_validate({"width": width, "length": length, **options})


def chain(length: int, **options: Any) -> ChainSpeculation:
    return ChainSpeculation.model_validate({"length": length, **options})


def multi_draft(*branching: int) -> MultiDraftSpeculation:
    return MultiDraftSpeculation(branching=branching)


def spectr(width: int, length: int) -> SpecTrSpeculation:
    return SpecTrSpeculation.model_validate({"width": width, "length": length})


def ngram(length: int, **options: Any) -> NgramSpeculation:
    return NgramSpeculation.model_validate({"length": length, **options})


def auto(**options: Any) -> AutoSpeculation:
    return AutoSpeculation.model_validate(options)


METHODS: tuple[Speculation, ...] = (
    rsd_c(2, 2, 1), rsd_s(3, 3), chain(4), multi_draft(2, 2, 1), spectr(3, 3), ngram(4, max_ngram=2),
)  # fmt: skip
DEGENERATE: tuple[Speculation, ...] = (
    rsd_c(1), rsd_c(4), rsd_c(1, 1, 1), rsd_s(1, 1), rsd_s(1, 4), rsd_s(5, 1), rsd_s(8, 8), chain(1), chain(32),
    multi_draft(1), multi_draft(3), spectr(1, 1), spectr(4, 1), spectr(1, 3), ngram(1, max_ngram=1), ngram(32),
)  # fmt: skip


def shape_name(speculation: Speculation | None) -> str:
    """For test ids."""
    if speculation is None:
        return "plain"
    fields = speculation.model_dump(exclude={"drafter"}, exclude_defaults=True, by_alias=True)
    return "-".join([speculation.name, *(f"{value}".replace(" ", "") for value in fields.values())])


class CheckedDraft(CheckedModel):
    """A scripted draft that refuses a segment which isn't a running sequence's history, or a branch below it."""

    scheduler: Scheduler

    def forward(self, batch: PackedBatch, pool: SlotPool) -> Tensor:
        self.batches.append(list(batch.lengths))
        states = super(CheckedModel, self).forward(batch, pool)  # two sequences may both fill a shared slot's gap
        owners: dict[int | None, list[TokenSequence]] = {}
        for sequence in self.scheduler.running:
            owners.setdefault(int(sequence.slots[0]) if sequence.computed else None, []).append(sequence)
        for segment in batch.segments:
            slots = np.concatenate([segment.context, segment.slots])
            tokens = np.array([self._written[int(slot)][0] for slot in slots])
            assert any(
                np.array_equal(slots[: sequence.computed], sequence.slots[: len(slots)])
                and np.array_equal(tokens[: sequence.length], sequence.tokens[: len(slots)])
                for sequence in owners.get(int(slots[0]), owners.get(None, []))
            ), "the draft read or wrote what is no running sequence's"
        return states


class SpeculatingEngine(SteppedEngine):
    """A stepped engine with draft models: `drafts` by name, the first is the default."""

    def __init__(
        self,
        distribution: Distribution,
        drafts: Mapping[str, Distribution] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        **options: Any,
    ):
        super().__init__(distribution, **options)
        vocab = self.tokenizer.vocab_size
        self.drafts = {name: CheckedDraft(draft, vocab) for name, draft in (drafts or {}).items()}
        settings: dict[str, Any] = {
            "num_slots": 4096,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 256,
            "prefix_cache": True,
        }
        settings |= {name: options[name] for name in settings if name in options}
        self.engine = Engine(self.model, self.info, drafters=self._drafters, clock=clock, **settings)
        self.scheduler = self.engine.scheduler
        for draft in self.drafts.values():
            draft.scheduler = self.scheduler

    def _drafters(self, pool: SlotPool) -> Sequence[Drafter]:
        vocab = self.tokenizer.vocab_size
        return [
            ModelDrafter(name, draft, replace(self.info, name=name), pool, vocab) for name, draft in self.drafts.items()
        ]

    @property
    def draft(self) -> CheckedDraft:
        """The default draft."""
        return next(iter(self.drafts.values()))

    @property
    def leaked(self) -> int:
        """Slots that nobody has, once nothing runs."""
        return self.scheduler.pool.num_slots - self.scheduler.pool.num_free - self.scheduler.cache.size


def again(generation: Generation, budget: Budget | None = None, **changes: Any) -> Generation:
    """The same generation with a meter of its own."""
    return replace(generation, meter=Meter(budget or Budget()), **changes)
