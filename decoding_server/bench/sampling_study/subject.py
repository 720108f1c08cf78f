"""The model under study: batches of generations on a runtime in this process, and logits at chosen positions."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.loading import ModelFiles
from models.torch_runtime.batch import PackedBatch, Segment
from models.torch_runtime.load import EngineOptions, load_runtime
from strategies.runtime import Generation, GenerationStream
from strategies.text import Tokenizer

CONTEXT = 2048
"""Tokens that a sequence may have here; what is asked for is shorter."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a generation gave. tokens: all ids that were sampled, the end of sequence included. reason: its
    finish_reason; stopped: the stop string or stop id that matched, None for an end of sequence."""

    tokens: list[int]
    text: str
    reason: str
    stopped: str | int | None


class Subject:
    """A loaded model. Raises ModelLoadError."""

    def __init__(self, files: ModelFiles, concurrency: int) -> None:
        # Without the prefix cache, what is computed does not depend on what was computed before it: a wave that is
        # measured again after an interruption gives the same rows.
        options = EngineOptions(max_num_seqs=concurrency, max_model_len=CONTEXT, prefix_cache=False)
        self._runtime = load_runtime(files, options)

    @property
    def name(self) -> str:
        return self._runtime.info.name

    @property
    def tokenizer(self) -> Tokenizer:
        return self._runtime.tokenizer

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._runtime.info.eos_token_ids

    def beginning(self, code: str) -> str:
        """The code without its last line end, where the tokenizer would join that with an indentation after it: the
        model has hardly ever seen such a line end alone before an indented line."""
        ids = self.tokenizer.encode(code)
        whole = self.tokenizer.encode(f"{code}    return")
        return code if whole[: len(ids)] == ids else code.removesuffix("\n")

    def close(self) -> None:
        self._runtime.close()

    async def generate(self, generations: Sequence[Generation]) -> list[Output]:
        """All at once, in one batch. Raises what `Runtime` raises."""
        return list(await asyncio.gather(*map(_read, self._runtime.submit(generations))))

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits float32 [P, V] of the token after each position, from one forward. Only while nothing is generated."""
        engine = self._runtime.engine
        slots = engine.pool.allocate(len(tokens))
        try:
            segment = Segment.chain(tokens, slots, slots[:0])
            hidden = engine.model.forward(PackedBatch([segment], engine.model.shape.device), engine.pool)
            return engine.model.logits(hidden[list(positions)]).float().cpu()
        finally:
            engine.pool.free(slots)


async def _read(stream: GenerationStream) -> Output:
    tokens: list[int] = []
    text = ""
    async for delta in stream:
        tokens += delta.tokens
        text += delta.text
        if delta.finish_reason is not None:
            return Output(tokens, text, delta.finish_reason, delta.stop_reason)
    raise AssertionError("a stream ended without a reason")
