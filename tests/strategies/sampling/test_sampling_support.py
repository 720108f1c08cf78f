"""Rows known by their kept tokens alone: the same distribution, faults and tokens as when they are written out."""

import random
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from sampling_reference import INF, make_row, random_logits
from torch import Tensor

from strategies.randomness import gumbel, gumbel_argmax, gumbel_at
from strategies.sampling.bregman.transform import Bregman
from strategies.sampling.pipeline import Target, faulty_rows, process, sample, target
from strategies.sampling.row import Row
from strategies.sampling.support import Support
from strategies.sampling.transform import Stage, Transform
from strategies.sampling.truncation import TopK

V = 3000
ASKED: list[dict[str, Any]] = [
    {"alpha": 1.5, "tau": 0.02},
    {"alpha": 2.0, "k": 40},
    {"alpha": 1.0, "lambda": 0.05},
    {"alpha": 3.0, "tau": 0.05, "mode": "dual"},
    {"alpha": "inf", "k": 7},
]


def bregman_row(number: int, **parameters: Any) -> Row:
    asked = Bregman.model_validate(ASKED[number % len(ASKED)])
    return make_row(seed=number, transforms=[asked], **{"temperature": 1.2, **parameters})


def is_sparse(found: Target) -> bool:
    return bool(found._supports)


def test_a_support_draws_what_its_distribution_draws_when_written_out() -> None:
    R, K = 300, 20
    generator = torch.Generator().manual_seed(1)
    ids = torch.rand(R, V, generator=generator).argsort(-1)[:, :K]
    log_q = torch.randn(R, K, generator=generator).log_softmax(-1)
    ids[::3, 5:], log_q[::3, 5:] = ids[::3, :1], log_q[::3, :1]
    support = Support(ids, log_q)
    written = support.write(torch.zeros(R, V))
    assert torch.isfinite(written).sum(-1).tolist() == [5 if i % 3 == 0 else K for i in range(R)]
    keys = torch.randint(-(2**63), 2**63 - 1, (R,), generator=generator)
    drawn = support.draw(keys)
    assert torch.equal(drawn, gumbel_argmax(written, keys))
    assert len(set(drawn.tolist())) > 50
    some = torch.tensor([7, 2])
    dense = torch.ones(R, V)
    Support(ids[:2], log_q[:2]).write(dense, some)
    assert torch.equal(dense[some], written[:2])
    assert (dense[0] == 1).all()


def test_noise_belongs_to_the_token_id() -> None:
    keys = torch.tensor([5, -9])
    ids = torch.tensor([[3, 999, 0], [7, 7, 500]])
    torch.testing.assert_close(gumbel_at(keys, ids), gumbel(keys, 1000).gather(-1, ids), rtol=0, atol=0)


def test_a_row_draws_the_same_token_whatever_is_in_the_batch_and_however_it_is_known() -> None:
    rng = random.Random(2)
    rows = [bregman_row(i) if i % 4 else make_row(seed=i, top_k=50, temperature=i % 8 / 4) for i in range(40)]
    logits = random_logits(40, V, seed=2)
    logits[5, 7], logits[8, 7], logits[9] = float("nan"), INF, -INF
    whole = target(logits.clone(), rows)
    assert is_sparse(whole)
    tokens, faulty = whole.sample(rows, range(40)), whole.faulty()
    written = process(logits.clone(), rows)
    assert faulty.tolist() == faulty_rows(written).tolist() == [i in (5, 8, 9) for i in range(40)]
    sound = [i for i in range(40) if not faulty[i]]
    assert sample(written, rows, range(40))[sound].tolist() == tokens[sound].tolist()
    for _ in range(20):
        chosen = rng.sample(sound, rng.randint(1, 12))
        picked = [rows[i] for i in chosen]
        found = target(logits[chosen].clone(), picked)
        if rng.random() < 0.5:
            torch.testing.assert_close(found.logits, written[chosen], rtol=1e-6, atol=1e-6)
            assert not is_sparse(found)
        assert found.sample(picked, chosen).tolist() == tokens[chosen].tolist()
        assert not found.faulty().any()


def test_the_native_draw_and_ours_take_the_same_tokens() -> None:
    rows = [bregman_row(i) for i in range(30)]
    calls: list[int] = []

    def draw(logits: Tensor, keys: Tensor) -> Tensor:
        calls.append(len(logits))
        return gumbel_argmax(logits, keys)

    found = target(random_logits(30, V, seed=3), rows)
    tokens = found.sample(rows, range(30), draw)
    assert calls == []
    assert found.logits.isneginf().sum(-1).min() > V - 100
    assert torch.equal(found.sample(rows, range(30), draw), tokens)
    assert calls == [30]


class Kept(Transform):
    """A transform that keeps token 1, as a support; applied, token 2, so that a test sees which it was."""

    name: ClassVar = "kept_for_tests"
    stage: ClassVar = Stage.TRUNCATION
    rank: ClassVar = 5

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence[Row], stages: Sequence["Kept"]) -> Tensor:
        return Support(torch.full((len(rows), 1), 2), torch.zeros(len(rows), 1)).write(logits)

    @classmethod
    def support(cls, logits: Tensor, rows: Sequence[Row], stages: Sequence["Kept"]) -> Support:
        return Support(torch.ones(len(rows), 1, dtype=torch.int64), torch.zeros(len(rows), 1))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"transforms": [Kept()]}, 1),
        ({"transforms": [Kept(), TopK(k=2)]}, 2),  # something follows
        ({"transforms": [Kept()], "temperature": 0.0}, 2),
    ],
)
def test_only_the_last_stage_of_a_sampled_row_may_answer_with_a_support(
    parameters: dict[str, Any], expected: int
) -> None:
    rows = [make_row(**parameters), make_row(temperature=0.0)]
    logits = torch.tensor([[0.0, 0.0, 0.0, 9.0]]).repeat(2, 1)
    assert process(logits.clone(), rows).argmax(-1).tolist() == [expected, 3]
    assert target(logits.clone(), rows).sample(rows, [0, 0]).tolist() == [expected, 3]


def test_many_kept_tokens_are_written_out() -> None:
    rows = [make_row(transforms=[Bregman.model_validate({"alpha": 1.5, "k": 1000})])]
    assert not is_sparse(target(random_logits(1, V, seed=4), rows))
    free = [make_row(transforms=[Bregman.model_validate({"alpha": 1.5, "lambda": 0.0})])]
    assert not is_sparse(target(random_logits(1, V, seed=4), free))
