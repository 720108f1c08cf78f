"""A process reward model at work: inputs of all searches that wait are scored together, on a worker thread.

It keeps no KV cache between calls: every value reads question and steps from the beginning.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.reward_models.protocols import Reader, Reading
from models.reward_models.read_out import ReadOut
from strategies.errors import RequestFailed
from strategies.search.context import SearchContext
from strategies.search.node import Node

BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding included; a longer input goes alone."""
NO_STEPS = 0.5
"""What a state without any step is worth."""

_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*")


class RewardModel:
    """Implements `ValueFunction`: a node's value is the score of its newest step. body: a transformers model without
    its head. Scores say whether a step is right, not whether the answer will be: `calibrated` is False."""

    calibrated = False

    def __init__(self, body: Any, read: Reader, scores: ReadOut, *, max_length: int, padding: int = 0) -> None:
        self._body = body
        self._read = read
        self._scores = scores
        self._max_length = max_length
        self._padding = padding
        config = body.config
        self._attention = 4.0 * config.num_hidden_layers * config.hidden_size
        embedding = body.get_input_embeddings().weight
        self._parameters = sum(parameter.numel() for parameter in body.parameters()) - embedding.numel()
        self._device = embedding.device
        self._waiting: list[tuple[Reading, asyncio.Future[list[float]]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def values(self, context: SearchContext, nodes: Sequence[Node]) -> list[float]:
        """Raises BudgetExhausted before anything is computed, RequestFailed for a state that the model can't read."""
        steps = [steps_of(node) for node in nodes]
        readings = [self._reading(context.question, one) for one in steps if one]
        context.charge_scorer(sum(len(one.tokens) for one in readings), sum(map(self.flops, readings)))
        found = iter(await asyncio.gather(*map(self._queued, readings)))
        return [next(found)[-1] if one else NO_STEPS for one in steps]

    async def step_scores(self, question: str, steps: Sequence[str]) -> list[float]:
        """The score of every step."""
        return await self._queued(self._reading(question, steps))

    def flops(self, reading: Reading) -> float:
        """Operations of one forward pass over a whole input."""
        n = len(reading.tokens)
        return float(2.0 * self._parameters * n + self._attention * n * (n + 1) / 2)

    def _reading(self, question: str, steps: Sequence[str]) -> Reading:
        reading = self._read(question, steps)
        if len(reading.tokens) > self._max_length:
            # Cutting off the end would cut off the newest step, whose score is wanted.
            raise RequestFailed(
                f"question and steps have {len(reading.tokens)} tokens, more than the {self._max_length} that the "
                "reward model reads"
            )
        return reading

    def _queued(self, reading: Reading) -> "asyncio.Future[list[float]]":
        future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._waiting.append((reading, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())
        return future

    async def _work(self) -> None:
        """Scores what waits, batch by batch, until nothing does."""
        await asyncio.sleep(0)  # whoever else asks in this round of the event loop joins the first batch
        while self._waiting:
            batch = self._next_batch()
            try:
                scores = await asyncio.to_thread(self.forward, [reading for reading, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(RequestFailed(f"the reward model failed: {error}"))
                continue
            for (_, future), one in zip(batch, scores, strict=True):
                if not future.done():
                    future.set_result(one)

    def _next_batch(self) -> list[tuple[Reading, "asyncio.Future[list[float]]"]]:
        waiting = [(reading, future) for reading, future in self._waiting if not future.done()]  # cancelled ones go
        count, longest = 0, 0
        for reading, _ in waiting:
            longest = max(longest, len(reading.tokens))
            if count and (count + 1) * longest > BATCH_TOKENS:
                break
            count += 1
        self._waiting = waiting[count:]
        return waiting[:count]

    @torch.inference_mode()
    def forward(self, readings: Sequence[Reading]) -> list[list[float]]:
        """The step scores of each input, padded on the right to one batch: nothing of a causal model sees padding."""
        if not readings:
            return []
        longest = max(len(reading.tokens) for reading in readings)
        tokens = torch.full((len(readings), longest), self._padding)
        for i, reading in enumerate(readings):
            tokens[i, : len(reading.tokens)] = torch.tensor(reading.tokens)
        output = self._body(input_ids=tokens.to(self._device), use_cache=False)
        states: Tensor = output.last_hidden_state
        rows = torch.cat([states[i, reading.positions] for i, reading in enumerate(readings)])
        scores = self._scores(rows.float())
        if not scores.isfinite().all():
            raise RequestFailed("a score of the reward model is not finite")
        sizes = [len(reading.positions) for reading in readings]
        return [part.tolist() for part in torch.split(scores.cpu(), sizes)]


def steps_of(node: Node) -> list[str]:
    """The steps of a state, blank ones left out: those of the search, or, of an answer that was written in one go, its
    paragraphs, else its lines."""
    parts = node.steps if node.depth > 1 else paragraphs(node.text)
    return [step for part in parts if (step := part.strip())]


def paragraphs(text: str) -> list[str]:
    """Parts between blank lines; lines where there is none."""
    text = text.strip()
    return _BLANK_LINE.split(text) if _BLANK_LINE.search(text) else text.split("\n")
