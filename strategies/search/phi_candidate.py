"""Kinds of candidate steps in phi-decoding, and what each is worth when its text is empty, final or cut short.

The authors' code treats all alike: an empty continuation scores 0, the best mean log-probability there is, so whichever
candidate stops first wins. These rules are the server's, for every profile.
"""

from collections.abc import Collection, Sequence
from enum import Enum
from typing import Literal

StepEnd = Literal["separator", "finished", "length"]
"""Why a rollout ended: at the step separator; at end of sequence, a client's stop string or an end marker; at its
cap."""


class CandidateKind(Enum):
    """NORMAL and TRUNCATED steps are extended by foresight (the latter without inserting a separator), TERMINAL ones
    are finished solutions, EMPTY ones are dropped."""

    NORMAL = "normal"
    EMPTY = "empty"
    TERMINAL = "terminal"
    TRUNCATED = "truncated"


def classify(text: str, end: StepEnd) -> CandidateKind:
    """The kind of a rollout. text: what it generated, separator included or not.

    Nothing but blanks is EMPTY, however it was cut, but at end of sequence: there the beam itself is complete.
    """
    if end == "finished":
        return CandidateKind.TERMINAL
    if not text.strip():
        return CandidateKind.EMPTY
    return CandidateKind.NORMAL if end == "separator" else CandidateKind.TRUNCATED


def step_score(kind: CandidateKind, logprob: float, tokens: int) -> float | None:
    """s_i (eq. 8), the mean log-probability of the step, end-of-sequence token included; None (undefined) for EMPTY."""
    return None if kind is CandidateKind.EMPTY else mean_logprob(logprob, tokens)


def foresight(
    kind: CandidateKind, s: float | None, step_text: str, continuation: tuple[float | None, str] | None
) -> tuple[float | None, str]:
    """(F_i, text to cluster) of a kept candidate. continuation: (mean log-probability, text) of its foresight.

    A TERMINAL step has no continuation: F is its own s and its text the step's, so stopping first wins nothing.
    """
    if kind is CandidateKind.TERMINAL:
        return s, step_text
    return continuation if continuation is not None else (None, "")


def mean_logprob(logprob: float, tokens: int) -> float | None:
    """Mean log-probability of a text from its sum, every sampled token counted; None (undefined) for no tokens.

    A mean, not a sum: sums favour short texts.
    """
    return logprob / tokens if tokens > 0 else None


def starved_beams(kinds: Sequence[CandidateKind], beam: Sequence[int], beams: Collection[int]) -> list[int]:
    """The beams all of whose candidates are EMPTY, ascending. kinds, beam: per candidate.

    Sample them once more with leading separators swallowed; a beam that starves again is finished as it stands.
    """
    fed = {b for kind, b in zip(kinds, beam, strict=True) if kind is not CandidateKind.EMPTY}
    return sorted(set(beams) - fed)
