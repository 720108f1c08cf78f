"""Exact laws by enumeration: every way to draw a small tree, and every way in which its verification can end."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from strategies.randomness import Purpose
from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.rejection import AcceptanceRule, probabilities
from strategies.speculative.verify import verify

Law = dict[tuple[int, ...], float]


class ScriptedNoise:
    """Uniforms from a table by (purpose, node); what is missing is NaN, so that its use can't go unnoticed."""

    def __init__(self, table: Mapping[tuple[Purpose, int], Sequence[float]]) -> None:
        self.table = table

    def uniforms(self, purpose: Purpose, nodes: Sequence[int], index: Tensor) -> Tensor:
        rows = [self.table.get((purpose, node), ()) for node in nodes]
        values = [[row[i] if i < len(row) else math.nan for i in index.tolist()] for row in rows]
        return torch.tensor(values, dtype=torch.float64)


def log_of(p: Sequence[float] | Tensor) -> Tensor:
    """Natural logarithm, float64, -inf for 0."""
    return torch.as_tensor(p, dtype=torch.float64).log()


def ordered_draws(p: Sequence[float], k: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every sequence of min(k, support) draws without replacement, and its probability."""
    support = [token for token, mass in enumerate(p) if mass > 0]

    def extend(drawn: tuple[int, ...], probability: float) -> Iterator[tuple[tuple[int, ...], float]]:
        if len(drawn) == min(k, len(support)):
            yield drawn, probability
            return
        left = [token for token in support if token not in drawn]
        total = math.fsum(p[token] for token in left)
        for token in left:
            yield from extend((*drawn, token), probability * p[token] / total)

    yield from extend((), 1.0)


def iid_draws(p: Sequence[float], k: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every sequence of k draws with replacement, and its probability."""
    support = [token for token, mass in enumerate(p) if mass > 0]
    for drawn in product(support, repeat=k):
        yield drawn, math.prod(p[token] for token in drawn)


Draws = Callable[[Sequence[float], int], Iterator[tuple[tuple[int, ...], float]]]
Model = Callable[[tuple[int, ...]], Sequence[float]]


def trees(
    draft: Model, branching: Sequence[int], *, replacement: bool, ends: frozenset[int] = frozenset()
) -> Iterator[tuple[DraftTree, float]]:
    """Every tree of the given branching that can be drawn from the draft, and its probability."""
    draws: Draws = iid_draws if replacement else ordered_draws

    def grow(families: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], probability: float, level: int):
        """families: (path of the parent, its draws), of all levels above `level`."""
        tree = rebuild(families)
        if level == len(branching) or not tree.frontier():
            yield tree, probability
            return
        nodes = tree.frontier()
        options = [
            list(draws(draft(tuple(tree.path_tokens(node))), branching[level] * tree.multiplicity(node)))
            for node in nodes
        ]
        for choice in product(*options):
            grown = tuple(
                (tuple(tree.path_tokens(node)), drawn) for node, (drawn, _) in zip(nodes, choice, strict=True)
            )
            yield from grow(families + grown, probability * math.prod(mass for _, mass in choice), level + 1)

    def rebuild(families: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> DraftTree:
        tree = DraftTree(0, ends, replacement=replacement)
        at = {(): 0}
        for path, drawn in families:
            for token in drawn:
                at[(*path, token)] = tree.add(at[path], token)
            tree.draft_logprobs[at[path]] = log_of(draft(path))
        return tree

    yield from grow((), 1.0, 0)


def target_rows(tree: DraftTree, target: Model) -> Tensor:
    """Target log-probabilities at every node, [N+1, V]."""
    return log_of([list(target(tuple(tree.path_tokens(node)))) for node in range(len(tree) + 1)])


def verification_outcomes(
    rule: AcceptanceRule, tree: DraftTree, rows: Tensor
) -> list[tuple[float, dict[tuple[Purpose, int], list[float]]]]:
    """(probability, uniforms) of every way in which `verify` can go on this tree."""
    found = []

    def last(weights: Tensor, node: int, probability: float, script: dict[tuple[Purpose, int], list[float]]) -> None:
        ends = weights.cumsum(0) / weights.sum()
        for token, mass in enumerate((weights / weights.sum()).tolist()):
            if mass > 0:
                middle = float(ends[token]) - mass / 2
                found.append((probability * mass, {**script, (Purpose.RESIDUAL, node): [middle]}))

    def visit(node: int, probability: float, script: dict[tuple[Purpose, int], list[float]]) -> None:
        target = probabilities(rows[node])
        if not tree.tries[node]:
            last(target, node, probability, script)
            return
        row = tree.draft_logprobs.get(node)
        tokens = torch.tensor([[tree.tokens[child] for child in tree.tries[node]]])
        trials = rule(None if row is None else row[None], target[None], tokens)
        accept = trials.accept[0].tolist()
        refusing: list[float] = []
        for k, child in enumerate(tree.tries[node]):
            if accept[k] > 0:
                uniforms = [*refusing, accept[k] / 2, *[0.0] * (len(accept) - k - 1)]
                now = {**script, (Purpose.ACCEPT, node): uniforms}
                if tree.is_end(child):
                    found.append((probability * accept[k], now))
                else:
                    visit(child, probability * accept[k], now)
            refusing.append((1 + accept[k]) / 2)
            probability *= 1 - accept[k]
        if probability > 0:
            last(trials.residual[0], node, probability, {**script, (Purpose.ACCEPT, node): refusing})

    visit(0, 1.0, {})
    return found


def emitted_law(rule: AcceptanceRule, drawn: Iterator[tuple[DraftTree, float]], target: Model) -> Law:
    """Law of the tokens that a round emits, by running `verify` on every tree and every outcome."""
    jobs = []
    for tree, mass in drawn:
        rows = target_rows(tree, target)
        jobs += [(tree, rows, mass * p, ScriptedNoise(script)) for p, script in verification_outcomes(rule, tree, rows)]
    verdicts = verify(rule, [j[0] for j in jobs], [j[1] for j in jobs], [j[3] for j in jobs])
    law: Law = {}
    for (_, _, mass, _), verdict in zip(jobs, verdicts, strict=True):
        law[verdict.tokens] = law.get(verdict.tokens, 0.0) + mass
    return law


def first_tokens(law: Law, target: Model, count: int, ends: frozenset[int] = frozenset()) -> Law:
    """Law of the first `count` tokens when the target goes on by itself after a round; shorter where it ended."""
    done: Law = {}
    for tokens, mass in law.items():
        if len(tokens) >= count or (tokens and tokens[-1] in ends):
            done[tokens[:count]] = done.get(tokens[:count], 0.0) + mass
        else:
            grown = {(*tokens, t): mass * q for t, q in enumerate(target(tokens)) if q > 0}
            for key, value in first_tokens(grown, target, count, ends).items():
                done[key] = done.get(key, 0.0) + value
    return done


def distance(a: Law, b: Law) -> float:
    """Largest difference of two laws."""
    return max(abs(a.get(key, 0.0) - b.get(key, 0.0)) for key in a.keys() | b.keys())


def total_variation(a: Law, b: Law) -> float:
    """Half the sum of absolute differences."""
    return math.fsum(abs(a.get(key, 0.0) - b.get(key, 0.0)) for key in a.keys() | b.keys()) / 2


def p_value(observed: Tensor, expected: Tensor) -> float:
    """Pearson's chi-square; cells expecting fewer than 10 are pooled into one, dropped if it stays below 10."""
    expected = expected.to(torch.float64) * observed.sum()
    rare = expected < 10
    o, e = observed[~rare].to(torch.float64), expected[~rare]
    if expected[rare].sum() >= 10:
        o, e = torch.cat([o, observed[rare].sum()[None].to(o)]), torch.cat([e, expected[rare].sum()[None]])
    if len(e) < 2:
        return 1.0
    statistic = ((o - e) ** 2 / e).sum()
    return float(torch.special.gammaincc(torch.tensor((len(e) - 1) / 2, dtype=torch.float64), statistic / 2))
