"""Steps and where they lead: rollouts of the beams, their kinds and scores, and one foresight path behind each.

Every candidate is a node; its noise comes from its place in the tree and its stage, so nothing that is pruned shifts
anybody else's draws. Scores are means of raw log-probabilities, every sampled token counted (but for tokens that lie
wholly in a client's stop string, which has no text).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from strategies.search.context import SearchContext
from strategies.search.node import Node
from strategies.search.phi_candidate import CandidateKind, StepEnd, classify, foresight, starved_beams, step_score
from strategies.search.phi_options import ForesightOptions, StepOptions

FINAL, ROLLOUT, FORESIGHT, RESAMPLE = range(4)
"""Stages of a node's children. The answer's is 0: behind the root it draws what a request without a search draws."""


@dataclass(slots=True, eq=False)
class Candidate:
    """A sampled step. beam: number of the beam it extends. s: its own score, None for an EMPTY one.

    F, text: score of its foresight and the text to cluster by. outlook: the node where its foresight ended (itself for
    a TERMINAL step); None before foresight and without it.
    """

    node: Node
    beam: int
    kind: CandidateKind
    s: float | None
    F: float | None = None
    text: str = ""
    outlook: Node | None = None


async def rollouts(
    context: SearchContext, beams: Sequence[Node], count: int, options: StepOptions, cap: int
) -> list[Candidate]:
    """`count` candidates of each beam, in order of the beams.

    Beams that got nothing but EMPTY ones are sampled once more with other noise (step ends never count before
    something that is not blank, so only a cap can have cut them).
    """
    found = await _sampled(context, beams, range(len(beams)), count, options, cap, ROLLOUT)
    starved = starved_beams([c.kind for c in found], [c.beam for c in found], range(len(beams)))
    if starved and not context.exhausted:
        found += await _sampled(context, beams, starved, count, options, cap, RESAMPLE)
    return sorted(found, key=lambda candidate: candidate.beam)


async def _sampled(
    context: SearchContext,
    beams: Sequence[Node],
    numbers: Sequence[int],
    count: int,
    options: StepOptions,
    cap: int,
    stage: int,
) -> list[Candidate]:
    children = await context.extend(
        [beams[b] for b in numbers],
        count,
        step_ends=options.step_ends,
        max_tokens=cap,
        temperature=options.temperature,
        stage=stage,
    )
    candidates = []
    for beam, nodes in zip(numbers, children, strict=True):
        for node in nodes:
            kind = classify(node.step_text, step_end(node))
            candidate = Candidate(node, beam, kind, step_score(kind, node.logprob, len(node.logprobs)))
            context.note(node, stage="rollout", kind=kind.value, s=candidate.s)
            candidates.append(candidate)
    return candidates


async def look_ahead(
    context: SearchContext, candidates: Sequence[Candidate], options: ForesightOptions, cap: int
) -> None:
    """Sets F, text and outlook of candidates that are not EMPTY: one continuation each, none behind a TERMINAL one."""
    extended = [c for c in candidates if c.kind is not CandidateKind.TERMINAL]
    paths = await context.extend(
        [c.node for c in extended], 1, max_tokens=cap, temperature=options.temperature, stage=FORESIGHT
    )
    for candidate, (path,) in zip(extended, paths, strict=True):
        candidate.outlook = path
        candidate.F, candidate.text = foresight(candidate.kind, candidate.s, "", closing(path))
        context.note(path, stage="foresight")
    for candidate in candidates:
        if candidate.kind is CandidateKind.TERMINAL:
            s, text = closing(candidate.node)
            candidate.outlook = candidate.node
            candidate.F, candidate.text = foresight(candidate.kind, s, text, None)


def closing(node: Node) -> tuple[float | None, str]:
    """(mean log-probability, text) of what a node adds.

    A finished node that adds no text only closes the step before it: it is scored and read together with that step. By
    itself it would have the score of one near-certain token, and no text to cluster by.
    """
    entries, text, parent = node.logprobs, node.step_text, node.parent
    if node.finished and not text.strip() and parent is not None and parent.parent is not None:
        entries, text = (*parent.logprobs, *entries), parent.step_text
    total = math.fsum(entry.logprob for entry in entries)
    return (total / len(entries) if entries else None), text


def step_end(node: Node) -> StepEnd:
    """Why a rollout ended, as `classify` takes it: an answer without room to grow is finished too."""
    return "finished" if node.finished else "separator" if node.end == "step" else "length"
