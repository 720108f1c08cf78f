"""Who drafts: a second model with pools of its own, or the first layers of the target itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from torch import Tensor
from torch.nn import functional

from models.torch_runtime.batch import PackedBatch, Segment
from models.torch_runtime.decoder import FusedDecoder
from models.torch_runtime.kv_pool import SlotPool, Slots
from models.torch_runtime.model import ForwardModel
from strategies.errors import ModelLoadError
from strategies.runtime import ModelInfo

EARLY_EXIT = "early-exit"
CATCH_UP = 256
"""Most tokens that a draft model computes of one sequence's history in one step, before it can draft."""


class Drafter(Protocol):
    """Turns contexts into draft distributions. It keeps keys and values under the target's slot numbers."""

    @property
    def name(self) -> str: ...

    def computed(self, slots: Slots) -> int:
        """How many leading tokens of a sequence, whose slots these are, the draft has computed already."""

    def logits(self, segments: Sequence[Segment]) -> Tensor:
        """Computes new tokens; float32 [len(segments), vocab] after the last token of each segment. Freshly made."""

    def flops(self, tokens: int, context: int) -> float:
        """Operations of `tokens` new tokens after `context` others."""


class ModelDrafter:
    """A draft model whose vocabulary is the target's, or begins with it or is its beginning.

    A slot's draft keys and values are those of the token that was there when they were written: a slot that has been
    given away since counts as not computed.
    """

    def __init__(self, name: str, model: ForwardModel, info: ModelInfo, target_pool: SlotPool, vocab_size: int) -> None:
        shape = model.shape
        self.name = name
        self._model, self._info, self._target_pool = model, info, target_pool
        self._vocab_size = vocab_size
        self._pool = SlotPool(
            num_layers=shape.num_layers,
            num_slots=target_pool.num_slots,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.kv_dtype,
            device=shape.device,
        )
        self._written = np.full(target_pool.num_slots, -1, np.int64)

    @property
    def info(self) -> ModelInfo:
        return self._info

    def computed(self, slots: Slots) -> int:
        missing = self._written[slots] != self._target_pool.uses[slots]
        return int(missing.argmax()) if missing.any() else len(slots)

    def logits(self, segments: Sequence[Segment]) -> Tensor:
        # What the draft doesn't know it reads as another token: that costs acceptance, never exactness.
        largest = self._model.shape.vocab_size - 1
        known = [replace(segment, tokens=np.minimum(segment.tokens, largest)) for segment in segments]
        batch = PackedBatch(known, self._model.shape.device)
        hidden = self._model.forward(batch, self._pool)
        for segment in segments:
            self._written[segment.slots] = self._target_pool.uses[segment.slots]
        ends = [start + length - 1 for start, length in zip(batch.starts, batch.lengths, strict=True)]
        logits = self._model.logits(hidden[ends])
        extra = self._vocab_size - logits.shape[-1]
        return functional.pad(logits, (0, extra), value=float("-inf"))  # a negative padding cuts

    def flops(self, tokens: int, context: int) -> float:
        return self._info.flops(tokens, context)


class EarlyExitDrafter:
    """The target's first layers, its last norm and its output head. Their keys and values are the target's own, so
    what the target has computed is computed here too, and the same bits are written again when it verifies."""

    name = EARLY_EXIT

    def __init__(self, model: FusedDecoder, info: ModelInfo, pool: SlotPool, layers: int) -> None:
        """Raises ModelLoadError for a number of layers that the model doesn't have."""
        if not 1 <= layers < info.num_layers:
            raise ModelLoadError(f"early exit after {layers} layers: the model has {info.num_layers}")
        self._model, self._info, self._pool, self._layers = model, info, pool, layers
        head = info.vocab_size * info.hidden_size
        self._parameters = (info.matmul_parameters - head) * layers // info.num_layers + head

    def computed(self, slots: Slots) -> int:
        return len(slots)

    def logits(self, segments: Sequence[Segment]) -> Tensor:
        batch = PackedBatch(segments, self._model.shape.device)
        hidden = self._model.forward(batch, self._pool, layers=self._layers)
        ends = [start + length - 1 for start, length in zip(batch.starts, batch.lengths, strict=True)]
        return self._model.logits(hidden[ends])

    def flops(self, tokens: int, context: int) -> float:
        visible = tokens * context + tokens * (tokens + 1) // 2
        return 2.0 * self._parameters * tokens + 4.0 * self._layers * self._info.hidden_size * visible


def check_vocabularies(
    draft: ModelInfo, target: ModelInfo, draft_table: Sequence[bytes], target_table: Sequence[bytes]
) -> None:
    """Raises ModelLoadError unless the shorter of the two tokenizers' tables (bytes of each id) begins the longer."""
    for token, (ours, theirs) in enumerate(zip(draft_table, target_table, strict=False)):
        if ours != theirs:
            raise ModelLoadError(
                f"the draft model {draft.name} can't draft for {target.name}: token {token} is {ours!r} in its "
                f"vocabulary and {theirs!r} in the target's; choose a draft with the same tokenizer"
            )
    if abs(len(draft_table) - len(target_table)) > max(1024, len(target_table) // 10):
        raise ModelLoadError(
            f"the draft model {draft.name} has {len(draft_table)} tokens, the target {len(target_table)}; "
            "choose a draft with the same tokenizer"
        )
