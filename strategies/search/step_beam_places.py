"""Beam search over steps: keep the best states of a depth, extend each by several samples.

Tree of thoughts, breadth-first (LiteSearch's baseline): 5 children each, the best 5 of a depth are kept. Step beam
search with a reward model: n beams, the best n / m are kept and continued m times each; with n / m groups that do not
compete it is DVTS, diverse verifier tree search.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

VALUE_DIGITS = 6


def keep_best(values: Sequence[float], width: int) -> list[int]:
    """Indices of the `width` highest values, best first, ties by input order. Raises ValueError for a value that is
    not a number."""
    if any(math.isnan(value) for value in values):
        raise ValueError("a value is not a number")
    return sorted(range(len(values)), key=lambda i: -round(values[i], VALUE_DIGITS))[: max(width, 0)]


@dataclass(slots=True)
class StepBeamPlaces:
    """How many states live at each depth. beams: n; samples: m continuations each; n must be a multiple of m.

    independent: DVTS, where the n / m groups of m candidates each keep their own best.
    """

    beams: int
    samples: int
    independent: bool = False
    finished: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.beams < 1 or self.samples < 1 or self.beams % self.samples:
            raise ValueError("beams must be a positive multiple of samples")

    @property
    def width(self) -> int:
        """States kept a depth, less the solutions that finished: those keep their place."""
        return max(self.beams // self.samples - self.finished, 0)

    def keep(
        self, values: Sequence[float], terminal: Sequence[bool], groups: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """(candidates that live on, candidates that finished and are kept), each best first.

        values, terminal, groups: per candidate of this depth; a group is the beam of the first depth that a candidate
        descends from. A finished candidate takes one of the places, and for good.
        """
        if len({len(values), len(terminal), len(groups)}) > 1:
            raise ValueError("values, terminal and groups must be equally long")
        if self.independent:
            kept = [i for group in sorted(set(groups)) for i in self._best_of(group, values, groups)]
            kept = [kept[i] for i in keep_best([values[i] for i in kept], self.width)]
        else:
            kept = keep_best(values, self.width)
        ended = [i for i in kept if terminal[i]]
        self.finished += len(ended)
        return [i for i in kept if not terminal[i]], ended

    def _best_of(self, group: int, values: Sequence[float], groups: Sequence[int]) -> list[int]:
        members = [i for i, other in enumerate(groups) if other == group]
        return [members[i] for i in keep_best([values[i] for i in members], 1)]
