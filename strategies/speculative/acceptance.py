"""Exact theory of speculative decoding: acceptance probabilities, and the tokens that a tree is expected to yield.

p is the draft's distribution at a node, q the target's, K the number of draws. "Acceptance" is the probability that any
of the node's children is accepted; "by try" splits it by the number of the draw, and sums to it. A method without a
closed form over all draws has one given the draws (`given_draws`), whose average over drawn trees estimates the rest
without the noise of accepting.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.rejection import (
    AcceptanceRule,
    Trials,
    probabilities,
    residual_distribution,
)
from strategies.speculative.spectr import any_accepted, optimal_rho, overlap


def chain_acceptance(p: Tensor, q: Tensor) -> float:
    """Speculative sampling with one draft: sum_x min(p, q), one minus the total variation. p, q: float64 [V]."""
    return float(torch.minimum(p, q).sum())


def with_replacement_by_try(p: Tensor, q: Tensor, draws: int) -> list[float]:
    """Recursive rejection of i.i.d. draws. p, q: float64 [V].

    The residuals do not depend on the draws, so the tries' acceptances sum_x min(p, q_k) multiply.
    """
    by_try = []
    reach = 1.0
    for _ in range(draws):
        accepted = chain_acceptance(p, q)
        by_try.append(reach * accepted)
        reach *= max(0.0, 1.0 - accepted)
        q = residual_distribution(p[None], q[None])[0]
    return by_try


def without_replacement_by_try(p: Tensor, q: Tensor, draws: int, most_states: int = 1_000_000) -> list[float]:
    """Recursive rejection of draws without replacement, by enumeration of the refused prefixes. p, q: float64 [V].

    Only tokens with p_k > q_k can be refused, so there are few states where p and q differ in few tokens.
    Raises ValueError when more than `most_states` numbers would be held.
    """
    by_try = []
    remaining, target, reach = p[None].clone(), q[None], p.new_ones(1)
    for k in range(draws):
        total = remaining.sum(-1, keepdim=True)
        law = torch.where(total > 0, remaining / total, 0.0)
        by_try.append(float((reach * torch.minimum(law, target).sum(-1)).sum()))
        refused = reach[:, None] * (law - target).clamp(min=0.0)
        state, token = (refused > 0).nonzero(as_tuple=True)
        if k + 1 == draws:
            break
        if len(state) * len(p) > most_states:
            raise ValueError(f"{len(state)} refused prefixes are too many to enumerate: estimate with given_draws")
        target = residual_distribution(law, target)[state]
        remaining = remaining[state].scatter(-1, token[:, None], 0.0)
        reach = refused[state, token]
    return by_try


def k_seq_acceptance(p: Tensor, q: Tensor, draws: int) -> float:
    """SpecTr's k-SEQ at the optimal rho: 1 - (1 - beta)^K. p, q: float64 [V]."""
    drafts = torch.tensor([draws], device=p.device)
    return float(any_accepted(overlap(p[None], q[None], optimal_rho(p[None], q[None], drafts)), drafts))


def inclusion_probabilities(p: Tensor, draws: int) -> Tensor:
    """Probability of each token to be among `draws` draws without replacement, float64 [V]. p: float64 [V].

    Enumerates the sets drawn: O(V^draws), for small vocabularies.
    """
    sets: dict[frozenset[int], float] = {frozenset(): 1.0}
    support = [token for token, mass in enumerate(p.tolist()) if mass > 0]
    for _ in range(min(draws, len(support))):
        grown: dict[frozenset[int], float] = {}
        for drawn, probability in sets.items():
            left = {token: float(p[token]) for token in support if token not in drawn}
            total = sum(left.values())
            for token, mass in left.items():
                key = drawn | {token}
                grown[key] = grown.get(key, 0.0) + probability * mass / total
        sets = grown
    included = torch.zeros_like(p)
    for drawn, probability in sets.items():
        included[list(drawn)] += probability
    return included


def target_matching_acceptance(p: Tensor, q: Tensor, draws: int) -> float:
    """Following a token drawn from q through children drawn without replacement from p. p, q: float64 [V]."""
    return float((inclusion_probabilities(p, draws) * q).sum())


def given_draws(trials: Trials) -> Tensor:
    """Unconditional acceptance probability of each try, given the draws, float64 [R, K]."""
    refused = (1.0 - trials.accept).cumprod(-1)
    before = torch.cat([torch.ones_like(refused[:, :1]), refused[:, :-1]], -1)
    return trials.accept * before


def emitted_law(trials: Trials, tokens: Tensor) -> Tensor:
    """Law of the token emitted at R nodes, given the draws, float64 [R, V]. tokens: int64 [R, K], -1 padding.

    Averaged over the draws it is the target's distribution: what exactness means.
    """
    law = (1.0 - trials.accept).prod(-1, keepdim=True) * trials.residual
    return law.scatter_add(-1, tokens.clamp(min=0), given_draws(trials))


def node_reach(rule: AcceptanceRule, tree: DraftTree, target_logprobs: Tensor) -> list[float]:
    """Probability that verification accepts each node of a drawn tree; 1 for the root.

    target_logprobs: [N+1, V], as `verify` takes them.
    """
    reach = [1.0] + [0.0] * len(tree)
    for node, tries in enumerate(tree.tries):
        if not tries:
            continue
        tokens = torch.tensor([[tree.tokens[child] for child in tries]], device=target_logprobs.device)
        row = tree.draft_logprobs.get(node)
        trials = rule(None if row is None else row[None], probabilities(target_logprobs[node])[None], tokens)
        for child, accepted in zip(tries, given_draws(trials)[0].tolist(), strict=True):
            reach[child] += reach[node] * accepted
    return reach


def tree_block_efficiency(rule: AcceptanceRule, tree: DraftTree, target_logprobs: Tensor) -> float:
    """Expected number of tokens that a drawn tree yields: accepted ones plus one, unless the sequence ends in it."""
    # An accepted node yields its own token, the root the last one; no last token follows a node that ends the sequence.
    reach = node_reach(rule, tree, target_logprobs)
    return sum(mass for node, mass in enumerate(reach) if not tree.is_end(node))


def block_efficiency(acceptances: Sequence[float]) -> float:
    """Expected tokens per round when a family of level l has a child accepted with probability acceptances[l].

    1 + a_1 + a_1 a_2 + ...; equal acceptances a over L levels give (1 - a^(L+1)) / (1 - a).
    """
    tokens, reach = 1.0, 1.0
    for accepted in acceptances:
        reach *= accepted
        tokens += reach
    return tokens


def memory_bound_speedup(efficiency: float, length: int, cost_ratio: float) -> float:
    """MBSU: efficiency / (1 + L rho), rho the cost of a draft forward over that of a target forward."""
    return efficiency / (1.0 + length * cost_ratio)
