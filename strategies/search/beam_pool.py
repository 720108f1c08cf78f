"""Beam search over tokens: bookkeeping of live and finished hypotheses with a length penalty; numbers only.

    score(y) = sum of log p(y_t) / |y| ** length_penalty

|y| counts generated tokens, the end token included. A penalty of 0 ranks by probability, 1 by mean log-probability,
more favours long answers. At every step each live beam offers its most likely tokens; of all offers, best first, those
that end go to the finished pool if they are among the first `width`, and the first `width` others live on.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

EarlyStopping = Literal["first", "heuristic", "never"]
"""When a search with `width` finished hypotheses ends: at once; when the best live one, scored at its present length,
can't beat the worst of them; or when it can't at any length still allowed (exact)."""

LOGPROB_DIGITS = 6
"""Cumulative log-probabilities are compared after rounding; ties go to the earlier beam, then the earlier offer."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A token sequence and the sum of its log-probabilities; finished: it ended by itself."""

    tokens: tuple[int, ...]
    logprob: float
    finished: bool = False

    def score(self, length_penalty: float) -> float:
        """Log-probability over length ** length_penalty; the empty one's is its log-probability."""
        return self.logprob / math.pow(max(len(self.tokens), 1), length_penalty)


@dataclass(frozen=True, slots=True)
class Extension:
    """What becomes of the beams in one step: live beam number `parent`, before the step, goes on with `token`."""

    parent: int
    token: int


def offers_needed(width: int, end_tokens: int) -> int:
    """How many of its most likely tokens each beam must offer: enough that, whichever of them end, `width` live on."""
    return width + end_tokens


@dataclass(slots=True)
class BeamPool:
    """The state of a beam search. `live` beams are ordered best first; the search starts from one empty beam.

    max_tokens: beams of that length are final. end_tokens: ids that finish a hypothesis.
    """

    width: int
    max_tokens: int
    end_tokens: Collection[int]
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = "never"
    live: list[Hypothesis] = field(default_factory=lambda: [Hypothesis((), 0.0)], init=False)
    finished: list[Hypothesis] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.width < 1 or self.max_tokens < 1:
            raise ValueError("width and max_tokens must be at least 1")

    @property
    def done(self) -> bool:
        """Whether no further step can matter, by the stopping rule."""
        if not self.live or len(self.live[0].tokens) >= self.max_tokens:
            return True
        if len(self.finished) < self.width:
            return False
        if self.early_stopping == "first":
            return True
        return round(self.best_attainable(), LOGPROB_DIGITS) <= round(self._worst_finished(), LOGPROB_DIGITS)

    def best_attainable(self) -> float:
        """The score that the best live beam may still reach: its log-probability can only fall, and with a positive
        penalty (unless "heuristic") the longest length flatters it most."""
        best = self.live[0]
        length = len(best.tokens) + 1
        if self.early_stopping == "heuristic":
            length = max(len(best.tokens), 1)
        elif self.length_penalty > 0:
            length = self.max_tokens
        return best.logprob / math.pow(length, self.length_penalty)

    def advance(
        self, offers: Sequence[Sequence[tuple[int, float]]], ends: Callable[[int, int], bool] | None = None
    ) -> list[Extension]:
        """Takes one step and returns the new live beams' origins, best first.

        offers: per live beam, (token, log-probability) of its most likely tokens, most likely first; see
        `offers_needed`. -inf is no offer. ends: whether a token finishes the live beam of that number, where that is
        not a matter of the token alone (stop strings); asked for the offers that come into question only. Raises
        ValueError for a wrong number of rows or a log-probability that is not a number.
        """
        if len(offers) != len(self.live):
            raise ValueError(f"{len(self.live)} beams are live, not {len(offers)}")
        candidates: list[tuple[float, int, int, int, float]] = []
        for beam, row in enumerate(offers):
            for rank, (token, logprob) in enumerate(row):
                if math.isnan(logprob):
                    raise ValueError("a log-probability is not a number")
                total = self.live[beam].logprob + logprob
                if total > -math.inf:
                    candidates.append((-round(total, LOGPROB_DIGITS), beam, rank, token, total))
        origins: list[Extension] = []
        survivors: list[Hypothesis] = []
        for place, (_, beam, _, token, total) in enumerate(sorted(candidates)):
            tokens = (*self.live[beam].tokens, token)
            if len(survivors) == self.width and place >= self.width:
                break
            if token in self.end_tokens if ends is None else ends(beam, token):
                if place < self.width:
                    self._finish(Hypothesis(tokens, total, finished=True))
            elif len(survivors) < self.width:
                survivors.append(Hypothesis(tokens, total))
                origins.append(Extension(beam, token))
        self.live = survivors
        return origins

    def best(self, count: int) -> list[Hypothesis]:
        """The `count` best hypotheses: finished ones, and live ones where too few finished or the length is spent."""
        pool = list(self.finished)
        if len(pool) < max(count, self.width) or (self.live and len(self.live[0].tokens) >= self.max_tokens):
            pool += [hypothesis for hypothesis in self.live if hypothesis.tokens]
        return sorted(pool, key=lambda h: -round(h.score(self.length_penalty), LOGPROB_DIGITS))[:count]

    def _finish(self, hypothesis: Hypothesis) -> None:
        """Keeps the `width` best finished ones; the earlier among equals."""
        self.finished.append(hypothesis)
        self.finished.sort(key=lambda h: -round(h.score(self.length_penalty), LOGPROB_DIGITS))
        del self.finished[self.width :]

    def _worst_finished(self) -> float:
        return self.finished[-1].score(self.length_penalty)
