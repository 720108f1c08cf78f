"""The pipeline as a logits processor of vLLM's Model Runner V2, which needs Triton.

There the tokens are on the device. A step's latest ones are copied to the host, where the transforms keep their state;
the engine waits for that copy.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from models.vllm_runtime.drawing import Drawing
from models.vllm_runtime.pipeline import Pipeline
from models.vllm_runtime.wire import Sent

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState


class PipelineLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # vLLM may not be there when types are checked
    """Knows the requests by vLLM's slots, which are used again: `add_request` begins a new one."""

    def __init__(self, vllm_config: "VllmConfig", req_states: "LogitsProcRequestState") -> None:
        self._pipeline = Pipeline(vllm_config, req_states.device)
        self._states = req_states
        self._arrived: dict[int, Sent] = {}
        self._slots: dict[int, Drawing] = {}

    def add_request(self, req_idx: int, sampling_params: "SamplingParams") -> bool:
        """Its tokens are on the device only after `apply_staged_writes`."""
        self._pipeline.leave(self._slots.pop(req_idx, None))
        self._arrived.pop(req_idx, None)
        sent = self._pipeline.read(sampling_params.extra_args)
        if sent is not None:
            before = [slot for slot, drawing in self._slots.items() if drawing.key == sent.key]
            for slot in before:  # it was preempted, and nobody has taken its slot yet
                self._pipeline.leave(self._slots.pop(slot))
            self._arrived[req_idx] = sent
        return sent is not None

    def apply_staged_writes(self) -> None:
        for slot, sent in self._arrived.items():
            prompt, filled = int(self._states.prompt_len.np[slot]), int(self._states.prefill_len.np[slot])
            tokens = self._states.all_token_ids.gpu[slot, :filled].tolist()
            self._slots[slot] = self._pipeline.enter(sent, tokens[:prompt], tokens[prompt:])
        self._arrived.clear()

    def apply(self, logits: Tensor, ctx: "LogitsContext") -> Tensor:
        """logits: float32 [rows, V]. Without speculation, which this runtime excludes, a row is a request."""
        slots = ctx.idx_mapping_np.tolist()
        picked = [row for row, slot in enumerate(slots) if slot in self._slots]
        if not picked:
            return logits
        latest, positions = torch.stack([ctx.input_ids, ctx.pos.to(ctx.input_ids.dtype)]).tolist()
        for row in picked:
            self._follow(slots[row], latest[row], positions[row])
        self._pipeline.draw(logits, picked, [self._slots[slots[row]] for row in picked])
        return logits

    def _follow(self, slot: int, latest: int, position: int) -> None:
        """Completes a request's output up to the token that was computed last, at `position` of its sequence."""
        drawing = self._slots[slot]
        known = drawing.length + len(drawing.outputs)
        if position > known:
            drawing.outputs += self._states.all_token_ids.gpu[slot, known:position].tolist()
        if position >= known:
            drawing.outputs.append(latest)
