"""What the penalty does at one token, for traces: which tokens it changes, and the structure that repeats."""

from typing import Any

from strategies.sampling.grammar_repetition.policy import Penalties
from strategies.sampling.grammar_repetition.state import GrammarRepetitionState
from strategies.text import Tokenizer

MOST_TOKENS = 40
"""Changed tokens that are named, the strongest first; `changed` counts all."""
MOST_TEXT = 600
"""Characters shown of a repeated unit."""


def explained(state: GrammarRepetitionState, penalties: Penalties, tokenizer: Tokenizer) -> dict[str, Any]:
    """As JSON. factor: below 1 for a penalised token. repeats: what the penalty is for, with its latest copy."""
    ranked = sorted(penalties.factors.items(), key=lambda one: (one[1], one[0]))[:MOST_TOKENS]
    repeats: list[dict[str, Any]] = [
        {
            "level": hit.level,
            "container": hit.container,
            "period": hit.period,
            "copies": hit.copies,
            "context": hit.context,
            "text": _text(state.latest_copy(hit)),
        }
        for hit in state.hits
    ]
    verbatim = state.verbatim_repeat()
    if verbatim is not None:
        period, copies, unit = verbatim
        repeats.append({"level": "tokens", "period": period, "copies": copies, "text": _text(unit)})
    return {
        "language": state.language,
        "scale": penalties.scale,
        "changed": len(penalties.factors),
        "tokens": [
            {"id": token, "text": _text(tokenizer.token_bytes(token)), "factor": round(factor, 6)}
            for token, factor in ranked
        ],
        "repeats": repeats,
    }


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")[:MOST_TEXT]
