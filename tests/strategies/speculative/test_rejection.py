"""Recursive rejection sampling, k-SEQ and target matching on distributions as truncation samplers leave them."""

import math

import pytest
import torch
from exact_laws import iid_draws, log_of, ordered_draws
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.speculative.acceptance import emitted_law, given_draws
from strategies.speculative.chain import speculative_sampling
from strategies.speculative.noise import categorical
from strategies.speculative.rejection import (
    AcceptanceRule,
    probabilities,
    target_matching,
    with_replacement,
    without_replacement,
)
from strategies.speculative.spectr import any_accepted, k_seq, optimal_rho, overlap

RULES = [
    (without_replacement, ordered_draws),
    (with_replacement, iid_draws),
    (k_seq, iid_draws),
    (target_matching, ordered_draws),
]
ALL_RULES = pytest.mark.parametrize(("rule", "draws"), RULES, ids=["without", "with", "k_seq", "matching"])


@st.composite
def distribution(draw: st.DrawFn, size: int) -> list[float]:
    """Zeros, ties, one-hot, and masses over many orders of magnitude."""
    weight = st.one_of(st.sampled_from([0.0, 0.0, 1.0, 1.0, 2.0]), st.floats(1e-12, 1.0), st.just(1e-300))
    weights = draw(st.lists(weight, min_size=size, max_size=size).filter(lambda w: sum(w) > 0))
    return [w / sum(weights) for w in weights]


@st.composite
def pair(draw: st.DrawFn) -> tuple[list[float], list[float], int]:
    size = draw(st.integers(1, 4))
    return draw(distribution(size)), draw(distribution(size)), draw(st.integers(1, 3))


@ALL_RULES
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=pair())
def test_exact_for_any_pair_of_distributions(rule: AcceptanceRule, draws, case) -> None:
    p, q, k = case
    outcomes = list(draws(p, k))
    tokens = torch.tensor([drawn for drawn, _ in outcomes])
    target = torch.tensor(q, dtype=torch.float64).expand(len(tokens), -1)
    trials = rule(log_of(p).expand(len(tokens), -1), target, tokens)
    law = emitted_law(trials, tokens)
    assert not bool(law.isnan().any())
    assert not bool((trials.residual[target == 0] > 0).any())
    assert not bool((trials.accept[target.gather(-1, tokens) == 0] > 0).any())
    masses = torch.tensor([mass for _, mass in outcomes], dtype=torch.float64)
    assert (law * masses[:, None]).sum(0).tolist() == pytest.approx(q, abs=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=pair())
def test_the_chain_is_every_rule_with_one_draw(case) -> None:
    p, q, _ = case
    tokens = torch.tensor([drawn for drawn, _ in iid_draws(p, 1)])
    args = log_of(p).expand(len(tokens), -1), torch.tensor(q, dtype=torch.float64).expand(len(tokens), -1), tokens
    chain = speculative_sampling(*args)
    for rule in (without_replacement, with_replacement, k_seq):
        other = rule(*args)
        assert other.accept.tolist() == [pytest.approx(row, abs=1e-12) for row in chain.accept.tolist()]
        likely = chain.accept[:, 0] < 1 - 1e-3
        assert torch.allclose(other.residual[likely], chain.residual[likely], atol=1e-9)


@ALL_RULES
def test_padding_changes_nothing(rule: AcceptanceRule, draws) -> None:
    del draws
    p, q = log_of([[0.4, 0.3, 0.2, 0.1]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    short = rule(p, q, torch.tensor([[1, 0]]))
    padded = rule(p, q, torch.tensor([[1, 0, -1, -1]]))
    assert padded.accept.tolist() == [[*short.accept[0].tolist(), 0.0, 0.0]]
    assert torch.equal(padded.residual, short.residual)


@ALL_RULES
def test_uniforms_only_stop_the_work_early(rule: AcceptanceRule, draws) -> None:
    """Up to the accepted try, and in the residual when none is, the trials are the same with uniforms."""
    p, q = log_of([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.3, 0.0, 0.3, 0.4], dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    for drawn, _ in draws(p.exp().tolist(), 3):
        tokens = torch.tensor([drawn])
        full = rule(p[None], q[None], tokens)
        uniforms = torch.rand(1, 3, generator=generator, dtype=torch.float64)
        early = rule(p[None], q[None], tokens, uniforms)
        hits = (uniforms < full.accept)[0].tolist()
        assert (uniforms < early.accept)[0].tolist()[: hits.index(True) + 1 if True in hits else 3] == (
            hits[: hits.index(True) + 1 if True in hits else 3]
        )
        if True not in hits:
            assert torch.equal(early.residual, full.residual)


@ALL_RULES
def test_inputs_are_not_written(rule: AcceptanceRule, draws) -> None:
    del draws
    p, q = log_of([[0.4, 0.3, 0.2, 0.1]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    before = p.clone(), q.clone()
    rule(p, q, torch.tensor([[0, 1, 2]]))
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


@pytest.mark.parametrize("rule", [without_replacement, with_replacement, k_seq, speculative_sampling])
def test_draft_probabilities_are_required(rule: AcceptanceRule) -> None:
    with pytest.raises(ValueError, match="log-probabilities"):
        rule(None, torch.ones(1, 1, dtype=torch.float64), torch.tensor([[0]]))


@pytest.mark.parametrize("rule", [without_replacement, with_replacement, k_seq])
def test_a_one_hot_target_accepts_its_token_and_no_other(rule: AcceptanceRule) -> None:
    """200 drafts: the arg-max is accepted for certain when it is tried, whatever was tried before."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        p = torch.rand(6, generator=generator, dtype=torch.float64) ** 8
        best = int(torch.randint(6, (1,), generator=generator))
        q = torch.nn.functional.one_hot(torch.tensor([best]), 6).double()
        tokens = torch.randperm(6, generator=generator)[None, :4]
        trials = rule(log_of(p)[None], q, tokens)
        assert torch.equal(trials.residual, q)
        assert trials.accept[0].tolist() == pytest.approx([float(t == best) for t in tokens[0].tolist()], abs=1e-12)
        assert bool((trials.accept[tokens != best] == 0).all())


def test_certain_drafts_leave_the_one_hot_token_to_the_later_try() -> None:
    """A rejection that leaves next to no residual mass does not end the tries."""
    p = log_of([[1 - 1e-14, 1e-14]])
    trials = without_replacement(p, torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[1, 0]]))
    assert trials.accept.tolist() == [[0.0, 1.0]]


def test_the_draft_is_renormalised_without_cancellation() -> None:
    """After a token of log-weight 700 more than the rest, the rest is still a distribution."""
    logprobs = torch.tensor([[700.0, 1.0, 0.5, 0.0]])
    rest = torch.softmax(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), 0)
    q = torch.tensor([[0.0, 0.2, 0.3, 0.5]], dtype=torch.float64)
    trials = without_replacement(logprobs, q, torch.tensor([[0, 1, 2, 3]]))
    assert trials.accept[0, 0] == 0
    assert float(trials.accept[0, 1]) == pytest.approx(0.2 / float(rest[0]))
    assert trials.accept[0, 1] < 1


def test_float32_rows_of_a_large_vocabulary_keep_the_residual() -> None:
    """Draft = target plus small noise: the rejection mass is about 1e-4, and its shape must survive."""
    generator = torch.Generator().manual_seed(11)
    target = torch.randn(32_000, generator=generator) * 2
    draft = target + 3e-4 * torch.randn(32_000, generator=generator)
    q, p = (torch.softmax(x.double(), 0) for x in (target, draft))
    token = int((p - q).argmax())
    trials = without_replacement(draft[None], q[None], torch.tensor([[token]]))
    excess = (q - p).clamp(min=0)
    assert 1e-5 < float(excess.sum()) < 1e-3
    assert float((trials.residual[0] - excess / excess.sum()).abs().sum()) < 1e-9


def test_identical_distributions_are_always_accepted() -> None:
    row = torch.randn(1000, generator=torch.Generator().manual_seed(2))[None]
    for rule in (without_replacement, with_replacement, k_seq):
        trials = rule(row, probabilities(row), torch.tensor([[7, 3]]))
        # Rounding can put k-SEQ's rho a little above 1; some try still succeeds.
        assert float(given_draws(trials).sum()) == pytest.approx(1.0, abs=1e-12)
        assert not bool(trials.residual.isnan().any())
        assert float(trials.residual.sum()) == pytest.approx(1.0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=pair())
def test_rho_is_feasible_and_the_smallest(case) -> None:
    p, q = (torch.tensor([row], dtype=torch.float64) for row in case[:2])
    drafts = torch.tensor([case[2]])
    rho = optimal_rho(p, q, drafts)
    assert 1 <= float(rho) <= case[2]
    beta = overlap(p, q, rho)
    assert float(rho * beta - any_accepted(beta, drafts)) >= 0 or case[2] == 1
    if float(rho) > 1.001:
        smaller = rho - 1e-3
        beta = overlap(p, q, smaller)
        assert float(smaller * beta) < float(any_accepted(beta, drafts))


def test_probabilities_of_an_empty_row_are_zero() -> None:
    rows = probabilities(torch.tensor([[-math.inf, -math.inf], [0.0, -math.inf]]))
    assert rows.tolist() == [[0.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("uniform", [2.0**-53, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("weights", [[0, 0, 1, 0], [0, 3, 0, 0.1, 0, 0], [1e-300, 0], [0, 0, 1 / 3, 1 / 3, 0]])
def test_no_zero_weight_is_ever_drawn(weights: list[float], uniform: float) -> None:
    row = torch.tensor([weights], dtype=torch.float64)
    token = int(categorical(row, torch.tensor([[uniform]], dtype=torch.float64)))
    assert weights[token] > 0


def test_inversion_is_exact_at_cell_borders() -> None:
    row = torch.tensor([[0.25, 0.0, 0.5, 0.25]], dtype=torch.float64)
    uniforms = torch.tensor([[0.2499, 0.25, 0.7499, 0.75, 1.0, 0.0]], dtype=torch.float64)
    # 1.0 is outside the open interval; rounding can produce it, and it must not leave the support.
    assert categorical(row, uniforms).tolist() == [[0, 2, 2, 3, 3, 0]]
    trailing = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    assert categorical(trailing, torch.tensor([[0.0, 1.0]], dtype=torch.float64)).tolist() == [[1, 1]]
