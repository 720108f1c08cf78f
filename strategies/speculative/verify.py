"""Walking draft trees: target distributions at every node in, the accepted path and one more token out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.randomness import Purpose
from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.noise import Noise, categorical
from strategies.speculative.rejection import AcceptanceRule, Trials, probabilities
from strategies.speculative.support import tries_on_support


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a round emits.

    path: accepted nodes, from below the root down. tokens: their tokens and, unless the last of them ends the sequence,
    one token drawn from the target: the residual where a family was refused, the target itself below a leaf.
    """

    path: tuple[int, ...]
    tokens: tuple[int, ...]


def verify(
    rule: AcceptanceRule,
    trees: Sequence[DraftTree],
    target_logprobs: Sequence[Tensor],
    noises: Sequence[Noise | None],
) -> list[Verdict]:
    """One verdict per tree; all trees descend together, one batched call of the rule per level.

    target_logprobs: for each tree [N+1, V], the target's distribution after the request's pipeline at every node, up to
    a constant per row, -inf outside the support. noises: None at temperature 0, where the verdict is the arg-max chain
    (lowest id among equals). The emitted tokens' law is the target's (Jeon et al. 2024).
    """
    at = [0] * len(trees)
    paths: list[list[int]] = [[] for _ in trees]
    last: list[int | None] = [None] * len(trees)
    walking: list[int] = []
    for i, (tree, noise) in enumerate(zip(trees, noises, strict=True)):
        if noise is None:
            paths[i], last[i] = follow(tree, target_logprobs[i].argmax(-1).tolist())
        else:
            walking.append(i)
    while walking:
        leaves = [i for i in walking if not trees[i].tries[at[i]]]
        inner = [i for i in walking if trees[i].tries[at[i]]]
        walking = []
        if leaves:
            bonus = probabilities(torch.stack([target_logprobs[i][at[i]] for i in leaves]))
            _draw_last(bonus, leaves, noises, at, last)
        if inner:
            chosen, trials = _try_children(rule, inner, trees, target_logprobs, noises, at)
            refused = [row for row, k in enumerate(chosen) if k < 0]
            if refused:
                _draw_last(trials.residual[refused], [inner[row] for row in refused], noises, at, last)
            for i, k in zip(inner, chosen, strict=True):
                if k >= 0:
                    at[i] = trees[i].tries[at[i]][k]
                    paths[i].append(at[i])
                    if not trees[i].is_end(at[i]):
                        walking.append(i)
    return [
        Verdict(tuple(path), (*(tree.tokens[node] for node in path), *(() if token is None else (token,))))
        for tree, path, token in zip(trees, paths, last, strict=True)
    ]


def follow(tree: DraftTree, best: Sequence[int]) -> tuple[list[int], int | None]:
    """Follows `best[node]`, the token chosen after each node, down the tree: (accepted nodes, the token after them
    unless the last one is an end)."""
    path: list[int] = []
    node = 0
    while True:
        child = next((child for child in tree.tries[node] if tree.tokens[child] == best[node]), None)
        if child is None:
            return path, best[node]
        path.append(child)
        if tree.is_end(child):
            return path, None
        node = child


def _try_children(
    rule: AcceptanceRule,
    which: Sequence[int],
    trees: Sequence[DraftTree],
    target_logprobs: Sequence[Tensor],
    noises: Sequence[Noise | None],
    at: Sequence[int],
) -> tuple[list[int], Trials]:
    """Number of the accepted try at each tree's node, -1 if all were refused, and the trials."""
    target = torch.stack([target_logprobs[i][at[i]] for i in which])
    rows = [trees[i].draft_logprobs.get(at[i]) for i in which]
    draft = None if any(row is None for row in rows) else torch.stack([row for row in rows if row is not None])
    families = [[trees[i].tokens[child] for child in trees[i].tries[at[i]]] for i in which]
    width = max(len(family) for family in families)
    tokens = torch.tensor([family + [-1] * (width - len(family)) for family in families], device=target.device)
    index = torch.arange(width, device=target.device)
    uniforms = torch.cat([_uniforms(noises[i], Purpose.ACCEPT, at[i], index) for i in which])
    if draft is None:
        trials = rule(None, probabilities(target), tokens, uniforms)
    else:
        trials = tries_on_support(rule, draft, probabilities(target), tokens, uniforms)
    hits = uniforms < trials.accept
    chosen = torch.where(hits.any(-1), hits.to(torch.int8).argmax(-1), -1)
    return chosen.tolist(), trials


def _draw_last(
    weights: Tensor, which: Sequence[int], noises: Sequence[Noise | None], at: Sequence[int], last: list[int | None]
) -> None:
    """Draws the token that ends each tree's walk. weights: float64 [len(which), V]."""
    index = torch.zeros(1, dtype=torch.int64, device=weights.device)
    uniforms = torch.cat([_uniforms(noises[i], Purpose.RESIDUAL, at[i], index) for i in which])
    for i, token in zip(which, categorical(weights, uniforms)[:, 0].tolist(), strict=True):
        last[i] = token


def _uniforms(noise: Noise | None, purpose: Purpose, node: int, index: Tensor) -> Tensor:
    if noise is None:
        raise ValueError("a tree verified at random needs noise")
    return noise.uniforms(purpose, [node], index)
