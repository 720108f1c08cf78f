"""Trials on the draft's support are the trials; a truncated draft is just another draft."""

import pytest
import torch
from exact_laws import log_of

from strategies.speculative.acceptance import emitted_law
from strategies.speculative.rejection import (
    AcceptanceRule,
    probabilities,
    with_replacement,
    without_replacement,
)
from strategies.speculative.spectr import k_seq
from strategies.speculative.support import most_likely, support_columns, tries_on_support

RULES = pytest.mark.parametrize("rule", [without_replacement, with_replacement, k_seq])


def rows(seed: int, kept: int, size: int = 12) -> torch.Tensor:
    """Three rows with `kept` tokens in the support, not the same ones."""
    generator = torch.Generator().manual_seed(seed)
    return most_likely(torch.randn(3, size, generator=generator) * 2, kept)


@RULES
@pytest.mark.parametrize(("draft_kept", "target_kept"), [(3, 12), (12, 3), (4, 4), (12, 12), (3, 1)])
def test_same_trials(rule: AcceptanceRule, draft_kept: int, target_kept: int) -> None:
    for seed in range(10):
        draft, target = rows(seed, draft_kept), probabilities(rows(seed + 100, target_kept))
        tokens = torch.cat([draft.topk(3).indices[:, [1, 0, 2]], torch.full((3, 1), -1)], -1)
        plain = rule(draft, target, tokens)
        found = tries_on_support(rule, draft, target, tokens)
        assert torch.allclose(found.accept, plain.accept, rtol=0, atol=1e-13)
        assert torch.allclose(found.residual, plain.residual, rtol=0, atol=1e-10)
        assert not bool((found.residual[target == 0] > 0).any())
        assert torch.allclose(emitted_law(found, tokens).sum(-1), torch.ones(3, dtype=torch.float64))


@RULES
def test_disjoint_supports_leave_the_target(rule: AcceptanceRule) -> None:
    target = torch.tensor([[0.0, 0.3, 0.0, 0.7]], dtype=torch.float64)
    found = tries_on_support(rule, log_of([[0.5, 0.0, 0.5, 0.0]]), target, torch.tensor([[2, 0]]))
    assert found.accept.tolist() == [[0.0, 0.0]]
    assert found.residual[0].tolist() == pytest.approx(target[0].tolist(), abs=1e-15)


def test_columns_are_the_union() -> None:
    assert support_columns(log_of([[0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])).tolist() == [0, 1]


def test_most_likely() -> None:
    row = torch.tensor([[0.5, 3.0, -1.0, 2.0]])
    assert most_likely(row, 2).tolist() == [[-torch.inf, 3.0, -torch.inf, 2.0]]
    assert most_likely(row, 4) is row
    sparse = torch.tensor([[-torch.inf, 3.0, -torch.inf]])
    assert most_likely(sparse, 2).tolist() == sparse.tolist()
