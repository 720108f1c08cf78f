"""What a traced sequence tells of each of its steps: the candidates of every token, and the draft tree of every round.

Records are JSON. `raw` is a token's probability by the model itself, `final` the one by which it was drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from models.torch_runtime.scheduler import Work
from models.torch_runtime.speculation import Round
from strategies.sampling.row import Row

Record = dict[str, Any]

CANDIDATES = 10
"""Tokens that a record names: so many of the most likely, before and after the pipeline."""
DIGITS = 6


def traced(works: Sequence[Work], spans: Mapping[int, range]) -> list[int]:
    """The works that want a trace, of those that sample."""
    return [i for i in spans if works[i].sequence.generation.traced]


def probabilities(which: Sequence[int], spans: Mapping[int, range], logits: Tensor) -> dict[int, Tensor]:
    """float32 [rows of the work, V] for each of the works, on the CPU: they are read number by number."""
    return {i: logits[spans[i].start : spans[i].stop].softmax(-1).cpu() for i in which}


def token_record(row: Row, token: int, raw: Tensor, final: Tensor) -> Record:
    """One token. raw, final: probabilities [V]. row: the sampling state before the token.

    kept: how many tokens could have been drawn; kept_mass: their share of the model's own distribution.
    """
    alive = final > 0
    count = min(CANDIDATES, len(final))
    best = {*final.topk(count).indices.tolist(), *raw.topk(count).indices.tolist(), token}
    ranked = sorted(best, key=lambda one: (-float(final[one]), -float(raw[one]), one))
    explained = [note for stage in row.stages if (note := stage.explain(row)) is not None]
    return {
        "event": "token",
        **spelled(row, token),
        "raw": rounded(raw[token]),
        "final": rounded(final[token]),
        "kept": int(alive.sum()),
        "kept_mass": rounded(raw[alive].sum()),
        "candidates": [{**spelled(row, one), "raw": rounded(raw[one]), "final": rounded(final[one])} for one in ranked],
        **({"stages": explained} if explained else {}),
    }


def round_record(one: Round, final: Tensor, tokens: Sequence[int]) -> Record:
    """One round of speculation. final: the target's probabilities [N+1, V] at the tree's nodes. tokens: its verdict's.

    nodes: the first is the last token before the round. draft: the probability with which the draft proposes the node
    behind its parent, null where it has no distribution; target: the target's at the same place.
    """
    tree, row = one.tree, one.sequence.row
    nodes: list[Record] = []
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        record: Record = {"parent": None if parent < 0 else parent, **spelled(row, token)}
        if parent >= 0:
            row_of_draft = tree.draft_logprobs.get(parent)
            draft = None if row_of_draft is None else rounded(row_of_draft.float().softmax(-1)[token])
            record |= {"draft": draft, "target": rounded(final[parent, token]), "accepted": node in one.path}
        nodes.append(record)
    bonus = tokens[len(one.path)] if len(tokens) > len(one.path) else None
    return {
        "event": "round",
        "nodes": nodes,
        "accepted": len(one.path),
        "next": None if bonus is None else spelled(row, bonus),
    }


def spelled(row: Row, token: int) -> Record:
    """A token's id and its text, in which bytes that are no whole character show as U+FFFD."""
    raw = b"" if row.tokenizer is None else row.tokenizer.token_bytes(token)
    return {"id": token, "text": raw.decode("utf-8", "replace")}


def rounded(value: Tensor) -> float:
    return round(float(value), DIGITS)
