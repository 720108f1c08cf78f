"""The compiled kernel against torch operations: equal tokens and probabilities, whatever the logits look like."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from bregman_oracle import settings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strategies.sampling.bregman import native
from strategies.sampling.bregman.decode import decode, kept, write_log_q
from strategies.sampling.bregman.native import BregmanKernel
from strategies.sampling.bregman.parameters import BregmanParameters
from strategies.sampling.bregman.plan import Plan, plan

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")

INF, NAN = math.inf, math.nan
CLOSED = [("primal", 1.0), ("primal", 1.5), ("primal", 2.0), ("dual", 1.0), ("dual", 2.0)]
LIMITS = [("primal", "inf"), ("primal", "-inf"), ("dual", "inf")]
WAYS = [
    *(settings_of(mode, alpha, tau=tau) for mode, alpha in CLOSED if alpha != 1.0 for tau in (0.1, 0.004)),
    *(settings_of("primal", 1.0, lam=lam) for lam in (0.2, 0.01, 0.001)),
    settings_of("primal", 1.5, tau=0.01, k_min=40, k_max=90),
    settings_of("dual", 2.0, lam=INF),
    settings_of("primal", 2.0, lam=0.0, k_max=33),
]


@pytest.fixture
def kernel() -> BregmanKernel:
    found = native.kernel()
    assert found is not None
    return found


def fixed(k: int) -> list[BregmanParameters]:
    return [settings_of(mode, alpha, k=k) for mode, alpha in (*CLOSED, *LIMITS)]  # type: ignore[arg-type]


def logits_like(kind: str, R: int, V: int, seed: int) -> Tensor:
    """float32 [R, V] of one of several shapes."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(R, V, generator=generator) * 3
    if kind == "ties":
        return logits.round()
    if kind == "flat":
        return logits * 1e-6
    if kind == "sorted":  # all candidates in one chunk
        return logits.sort(-1).values
    if kind == "shifted":
        return logits + torch.linspace(-1e4, 1e4, R)[:, None]
    if kind == "runs of -inf":
        hole = torch.randint(V, (R, 2), generator=generator).sort(-1).values
        ids = torch.arange(V)
        outside = (ids < hole[:, :1]) | (ids >= hole[:, 1:])
        return logits.masked_fill(outside & (ids != hole[:, :1]), -INF)
    if kind == "faulty":
        for row in range(0, R, 2):
            place = int(torch.randint(V, (1,), generator=generator))
            logits[row, place] = (NAN, INF, -NAN)[row // 2 % 3]
        logits[-1] = -INF
    return logits


KINDS = ("plain", "ties", "flat", "sorted", "shifted", "runs of -inf", "faulty")


def scaled(batch: Plan, factor: float) -> Plan:
    """The same with another price."""
    return replace(batch, groups=tuple(replace(group, penalty=group.penalty * factor) for group in batch.groups))


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    st.sampled_from(KINDS),
    st.one_of(st.integers(1, 200), st.integers(200, 5000), st.sampled_from([63, 64, 65, 4095, 4096, 4097, 8192])),
    st.integers(0, 10**6),
    st.data(),
)
def test_it_agrees_with_torch_operations(kind: str, V: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.one_of(st.just(1), st.just(V), st.integers(1, V)))
    wanted = [*WAYS, *fixed(k)]
    logits = logits_like(kind, len(wanted), V, seed)
    batch = plan(wanted, V)
    found, expected = decode(logits, batch), decode(logits, batch, native=False)
    # The normaliser may differ in its last bits: a k that hangs on them is allowed to be either.
    low, high = (decode(logits, scaled(batch, 1 + change), native=False).k for change in (1e-5, -1e-5))
    assert ((found.k >= low) & (found.k <= high)).all()
    same = low == high
    assert same.float().mean() > 0.5
    assert torch.equal(found.k[same], expected.k[same])
    assert torch.equal(found.ids[same][expected.q[same] > 0], expected.ids[same][expected.q[same] > 0])
    np.testing.assert_allclose(found.q[same], expected.q[same], rtol=1e-5, atol=5e-6)
    assert (found.q.nan_to_num() >= 0).all()
    written, other = (write_log_q(logits.clone(), batch, native=one)[same] for one in (True, False))
    faulty = torch.isnan(written).any(-1)
    assert torch.equal(faulty, torch.isnan(other).any(-1))
    written, other = written[~faulty], other[~faulty]
    assert torch.equal(torch.isneginf(written), torch.isneginf(other))
    np.testing.assert_allclose(written.double().exp(), other.double().exp(), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("spread", [0.02, 2.5, 30.0])
def test_a_large_vocabulary_against_float64(spread: float) -> None:
    V = 151_936
    wanted = [*WAYS, *fixed(256)]
    logits = logits_like("plain", len(wanted), V, seed=1) * (spread / 3)
    found, exact = kept(logits, plan(wanted, V)), decode(logits.double(), plan(wanted, V))
    k = exact.k
    for row, count in enumerate(k.tolist()):
        assert found.ids[row, :count].tolist() == exact.ids[row, :count].tolist()
        np.testing.assert_allclose(found.log_q[row, :count].double().exp(), exact.q[row, :count], rtol=1e-5, atol=1e-9)
        assert (found.ids[row, count:] == found.ids[row, 0]).all()
        assert (found.log_q[row, count:] == found.log_q[row, 0]).all()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.sampled_from(KINDS), st.integers(1, 9000), st.integers(0, 10**6), st.data())
def test_candidates_are_the_head_of_a_stable_sort(kind: str, V: int, seed: int, data: st.DataObject) -> None:
    K = data.draw(st.integers(1, V))
    kernel = native.kernel()
    assert kernel is not None
    logits = logits_like(kind, 5, V, seed)
    logits[1] = torch.tensor([0.0, -0.0]).repeat(V)[:V]  # equal, though their bits differ
    values, ids, top = kernel.candidates(logits, K)
    sound = torch.isfinite(logits.amax(-1))
    assert torch.equal(torch.isfinite(top), sound)
    ordered, order = logits[sound].sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values[sound], ordered[:, :K])
    assert torch.equal(ids[sound], order[:, :K])
    exact = torch.log_softmax(logits[sound].double(), -1).amax(-1)
    np.testing.assert_allclose(top[sound], exact, atol=1e-6)
    rows = torch.tensor([3, 1])
    some = kernel.candidates(logits, K, rows)
    assert torch.equal(some[0], values[rows])
    assert torch.equal(some[1], ids[rows])


def test_a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    kernel: BregmanKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    V = 20_011
    wanted = [*WAYS, *fixed(100)]
    logits = logits_like("plain", len(wanted), V, seed=2)
    batch = plan(wanted, V)
    together = decode(logits, batch)
    for threads in (1, 3):
        monkeypatch.setattr(kernel, "threads", threads)
        again = decode(logits, batch)
        assert torch.equal(again.q, together.q)
        assert torch.equal(again.ids, together.ids)
    for i, parameters in enumerate(wanted):
        alone = decode(logits[i : i + 1], plan([parameters], V))
        k = int(alone.k[0])
        assert k == together.k[i]
        assert torch.equal(alone.ids[0, :k], together.ids[i, :k])
        assert torch.equal(alone.q[0, :k], together.q[i, :k])


def test_it_is_what_decodes(kernel: BregmanKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed forms in one call, whatever else is in the batch; other dtypes and DECODING_SERVER_NATIVE=0 without it."""
    calls: list[int] = []

    class Counting(BregmanKernel):
        def __init__(self) -> None:
            self.__dict__.update(kernel.__dict__)

        def decode(self, logits: Tensor, closed: native.ClosedRows) -> tuple[Tensor, Tensor, Tensor]:
            calls.append(len(closed.wanted))
            return super().decode(logits, closed)

    monkeypatch.setattr("strategies.sampling.bregman.decode.kernel", Counting)
    wanted = [*WAYS, settings_of("dual", 3.0, tau=0.05), *fixed(3), settings_of("primal", 1.5, lam=0.0)]
    logits = logits_like("plain", len(wanted), 300, seed=3)
    batch = plan(wanted, 300)
    expected = decode(logits, batch, native=False)
    assert calls == []
    assert torch.equal(decode(logits, batch).k, expected.k)
    assert calls == [len(wanted) - 2]
    decode(logits.double(), batch)
    decode(logits.bfloat16(), batch)
    assert len(calls) == 1
    strided = torch.stack([logits, logits], -1)[..., 0]
    assert torch.equal(decode(strided, batch).k, expected.k)
    assert len(calls) == 2


def test_the_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECODING_SERVER_NATIVE", "0")
    native.kernel.cache_clear()
    try:
        assert native.kernel() is None
        logits = logits_like("plain", len(WAYS), 500, seed=4)
        found = decode(logits, plan(WAYS, 500))
        assert torch.equal(found.q, decode(logits, plan(WAYS, 500), native=False).q)
    finally:
        native.kernel.cache_clear()


def test_wrong_logits_are_an_error(kernel: BregmanKernel) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        kernel.candidates(torch.zeros(8, 4).t(), 2)
    with pytest.raises(ValueError, match="float64"):
        kernel.candidates(torch.zeros(8, 4, dtype=torch.float64), 2)


@pytest.mark.parametrize("K", [60, 70, 75, 78, 79, 300])
def test_more_candidates_than_possible_tokens(K: int) -> None:
    """Most of 79 chunks hold nothing but -inf, as under a grammar; their lowest ids fill the list."""
    kernel = native.kernel()
    assert kernel is not None
    logits = torch.full((3, 5000), -INF)
    logits[:, [4999, 7, 2500, 2501]] = torch.tensor([1.0, 2.0, 2.0, -3.0])
    values, ids, _ = kernel.candidates(logits, K)
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values, ordered[:, :K])
    assert torch.equal(ids, order[:, :K])
