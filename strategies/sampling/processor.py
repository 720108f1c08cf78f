"""A logits processor of transformers (or anything with its call) as a transform.

class Watermark(ProcessorTransform):
    name: ClassVar = "watermark"
    slot: ClassVar = "sampler"
    stage: ClassVar = Stage.BIAS
    bias: float = 2.5

    def processor(self, row: Row) -> LogitsProcessor:
        return WatermarkLogitsProcessor(vocab_size=..., device="cpu", bias=self.bias)
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor

from strategies.sampling.transform import Transform

if TYPE_CHECKING:
    from strategies.sampling.row import Row

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""(input_ids int64 [1, n], scores float32 [1, V]) -> scores [1, V]."""


class ProcessorState:
    """The processor of one sequence, which may keep notes of its own."""

    def __init__(self, processor: LogitsProcessor) -> None:
        self.processor = processor

    def advance(self, token: int) -> None:
        """It sees the token in the input_ids of its next call."""

    def fork(self) -> "ProcessorState":
        return ProcessorState(deepcopy(self.processor))


class ProcessorTransform(Transform):
    """Base of wrapped processors. They run row by row, so they cost more than a transform that is batched."""

    @abstractmethod
    def processor(self, row: "Row") -> LogitsProcessor:
        """A fresh processor for a new sequence."""

    def start(self, row: "Row") -> ProcessorState:
        return ProcessorState(self.processor(row))

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence["Row"], stages: Sequence[Self]) -> Tensor:
        for i, row in enumerate(rows):
            state = cast(ProcessorState, row.states[cls.name])
            ids = torch.tensor([[*row.prompt_ids, *row.output]], dtype=torch.int64, device=logits.device)
            logits[i] = state.processor(ids, logits[i : i + 1])[0]
        return logits
