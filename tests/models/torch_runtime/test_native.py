"""Both kernel classes against plain float64 formulas written out here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.torch_runtime import native
from models.torch_runtime.native import AttentionPlan, Kernels, NativeKernels, Segment, TorchKernels
from strategies.randomness import gumbel, mix64, signed64

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(
    params=["torch", *(pytest.param(f"native {n}", marks=needs_compiler) for n in (1, 3))],
)
def kernels(request: pytest.FixtureRequest, cache: Path) -> Kernels:
    """Each class; the C kernels on 1 and 3 threads."""
    if request.param == "torch":
        return TorchKernels()
    loaded = native.load(cache=cache)
    assert loaded is not None
    loaded.threads, loaded.checked = int(request.param.split()[1]), True
    return loaded


@pytest.fixture
def native_kernels(cache: Path) -> NativeKernels:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler")
    loaded = native.load(cache=cache)
    assert loaded is not None
    loaded.checked = True
    return loaded


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def close(actual: Tensor, expected: Tensor, relative: float = 2e-6, absolute: float = 2e-6) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=relative, atol=absolute, equal_nan=True)


# ---- norm, activation, rotary ----


@pytest.mark.parametrize(("T", "C"), [(1, 1), (3, 7), (1, 576), (8, 37), (150, 576), (17, 4099)])
def test_rms_norm(kernels: Kernels, generator: torch.Generator, T: int, C: int) -> None:
    x, weight = torch.randn(T, C, generator=generator) * 3, torch.randn(C, generator=generator)
    before, out = x.clone(), torch.empty(T, C)
    kernels.rms_norm(x, weight, 1e-5, out)
    close(out, rms_norm_reference(x, weight, 1e-5))
    assert torch.equal(x, before)


@pytest.mark.parametrize(("T", "C"), [(1, 576), (5, 37), (150, 576)])
def test_add_rms_norm_updates_the_residual(kernels: Kernels, generator: torch.Generator, T: int, C: int) -> None:
    residual, delta = torch.randn(2, T, C, generator=generator)
    weight, out, expected = torch.randn(C, generator=generator), torch.empty(T, C), residual + delta
    kernels.add_rms_norm(residual, delta, weight, 1e-6, out)
    assert torch.equal(residual, expected)
    close(out, rms_norm_reference(expected, weight, 1e-6))


@pytest.mark.parametrize(("T", "I"), [(1, 1), (1, 1536), (3, 13), (40, 1531)])
def test_silu_mul(kernels: Kernels, generator: torch.Generator, T: int, I: int) -> None:  # noqa: E741
    gate_up, out = torch.randn(T, 2 * I, generator=generator) * 8, torch.empty(T, I)
    kernels.silu_mul(gate_up, out)
    gate, up = gate_up.double().chunk(2, -1)
    close(out, gate / (1 + torch.exp(-gate)) * up, relative=1e-6, absolute=1e-30)


def test_silu_of_extreme_values(kernels: Kernels) -> None:
    gate = torch.tensor([[-200.0, -100, -89, -87.5, -20, 0, 20, 87, 89, 200, float("inf"), float("nan")]])
    out = torch.empty_like(gate)
    kernels.silu_mul(torch.cat((gate, torch.ones_like(gate)), -1), out)
    close(out, torch.nn.functional.silu(gate.double()), relative=1e-6, absolute=1e-35)


@pytest.mark.parametrize(("H", "G", "D", "half"), [(9, 3, 64, 32), (4, 4, 80, 16), (7, 1, 10, 3), (16, 2, 128, 64)])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("T", [1, 6, 80])
def test_rope_store(
    kernels: Kernels, generator: torch.Generator, T: int, H: int, G: int, D: int, half: int, normed: bool
) -> None:
    qkv = torch.randn(T, (H + 2 * G) * D, generator=generator)
    cos, sin = torch.randn(2, 200, half, generator=generator)
    positions = torch.randint(200, (T,), generator=generator)
    slots = torch.randperm(100, generator=generator)[:T]
    q_norm, k_norm = torch.randn(2, D, generator=generator) if normed else (None, None)
    k_pool, v_pool = torch.randn(2, 100, G, D, generator=generator)
    expected_k, expected_v, q_out = k_pool.double(), v_pool.double(), torch.empty(T, H, D)
    kernels.rope_store(qkv, cos, sin, positions, slots, k_pool, v_pool, q_out, q_norm, k_norm, 1e-5)

    def rotated(x: Tensor, norm: Tensor | None, position: int) -> Tensor:
        x = x.double() if norm is None else rms_norm_reference(x, norm, 1e-5)
        result = x.clone()
        for i in range(half):
            c, s = cos[position, i].double(), sin[position, i].double()
            result[i], result[i + half] = x[i] * c - x[i + half] * s, x[i + half] * c + x[i] * s
        return result

    for t in {0, T // 2, T - 1}:
        heads, position = qkv[t].view(-1, D), int(positions[t])
        for h in {0, H - 1}:
            close(q_out[t, h], rotated(heads[h], q_norm, position), absolute=1e-5)
        close(k_pool[slots[t], G - 1], rotated(heads[H + G - 1], k_norm, position), absolute=1e-5)
    expected_k[slots] = k_pool[slots].double()
    expected_v[slots] = qkv.view(T, -1, D)[:, H + G :].double()
    assert torch.equal(k_pool.double(), expected_k), "other slots keep their content"
    assert torch.equal(v_pool.double(), expected_v)


# ---- attention ----


def random_tree(random: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ancestor-or-self mask bool [length, length] and depths of a random tree with several roots."""
    mask, depth = np.eye(length, dtype=bool), np.zeros(length, dtype=np.int64)
    for i in range(1, length):
        parent = int(random.integers(-1, i))
        if parent >= 0:
            mask[i] |= mask[parent]
            depth[i] = depth[parent] + 1
    return mask, depth


class Batch:
    """A packed batch with random queries and pools, and its expected result by definition."""

    def __init__(self, specification: list[tuple[int, int, bool]], H: int, G: int, D: int, seed: int = 0) -> None:
        """specification: (context length, new tokens, whether they are a tree) of each segment."""
        random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        T = sum(length for _, length, _ in specification)
        total = T + sum(context for context, _, _ in specification)
        free = random.permutation(total + 10).astype(np.int64)
        self.segments: list[Segment] = []
        slots, positions, start = [], [], 0
        for context, length, tree in specification:
            mask, depth = random_tree(random, length) if tree else (None, np.arange(length, dtype=np.int64))
            self.segments.append(Segment(start, length, free[:context], mask))
            slots.append(free[context : context + length])
            positions.append(context + depth)
            free, start = free[context + length :], start + length
        self.slots, self.positions = np.concatenate(slots), np.concatenate(positions)
        self.q = torch.randn(T, H, D, generator=generator) * 2
        self.k_pool, self.v_pool = torch.randn(2, total + 10, G, D, generator=generator)
        self.scale = D**-0.5

    def run(self, kernels: Kernels, window: int = 0, segments: list[Segment] | None = None) -> Tensor:
        plan = AttentionPlan.build(self.segments if segments is None else segments, self.slots, self.positions)
        out = torch.full_like(self.q, float("nan"))
        kernels.tree_attention(self.q, self.k_pool, self.v_pool, plan, out, self.scale, window)
        return out

    def expected(self, window: int = 0) -> Tensor:
        out = torch.empty_like(self.q, dtype=torch.float64)
        repeat = self.q.shape[1] // self.k_pool.shape[1]
        for start, length, context_slots, mask in self.segments:
            rows, context = slice(start, start + length), len(context_slots)
            new = np.tril(np.ones((length, length), dtype=bool)) if mask is None else mask
            visible = np.concatenate((np.ones((length, context), dtype=bool), new), axis=1)
            if window > 0:
                key_positions = np.concatenate((np.arange(context), self.positions[rows]))
                visible = visible & (self.positions[rows, None] - key_positions < window)
            keys = torch.from_numpy(np.concatenate((context_slots, self.slots[rows])))
            k, v = (pool[keys].double().repeat_interleave(repeat, 1) for pool in (self.k_pool, self.v_pool))
            scores = torch.einsum("ihd,khd->hik", self.q[rows].double(), k) * self.scale
            scores.masked_fill_(~torch.from_numpy(visible), float("-inf"))
            out[rows] = torch.einsum("hik,khd->ihd", scores.softmax(-1), v)
        return out


HEADS = [(9, 3, 64), (3, 3, 32), (7, 1, 80), (8, 1, 96), (16, 2, 128), (2, 1, 256), (30, 1, 64), (4, 2, 12)]
BATCHES = {
    "decode": [(64, 1, False), (511, 1, False), (3, 1, False), (256, 1, False)],
    "one long": [(1500, 1, False)],
    "first token": [(0, 1, False), (0, 1, True)],
    "prefill": [(0, 37, False), (250, 13, False)],
    "trees": [(70, 11, True), (0, 33, True), (300, 2, True)],
    "mixed": [(17, 1, False), (40, 9, True), (0, 21, False), (700, 3, False)],
}


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
def test_attention_by_definition(kernels: Kernels, batch: str, heads: tuple[int, int, int]) -> None:
    example = Batch(BATCHES[batch], *heads, seed=len(batch))
    for window in (0, 5, 300):
        close(example.run(kernels, window), example.expected(window), absolute=1e-5)


@pytest.mark.parametrize("window", [0, 90])
def test_a_row_does_not_depend_on_the_rest_of_the_batch(kernels: Kernels, window: int) -> None:
    example = Batch(BATCHES["mixed"] + BATCHES["decode"], 9, 3, 64)
    together = example.run(kernels, window)
    for segment in example.segments:
        rows = slice(segment.start, segment.start + segment.length)
        alone = example.run(kernels, window, [segment])[rows]
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("window", [0, 90])
def test_native_attention_is_the_same_on_any_number_of_threads_and_for_any_chunks(
    native_kernels: NativeKernels, window: int
) -> None:
    context, length = 500, 61
    example = Batch([(context, length, False)], 9, 3, 64)
    native_kernels.threads = 1
    expected = example.run(native_kernels, window)
    all_slots = np.concatenate((example.segments[0].context_slots, example.slots))
    for threads in (2, 3, 8):
        native_kernels.threads = threads
        assert torch.equal(example.run(native_kernels, window), expected)
        for row in (0, 30, 60):  # the same token as a decode step
            one = [Segment(row, 1, all_slots[: context + row])]
            assert torch.equal(example.run(native_kernels, window, one)[row], expected[row])


def test_a_token_that_scores_nan_spoils_its_own_row_only(kernels: Kernels) -> None:
    example = Batch([(20, 3, False), (30, 1, False)], 4, 2, 32)
    expected = example.expected()
    example.q[1] = float("nan")
    out = example.run(kernels)
    assert out[1].isnan().all()
    close(out[[0, 2, 3]], expected[[0, 2, 3]], absolute=1e-5)


def test_large_scores_do_not_overflow(kernels: Kernels) -> None:
    example = Batch([(300, 1, False), (5, 4, True)], 4, 2, 64)
    example.q *= 1000
    out = example.run(kernels)
    close(out, example.expected(), relative=1e-3, absolute=1e-3)


def test_plan_of_an_empty_batch(kernels: Kernels) -> None:
    example = Batch([(5, 2, False)], 4, 2, 32)
    assert example.run(kernels, segments=[]).isnan().all()


# ---- sampling ----


def random_keys(generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)


@pytest.mark.parametrize(("R", "V"), [(1, 1), (3, 7), (2, 256), (5, 1000), (3, 30000)])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_gumbel_argmax_by_definition(
    kernels: Kernels, generator: torch.Generator, R: int, V: int, spread: float
) -> None:
    for _ in range(2):
        logits, keys = torch.randn(R, V, generator=generator) * spread, random_keys(generator, R)
        logits[0, torch.randperm(V, generator=generator)[: V // 2]] = float("-inf")
        out = torch.empty(R, dtype=torch.int64)
        kernels.gumbel_argmax(logits, keys, out)
        assert torch.equal(out, (logits.double() + gumbel(keys, V)).argmax(-1))


def test_gumbel_noise_from_python_integers(kernels: Kernels) -> None:
    keys = [0, 1, 2**63 + 12345, 2**64 - 1]
    golden, V = 0x9E3779B97F4A7C15, 100
    expected = []
    for key in keys:
        uniforms = [((mix64(key + (v + 1) * golden) >> 12) + 0.5) * 2.0**-52 for v in range(V)]
        expected.append(int(np.argmax([-np.log(-np.log(u)) for u in uniforms])))
    out = torch.empty(len(keys), dtype=torch.int64)
    kernels.gumbel_argmax(torch.zeros(len(keys), V), torch.tensor([signed64(key) for key in keys]), out)
    assert out.tolist() == expected


def test_gumbel_argmax_of_special_rows(kernels: Kernels) -> None:
    inf, nan = float("inf"), float("nan")
    rows = torch.full((5, 600), -inf)
    rows[0, 599] = -50.0  # the only candidate
    rows[1, 3], rows[1, 4] = nan, 0.0
    rows[3, 2], rows[3, 301], rows[3, 302] = 10.0, inf, inf
    rows[4] = torch.arange(600) * 1000.0  # the noise can't reach
    out = torch.empty(5, dtype=torch.int64)
    kernels.gumbel_argmax(rows, torch.arange(5), out)
    assert out.tolist() == [599, -1, -1, 301, 599]


def test_samples_follow_the_softmax(kernels: Kernels, generator: torch.Generator) -> None:
    """Chi-square test, fixed seed: a correct sampler fails it for less than one seed in a million."""
    draws, V = 40000, 40
    logits = torch.randn(V, generator=generator) * 1.5
    logits[5] = float("-inf")
    out = torch.empty(draws, dtype=torch.int64)
    kernels.gumbel_argmax(logits.expand(draws, V).contiguous(), random_keys(generator, draws), out)
    counts, expected = torch.bincount(out, minlength=V).double(), logits.double().softmax(-1) * draws
    assert counts[5] == 0
    seen = expected > 0
    assert expected[seen].min() > 5, "the chi-square approximation needs it"
    statistic = ((counts - expected)[seen] ** 2 / expected[seen]).sum()
    degrees = torch.tensor((int(seen.sum()) - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(degrees, statistic / 2) > 1e-6


# ---- loading ----


def test_no_compiler_means_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert native.load(compilers=["no-such-compiler"], cache=tmp_path) is None
    assert len(caplog.records) == 1
    assert "no C compiler" in caplog.text


def test_a_compiler_that_fails_means_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'no space left' >&2\nexit 1\n")
    compiler.chmod(0o755)
    assert native.load(compilers=[str(compiler)], cache=tmp_path) is None
    assert len(caplog.records) == 1
    assert "no space left" in caplog.text
    assert not list(tmp_path.glob("*.so"))


def test_environment_switches_the_kernels_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECODING_SERVER_NATIVE", "0")
    assert native.load(cache=tmp_path) is None
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_second_load_does_not_compile(native_kernels: NativeKernels, cache: Path) -> None:
    before = native_kernels.library.stat().st_mtime_ns
    again = native.load(cache=cache)
    assert again is not None
    assert again.library == native_kernels.library
    assert again.library.stat().st_mtime_ns == before
    assert [path.name for path in cache.iterdir()] == [again.library.name], "no temporary files are left"


@needs_compiler
def test_one_openmp_runtime_and_the_documented_cache_folder(tmp_path: Path) -> None:
    """In a process of its own, as other tests may have loaded anything."""
    program = """if True:
        from models.torch_runtime import native
        print(native.load().library)
        print(open("/proc/self/maps").read())
    """
    output = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "DECODING_SERVER_CACHE": str(tmp_path)},
        cwd=Path(native.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    library, maps = output.stdout.split("\n", 1)
    assert Path(library).parent == tmp_path / "kernels"
    assert library in maps
    assert len(set(re.findall(r"/\S+/lib(?:gomp|iomp5|omp)\b\S*", maps))) <= 1


@needs_compiler
def test_wrong_layout_is_an_error_when_checked(native_kernels: NativeKernels) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        native_kernels.silu_mul(torch.zeros(8, 4).t(), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="float16"):
        native_kernels.silu_mul(torch.zeros(1, 8, dtype=torch.float16), torch.zeros(1, 4))
