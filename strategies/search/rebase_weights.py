"""REBASE: a reward-balanced tree search's allocation of its budget (arXiv 2408.00724).

    B_0 = N                                                     N samples of the first step
    B_i = B_{i-1} - C_i                                         C_i solutions completed at depth i
    W_j = Round(B_i exp(R_j / T_b) / sum_k exp(R_k / T_b))      children of open node j   (eq. 1)

A node with W_j = 0 is pruned; it ends at B_i = 0. There are no rollouts, no visit counts and no backups.
"""

import math
from collections.abc import Sequence
from typing import Literal

from strategies.search.boltzmann import softmax

Allocation = Literal["seq_ceil", "largest_remainder", "round_half_up"]
RewardTransform = Literal["none", "logit", "rank"]

REWARD_DIGITS = 6
"""Rewards are rounded first, since their last bits depend on the batch they were computed in."""
SLACK = 1e-9
LOGIT_BOUND = 6.0


def shares(rewards: Sequence[float], budget: int, temperature: float) -> list[float]:
    """B exp(R_j / T_b) / sum exp(R_k / T_b), unrounded. Raises ValueError for a reward that is not finite (a node that
    could not be scored is dead: take it off the budget instead, see `remaining`) or T_b <= 0."""
    return [budget * weight for weight in softmax([round(reward, REWARD_DIGITS) for reward in rewards], temperature)]


def allocate(rewards: Sequence[float], budget: int, temperature: float, rule: Allocation = "seq_ceil") -> list[int]:
    """W_j for each open node, in input order.

    seq_ceil: best reward first, each takes the ceiling of its share of what is left (the authors' code); spends exactly
    B. largest_remainder: floors, then the rest to the largest fractions; spends exactly B. round_half_up: eq. 1 to
    the letter, which may over- or underspend; only where it would leave every node without a child, the best gets all.
    """
    if budget <= 0 or not rewards:
        return [0] * len(rewards)
    if rule == "seq_ceil":
        return sequential_ceiling(rewards, budget, temperature)
    if rule == "largest_remainder":
        return largest_remainder(rewards, budget, temperature)
    rounded = round_half_up(rewards, budget, temperature)
    return rounded if any(rounded) else [budget if i == _best_first(rewards)[0] else 0 for i in range(len(rewards))]


def sequential_ceiling(rewards: Sequence[float], budget: int, temperature: float) -> list[int]:
    """ceil(left * w_j / mass left), best node first, ties by input order; the last takes the rest."""
    order = _best_first(rewards)
    weights = shares(rewards, 1, temperature)
    # Masses from the small end: a mass got by subtracting would lose the small weights to cancellation.
    masses = [0.0]
    for j in reversed(order):
        masses.append(masses[-1] + weights[j])
    left, children = budget, [0] * len(rewards)
    for position, j in enumerate(order):
        mass = masses[len(order) - position]
        share = left * weights[j] / mass if mass > 0.0 else 0.0
        children[j] = left if position == len(order) - 1 else min(math.ceil(share - SLACK), left)
        left -= children[j]
    return children


def largest_remainder(rewards: Sequence[float], budget: int, temperature: float) -> list[int]:
    """Floors of the shares; what they leave goes one each to the largest fractions, ties by input order."""
    exact = shares(rewards, budget, temperature)
    children = [math.floor(share + SLACK) for share in exact]
    by_fraction = sorted(range(len(exact)), key=lambda j: -round(exact[j] - children[j], 9))
    for j in by_fraction[: budget - sum(children)]:
        children[j] += 1
    return children


def round_half_up(rewards: Sequence[float], budget: int, temperature: float) -> list[int]:
    """Eq. 1 to the letter; the sum may differ from B, and with B = 1 is mostly 0."""
    return [math.floor(share + 0.5 + SLACK) for share in shares(rewards, budget, temperature)]


def remaining(budget: int, completed: int, dead: int = 0) -> int:
    """B_i after a depth: less the solutions completed and the nodes that are dead (over-long, empty, not scored).

    Dead ones must be taken off too, or their slots are spent again one depth later.
    """
    return max(budget - completed - dead, 0)


def affordable_budget(budget: int, tokens_left: int | None, mean_step_tokens: float) -> int:
    """B lowered to what the tokens left pay for, one step each; 0 means vote among what is finished. None: no limit."""
    if tokens_left is None or mean_step_tokens <= 0:
        return budget
    return max(min(budget, math.floor(tokens_left / mean_step_tokens)), 0)


def transformed(rewards: Sequence[float], transform: RewardTransform) -> list[float]:
    """Rewards on another scale before they are allocated by: log-odds clipped to +-6, or ranks within the depth.

    "rank" maps them to 0..1, equal rewards to their mean rank; a single reward to 0.5.
    """
    if transform == "logit":
        return [_log_odds(reward) for reward in rewards]
    if transform == "rank":
        rounded = [round(reward, REWARD_DIGITS) for reward in rewards]
        top = len(rounded) - 1
        return [_mean_rank(rounded, reward) / top if top else 0.5 for reward in rounded]
    return list(rewards)


def effective_parents(children: Sequence[int]) -> float:
    """1 / sum of squared shares: how many nodes of a depth really go on. Between B/4 and B/1.5 is a sound T_b."""
    total = sum(children)
    return total * total / sum(count * count for count in children) if total else 0.0


def _best_first(rewards: Sequence[float]) -> list[int]:
    return sorted(range(len(rewards)), key=lambda j: -round(rewards[j], REWARD_DIGITS))


def _log_odds(reward: float) -> float:
    if not 0.0 < reward < 1.0:
        return LOGIT_BOUND if reward >= 1.0 else -LOGIT_BOUND
    return min(max(math.log(reward / (1.0 - reward)), -LOGIT_BOUND), LOGIT_BOUND)


def _mean_rank(rewards: Sequence[float], reward: float) -> float:
    below = sum(other < reward for other in rewards)
    return below + (sum(other == reward for other in rewards) - 1) / 2
