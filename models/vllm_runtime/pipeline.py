"""What the processors of both of vLLM's model runners share: the requests that they know, and the draw."""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.tokenizer import load_tokenizer
from models.torch_runtime.weights import draw_with, kernels_for
from models.vllm_runtime.drawing import Drawing, draw_rows
from models.vllm_runtime.notes import VARIABLE, NoteWriter
from models.vllm_runtime.wire import Decoder, Sent
from models.vllm_runtime.worker import LAST
from strategies.registry import registered

PARKED = 512
"""Requests that left the batch and may come back, after a preemption."""


class Pipeline:
    """Lives in the worker, as long as the model does."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        self._tokenizer = load_tokenizer(Path(vllm_config.model_config.model))
        vocab_size = vllm_config.model_config.get_vocab_size()
        self._eos = frozenset(token for token in self._tokenizer.eos_token_ids if token < vocab_size)
        for transform in registered("transform").values():
            transform.prepare(self._tokenizer, device)
        self._draw = draw_with(kernels_for(device))
        self._notes = NoteWriter(os.environ.get(VARIABLE) if _reports() else None)
        self._decoder = Decoder(self._tokenizer)
        self._parked: OrderedDict[int, Drawing] = OrderedDict()

    def read(self, extra_args: Mapping[str, Any] | None) -> Sent | None:
        """What a request asks for; None if it isn't ours."""
        return self._decoder.decode(extra_args)

    def enter(self, sent: Sent, prompt: Sequence[int], outputs: list[int]) -> Drawing:
        """A request comes into the batch: with its state from before a preemption if it had one, since some transforms
        remember what they saw."""
        known = self._parked.pop(sent.key, None)
        if known is not None and known.followed <= len(outputs):
            known.outputs = outputs
            return known
        return Drawing(sent, prompt, outputs, self._eos, self._tokenizer)

    def leave(self, drawing: Drawing | None) -> None:
        """It goes, for good or not. What depends on its tokens alone can be made again."""
        if drawing is not None and any(stage.observes for stage in drawing.row.stages):
            self._parked[drawing.key] = drawing
            while len(self._parked) > PARKED:
                self._parked.popitem(last=False)

    def draw(self, logits: Tensor, picked: Sequence[int], drawings: Sequence[Drawing]) -> None:
        """See `draw_rows`."""
        for drawing in drawings:
            drawing.follow()
        draw_rows(logits, picked, drawings, self._draw, self._notes, LAST.of)


def _reports() -> bool:
    """Every rank of the last pipeline stage has all logits and draws the same tokens; one of them reports."""
    if not torch.distributed.is_initialized():
        return True
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    return bool(get_pp_group().is_last_rank and get_tp_group().is_first_rank)
