"""The pipeline as a logits processor of vLLM's V1 model runner."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from models.vllm_runtime.drawing import Drawing
from models.vllm_runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class PipelineLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # vLLM may not be there when types are checked
    """Follows vLLM's batch by row; see `drawing` for what becomes of each."""

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        self._pipeline = Pipeline(vllm_config, device)
        self._rows: dict[int, Drawing] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """First who left, then who came, then who moved. Who came or moved may take the row of one who left, and that
        one is named nowhere else."""
        if batch_update is None:
            return
        rows, pipeline = self._rows, self._pipeline
        for index in batch_update.removed:
            pipeline.leave(rows.pop(index, None))
        for index, params, prompt, outputs in batch_update.added:
            pipeline.leave(rows.pop(index, None))
            sent = pipeline.read(params.extra_args)
            if sent is not None:
                rows[index] = pipeline.enter(sent, prompt or [], outputs)
        for one, other, direction in batch_update.moved:
            first, second = rows.pop(one, None), rows.pop(other, None)
            if first is not None:
                rows[other] = first
            if direction is not MoveDirectionality.SWAP:
                pipeline.leave(second)
            elif second is not None:
                rows[one] = second

    def apply(self, logits: Tensor) -> Tensor:
        """logits: float32 [rows, V]; a row of each request in the batch."""
        if self._rows:
            picked = sorted(self._rows)
            self._pipeline.draw(logits, picked, [self._rows[i] for i in picked])
        return logits
