"""The pipeline inside vLLM: each request's row of logits is processed and drawn here, and handed back with one token
that vLLM's greedy choice can't but take. So the distribution, the noise and thus the tokens are the torch runtime's.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.vllm_runtime.notes import NoteWriter
from models.vllm_runtime.wire import Sent, split
from strategies.errors import DecodingError
from strategies.runtime import Generation
from strategies.sampling.pipeline import target
from strategies.sampling.row import Row
from strategies.text import Tokenizer

log = logging.getLogger(__name__)

NOT_FINITE = "the model's logits are not finite; nothing can be sampled"
UNKNOWN = -1
"""What vLLM keeps in the place of a token that was not copied from the device yet."""


class Draw(Protocol):
    """`strategies.randomness.gumbel_argmax` or an equivalent kernel."""

    def __call__(self, logits: Tensor, keys: Tensor, /) -> Tensor: ...


class Drawing:
    """One request: its row of the pipeline, and how far that has followed vLLM's output."""

    __slots__ = ("fault", "followed", "hidden", "key", "length", "outputs", "processed", "row")

    def __init__(
        self, sent: Sent, prompt: Sequence[int], outputs: list[int], eos: frozenset[int], tokenizer: Tokenizer
    ) -> None:
        """outputs: vLLM's list, which grows. A fault of a transform is kept for the request, not raised: an exception
        here would end the engine."""
        self.key, self.processed, self.hidden = sent.key, sent.processed, sent.hidden
        self.outputs, self.followed, self.length = outputs, 0, len(prompt)
        self.fault: str | None = None
        begin, answer = split(prompt, sent.answer)
        one = sent.generation
        generation = Generation(begin, one.sampling, one.stopping, one.seed, one.branch, answer=answer)
        try:
            self.row = Row(generation, eos, tokenizer)
        except DecodingError as error:
            self.fault = str(error)
            self.row = Row(Generation(begin), eos, tokenizer)

    @property
    def position(self) -> int:
        """Tokens before the one to be drawn."""
        return self.length + self.followed

    def follow(self) -> None:
        """Takes in the tokens that vLLM has added."""
        while self.followed < len(self.outputs) and self.outputs[self.followed] != UNKNOWN:
            self.row.append(self.outputs[self.followed])
            self.followed += 1


def draw_rows(
    logits: Tensor,
    picked: Sequence[int],
    drawings: Sequence[Drawing],
    draw: Draw,
    notes: NoteWriter,
    hidden: Callable[[int], Tensor] | None,
) -> None:
    """Draws the next token of rows `picked` of logits float32 [R, V], whose largest value it becomes.

    hidden: the last hidden state [H] of a row, for those who want it.
    """
    whole = len(picked) == len(logits)
    index = torch.tensor(picked, device=logits.device)
    targets = target(logits if whole else logits[index], [drawing.row for drawing in drawings])
    faulty = targets.faulty()
    reporting = [i for i, drawing in enumerate(drawings) if drawing.processed is not None]
    scores = targets.logits[reporting].log_softmax(-1) if reporting else None
    tokens = targets.sample([d.row for d in drawings], [d.position for d in drawings], draw)
    logits[index, tokens] = float("inf")
    chosen, bad = torch.stack([tokens, faulty.to(tokens.dtype)]).tolist()
    for i, drawing in enumerate(drawings):
        if bad[i] or drawing.fault is not None:
            logits[picked[i]] = float("-inf")
            logits[picked[i], 0] = float("inf")
            notes.fault(drawing.key, drawing.fault or NOT_FINITE)
        elif drawing.hidden and hidden is not None:
            notes.hidden(drawing.key, drawing.position, hidden(picked[i]).float().cpu().numpy())
    if scores is not None:
        _report(scores, reporting, chosen, drawings, notes)


def _report(
    scores: Tensor, reporting: Sequence[int], chosen: Sequence[int], drawings: Sequence[Drawing], notes: NoteWriter
) -> None:
    """Notes of log-probabilities float32 [len(reporting), V]: the drawn token's, then the most likely ones'."""
    counts = [drawings[i].processed or 0 for i in reporting]
    values, ids = scores.topk(min(max(counts), scores.shape[-1]), dim=-1)
    drawn = torch.tensor([chosen[i] for i in reporting], device=scores.device)[:, None]
    all_values = torch.cat([scores.gather(-1, drawn), values], 1).cpu().numpy()
    all_ids = torch.cat([drawn, ids], 1).cpu().numpy().astype(np.int32)
    for place, (i, count) in enumerate(zip(reporting, counts, strict=True)):
        one, end = drawings[i], count + 1
        notes.logprobs(one.key, one.position, all_ids[place, :end], all_values[place, :end])
