"""`auto` in the engine: before each step it gives every sequence that asked for it a draft tree or none, and it learns
from what rounds accepted and what steps took.

What is chosen depends on rounds and timings that are over, so the output's distribution is the target's whatever is
chosen. Two small wastes keep the numbers true: a tree is tried now and then where none pays, for at most PROBE_SHARE of
the time, and one step in PLAIN_EVERY is plain where trees pay. Choosing takes time too: a tree must pay for it, and
while none does, so many steps are plain without choosing that it takes DECIDING_SHARE of the time. Costs are learned
from steps that compute no prompt; a server that computes prompts at every step never gets to speculate by itself.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from models.torch_runtime.drafters import CATCH_UP, Drafter
from models.torch_runtime.sequence import Sequence as TokenSequence
from strategies.runtime import ModelInfo
from strategies.speculative.acceptance_estimate import (
    AcceptanceCounts,
    Estimate,
    Family,
    estimate,
    own_counts,
    shared_counts,
)
from strategies.speculative.auto import LARGEST, NGRAM, OFF, Load, Menu, Shape, choose, extra_seconds, shapes_of
from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.ngram import longest_match
from strategies.speculative.speculation import AutoSpeculation, NgramSpeculation
from strategies.speculative.step_cost import CostCurve, Numbers, StepCosts

LOOKUP = NgramSpeculation()
"""How far look-up goes."""
KEEP_FOR = 4
"""Steps for which a choice holds while the same sequences run and look-up matches as much."""
PROBE_SHARE = 0.005
DECIDING_SHARE = 0.005
DECISIONS = 9
"""How many of the last choices say, by the mean of all but the slowest, what choosing takes; some must be there, since
the first ever is a cold start."""
PROBE_LENGTHS = {NGRAM: 3}
PROBE_LENGTH = 2
PLAIN_EVERY = 64
HORIZON = 64
"""Tokens that a sequence is expected to go on for, at most: over so many its draft's catching up has to pay."""


class Ready(NamedTuple):
    """A sequence that may get a tree in this step. match: tokens that look-up matched, 0 for none."""

    sequence: TokenSequence
    asked: AutoSpeculation
    match: int


class AdaptiveSpeculation:
    """State of one engine: costs, acceptance by drafter and kind of sampling, and credit for probes."""

    def __init__(
        self, info: ModelInfo, drafters: Mapping[str, Drafter], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """clock: seconds, by which choosing is timed."""
        self._clock = clock
        self._drafters = dict(drafters)
        self._menu = Menu(shapes_of([*drafters, NGRAM], LARGEST))
        self.costs = StepCosts(
            drafts={name: CostCurve() for name in drafters},
            ratios={name: drafter.flops(1, 0) / info.flops(1, 0) for name, drafter in drafters.items()},
        )
        self._shared: dict[tuple[str, str], AcceptanceCounts] = {}
        self._steps = 0
        self._choices: dict[tuple[int, ...], list[int]] = {}  # shapes of these sequences, by their matches
        self._choices_of: list[TokenSequence] = []
        self._chosen_at = -KEEP_FOR
        self._speculated = 0  # steps in a row
        self._probed: dict[str, int] = dict.fromkeys(self._menu.drafters, 0)  # by drafter: step of its last round
        self._active = False  # whether the step that is planned or computed has such a sequence
        self._probing = False
        self._plain_seconds = 0.0
        self._pursued: tuple[TokenSequence | None, str] = (None, "")  # whose draft is catching up for a probe
        self._credit = 0.0
        self._decisions: deque[float] = deque(maxlen=DECISIONS)  # seconds that they took
        self._deciding = 0.0  # see DECISIONS
        self._deciding_credit = 0.0
        self._took = 0.0  # of this step's seconds, those of choosing

    def choose(self, running: Sequence[TokenSequence], prefill_budget: int) -> None:
        """Sets `speculation` of every sequence that has `auto`, for the step that is being planned."""
        began, self._took = self._clock(), 0.0
        self._active = self._probing = False
        able: list[tuple[TokenSequence, AutoSpeculation]] = []
        for sequence in running:
            asked = sequence.generation.speculation
            if isinstance(asked, AutoSpeculation):
                sequence.speculation = None
                if sequence.pending == 1 and sequence.num_outputs:
                    able.append((sequence, asked))
        if not able:
            self._choices_of, self._pursued = [], (None, "")
            return
        self._steps += 1
        self._active = True
        if not self._speculated and self._pursued[0] is None and self._deciding_credit < self._deciding:
            return
        ready = [Ready(sequence, asked, self._matched(sequence, asked)) for sequence, asked in able]
        load = _load(running, prefill_budget)
        shapes = self._shapes(ready, load)
        for (sequence, asked, _), shape in zip(ready, shapes, strict=True):
            if shape != OFF:
                sequence.speculation = asked.round_of(self._menu.shapes[shape])
                sequence.picked = str(self._menu.shapes[shape])
                self._probed[self._menu.shapes[shape].drafter] = self._steps
        self._took = self._clock() - began
        self._decisions.append(self._took)
        if 3 * len(self._decisions) >= DECISIONS:
            self._deciding = (sum(self._decisions) - max(self._decisions)) / (len(self._decisions) - 1)
        self._deciding_credit = 0.0

    @staticmethod
    def _matched(sequence: TokenSequence, asked: AutoSpeculation) -> int:
        sequence.match = _match(sequence) if asked.drafter in (None, NGRAM) else 0
        return sequence.match

    def _shapes(self, ready: Sequence[Ready], load: Load) -> list[int]:
        before, now = self._choices_of, [one.sequence for one in ready]
        same = len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))
        if not same or self._steps - self._chosen_at >= KEEP_FOR:
            self._choices_of, self._chosen_at, self._choices = now, self._steps, {}
        matches = tuple(one.match for one in ready)
        if matches not in self._choices:
            expected, behind = self._expected(ready)
            self._choices[matches] = choose(self._menu, expected, behind, load, self.costs, self._deciding).chosen
        shapes = self._choices[matches]
        tokens = load.tokens + sum(float(self._menu.nodes[shape]) for shape in shapes if shape != OFF)
        if tokens > self.costs.target.largest:
            self._choices = {}  # a guess is tried once
        if all(shape == OFF for shape in shapes):
            self._speculated = 0
        else:
            self._speculated += 1
            if self._speculated % PLAIN_EVERY == 0:
                return [OFF] * len(shapes)
        return self._with_probe(ready, shapes, load)

    def _expected(self, ready: Sequence[Ready]) -> tuple[Numbers, Numbers]:
        """See `choose`: tokens that each sequence yields with each shape, and what its draft must compute first."""
        expected = np.ones((len(self._menu), len(ready)))
        behind = np.zeros_like(expected)
        for place, one in enumerate(ready):
            sequence, asked = one.sequence, one.asked
            levels = sequence.max_length - sequence.length - 1
            for drafter in self._usable(one):
                which = self._menu.of_drafter[drafter]
                which = which[self._menu.nodes[which] <= asked.max_nodes]
                believed = self._estimate(sequence, asked, drafter)
                expected[which, place] = self._menu.expected_tokens(which, believed, levels)
                behind[which, place] = self._behind(sequence, drafter) / max(1.0, min(levels, HORIZON) / 2)
        return expected, behind

    def _usable(self, one: Ready) -> Iterator[str]:
        for drafter in self._menu.drafters:
            if one.asked.drafter in (None, drafter) and (drafter != NGRAM or one.match):
                yield drafter

    def _behind(self, sequence: TokenSequence, drafter: str) -> int:
        return 0 if drafter == NGRAM else sequence.computed - self._drafters[drafter].computed(sequence.slots)

    def _with_probe(self, ready: Sequence[Ready], shapes: list[int], load: Load) -> list[int]:
        """One sequence may get a small tree from the drafter that was not asked for longest, instead of its own. A
        draft that is far behind catches up in the steps that follow, in one go; the debt is paid off later."""
        if not self.costs.target.known:
            return shapes
        plain = float(self.costs.target(np.array(float(load.tokens))))
        sequence, drafter = self._pursued
        for place, one in enumerate(ready):
            if one.sequence is sequence and drafter in self._usable(one):
                return self._probe(one, place, drafter, shapes, plain)
        using = {self._menu.shapes[shape].drafter for shape in shapes if shape != OFF}
        for drafter in sorted(self._menu.drafters, key=lambda name: self._probed[name]):
            if drafter in using:
                continue
            shape = self._probe_shape(drafter)
            for place in range(len(ready)):
                place = (place + self._steps) % len(ready)
                one = ready[place]
                if one.asked.max_nodes < self._menu.nodes[shape] or drafter not in self._usable(one):
                    continue
                behind = self._behind(one.sequence, drafter)
                # What the tree that it gives up would have saved, at most.
                lost = 0.0 if shapes[place] == OFF else plain * len(self._menu.shapes[shapes[place]].branching)
                cost = lost + extra_seconds(self._menu, shape, min(behind, CATCH_UP), load, self.costs)
                if cost <= self._credit:
                    self._credit = cost - lost  # nothing is saved up for a burst of probes
                    return self._probe(one, place, drafter, shapes, plain)
                return shapes  # a cheaper one must not use up what this one waits for
        return shapes

    def _probe(self, one: Ready, place: int, drafter: str, shapes: list[int], plain: float) -> list[int]:
        self._probing, self._plain_seconds = True, plain
        behind = self._behind(one.sequence, drafter) > CATCH_UP
        self._pursued = (one.sequence, drafter) if behind else (None, "")
        return [*shapes[:place], self._probe_shape(drafter), *shapes[place + 1 :]]

    def _probe_shape(self, drafter: str) -> int:
        return self._menu.shapes.index(Shape(drafter, (1,) * PROBE_LENGTHS.get(drafter, PROBE_LENGTH)))

    def _estimate(self, sequence: TokenSequence, asked: AutoSpeculation, drafter: str) -> Estimate:
        source = _source(sequence, drafter)
        shared = self._shared.setdefault((source, _kind(sequence, asked)), shared_counts())
        return estimate(sequence.acceptance.setdefault(source, own_counts()), shared)

    def observe_round(self, sequence: TokenSequence, tree: DraftTree, path: Sequence[int]) -> None:
        """What verification made of a tree."""
        asked, picked = sequence.generation.speculation, sequence.speculation
        if not isinstance(asked, AutoSpeculation) or picked is None:
            return
        source = _source(sequence, NGRAM if isinstance(picked, NgramSpeculation) else str(picked.drafter))
        families = families_of(tree, path)
        sequence.acceptance.setdefault(source, own_counts()).observe(families)
        self._shared.setdefault((source, _kind(sequence, asked)), shared_counts()).observe(families)

    def observe_draft(self, drafter: str, tokens: int, seconds: float) -> None:
        """One forward of a drafter, drawing the children included."""
        self.costs.drafts[drafter].observe(tokens, seconds)

    def observe_step(self, tokens: int, trees: int, *, target: float, draft: float, verify: float, whole: bool) -> None:
        """A step. target, draft, verify: its seconds, by part; choosing is in the target's. whole: every token
        was sampled from, as in the steps that are predicted; a step that also computes prompts has another price."""
        target -= self._took
        if self._active:
            self._credit += PROBE_SHARE * (target + draft + verify)
            self._deciding_credit += DECIDING_SHARE * (target + draft + verify)
        if self._probing:
            self._credit -= draft + verify + max(0.0, target - self._plain_seconds)
        if whole:
            self.costs.target.observe(tokens, target)
            if trees:
                self.costs.verify.observe(trees, verify)


def families_of(tree: DraftTree, path: Sequence[int]) -> list[Family]:
    """The families that verification came to on its way down `path`."""
    families, node = list[Family](), 0
    for child in path:
        families.append(Family(len(tree.tries[node]), tree.tries[node].index(child)))
        node = child
    if tree.tries[node]:
        families.append(Family(len(tree.tries[node]), -1))
    return families


def _load(running: Sequence[TokenSequence], prefill_budget: int) -> Load:
    """What the step computes besides the trees that are to be chosen."""
    tokens = outputs = trees = prefill = 0
    for sequence in running:
        if sequence.pending != 1:
            prefill += sequence.pending
            continue
        tokens, outputs = tokens + 1, outputs + 1
        if sequence.speculation is not None:
            tokens, trees = tokens + sequence.speculation.nodes(sequence.speculation.length), trees + 1
    return Load(tokens + min(prefill, max(0, prefill_budget)), outputs, trees)


def _match(sequence: TokenSequence) -> int:
    """How many of the last tokens occurred before, as far as look-up goes; 0 if it finds nothing."""
    return longest_match(sequence.tokens, LOOKUP.max_ngram, LOOKUP.min_ngram)[0]


def _source(sequence: TokenSequence, drafter: str) -> str:
    """Whose acceptance it is: a longer match of the context is right more often."""
    return f"{drafter} {sequence.match}" if drafter == NGRAM else drafter


def _kind(sequence: TokenSequence, asked: AutoSpeculation) -> str:
    """Kinds of sampling in which the same draft is accepted more or less often."""
    if sequence.row.greedy:
        return "greedy"
    return "coupled" if asked.couples_rounds else "sampled"
