"""What searches cost, in tokens and floating-point operations, by the formulas that the papers report.

They are for comparing with published figures and for planning before anything runs; what a request really spent is
counted by the engine (`strategies.budget`).
"""

from dataclasses import dataclass


def phi_paper_flops(output_tokens: float, parameters: float) -> float:
    """6 n P: phi-decoding's own figure (arXiv 2503.13288), which counts a training step per generated token."""
    return 6.0 * output_tokens * parameters


def generation_flops(output_tokens: float, parameters: float) -> float:
    """2 N T: the compute-optimal paper's figure (arXiv 2408.00724); no prompt, no attention, no reward model."""
    return 2.0 * parameters * output_tokens


@dataclass(frozen=True, slots=True)
class FullCost:
    """The complete count beside the papers': every token that any model computed, and attention.

    context_positions: sum of the context lengths over the policy's computed tokens. attention_width: heads times head
    size. reward_tokens: tokens that the reward model computed, re-encoded prefixes included.
    """

    parameters: float
    generated_tokens: int
    prefill_tokens: int = 0
    cached_tokens: int = 0
    layers: int = 0
    attention_width: int = 0
    context_positions: int = 0
    reward_parameters: float = 0.0
    reward_tokens: int = 0

    @property
    def flops(self) -> float:
        """2 N (generated + prefill - cached) + 4 L d (context positions) + 2 N_reward (reward tokens)."""
        computed = self.generated_tokens + self.prefill_tokens - self.cached_tokens
        return (
            2.0 * self.parameters * computed
            + 4.0 * self.layers * self.attention_width * self.context_positions
            + 2.0 * self.reward_parameters * self.reward_tokens
        )


def phi_worst_tokens(beams: int, rollouts: int, steps: int, step_cap: int, foresight_cap: int, final_cap: int) -> int:
    """Tokens that phi-decoding may generate if every text runs to its cap and nothing is pruned."""
    return steps * beams * rollouts * (step_cap + foresight_cap) + beams * final_cap


def phi_expected_tokens(
    beams: int, rollouts: int, steps: int, answer_length: float, step_length: float, kept_share: float
) -> float:
    """sum_t (M N l + |S_t| max(L - t l, 0)) + M max(L - T l, 0), for answers of L tokens in steps of l."""
    pool = beams * rollouts
    left = [max(answer_length - t * step_length, 0.0) for t in range(1, steps + 1)]
    return pool * step_length * steps + kept_share * pool * sum(left) + beams * _rest(answer_length, steps, step_length)


def phi_sequential_depth(steps: int, answer_length: float, step_length: float) -> float:
    """Token steps one after the other, with unlimited batching: sum_t (l + L - t l) + (L - T l)."""
    left = sum(max(answer_length - t * step_length, 0.0) for t in range(1, steps + 1))
    return step_length * steps + left + _rest(answer_length, steps, step_length)


def _rest(answer_length: float, steps: int, step_length: float) -> float:
    return max(answer_length - steps * step_length, 0.0)
