"""The extra forward of contrastive search: every sequence's candidates, as leaves of its token tree."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.torch_runtime.batch import PackedBatch, Segment
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.model import ForwardModel
from models.torch_runtime.scheduler import Work
from strategies.sampling.contrastive import Contrastive, contrastive_of


def contrast(model: ForwardModel, pool: SlotPool, works: Sequence[Work], logits: Tensor) -> list[int]:
    """The tokens that contrastive search takes, one per work. logits: float32 [len(works), V], after the pipeline.

    A candidate is computed in one of the work's `extra` slots, which can be given back afterwards.
    """
    searches = [_search_of(work) for work in works]
    candidates: list[Tensor] = []
    segments: list[Segment] = []
    for work, search, row in zip(works, searches, logits, strict=True):
        tokens = row.topk(min(search.k, int(torch.isfinite(row).sum()))).indices
        candidates.append(tokens)
        context = np.concatenate([work.context, work.slots])
        for i, token in enumerate(tokens.tolist()):
            segments.append(Segment.chain([token], work.extra[i : i + 1], context))
    hidden = model.forward(PackedBatch(segments, model.shape.device), pool)
    chosen, start = [], 0
    for work, search, row, tokens in zip(works, searches, logits, candidates, strict=True):
        states = hidden[start : start + len(tokens)]
        start += len(tokens)
        probabilities = row.softmax(-1)[tokens]
        chosen.append(int(tokens[search.choose(probabilities, states, work.sequence.history)]))
    return chosen


def _search_of(work: Work) -> Contrastive:
    search = contrastive_of(work.sequence.row)
    assert search is not None
    return search
