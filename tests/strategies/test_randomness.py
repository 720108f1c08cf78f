"""Counter-based noise against plain-integer SplitMix64, and the statistics of the draw."""

import hashlib
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies.randomness import Purpose, Stream, gumbel, gumbel_argmax, mix64, signed64, uniform

TWO64 = 2**64
GAMMA = 0x9E3779B97F4A7C15

# First outputs of SplitMix64 seeded with 0 and with 1234567, from the reference generator's published test values.
KNOWN = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F],
    1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423],
}


def splitmix64(state: int) -> Iterator[int]:
    """The sequential generator in plain integers."""
    while True:
        state = (state + GAMMA) % TWO64
        z = state
        z = (z ^ (z // 2**30)) * 0xBF58476D1CE4E5B9 % TWO64
        z = (z ^ (z // 2**27)) * 0x94D049BB133111EB % TWO64
        yield z ^ (z // 2**31)


def inverse_mix(z: int) -> int:
    """The input for which SplitMix64's output function gives z."""

    def unshift(value: int, bits: int) -> int:
        result = value
        for _ in range(64 // bits + 1):
            result = value ^ (result >> bits)
        return result

    z = unshift(z, 31) * pow(0x94D049BB133111EB, -1, TWO64) % TWO64
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, TWO64) % TWO64
    return unshift(z, 30)


def key_with(first: int) -> int:
    """A key whose noise at vocabulary index 0 comes from the 64-bit value `first`."""
    return (inverse_mix(first) - GAMMA) % TWO64


def keys(*values: int) -> torch.Tensor:
    return torch.tensor([v - TWO64 if v >= 2**63 else v for v in values])


@pytest.mark.parametrize("seed", KNOWN)
def test_mix64_gives_the_published_values(seed: int) -> None:
    assert [mix64(seed + (i + 1) * GAMMA) for i in range(3)] == KNOWN[seed]
    generator = splitmix64(seed)
    assert [next(generator) for _ in range(3)] == KNOWN[seed]


@given(st.integers(-(2**70), 2**70))
def test_mix64_is_the_output_function_modulo_64_bits(value: int) -> None:
    assert mix64(value) == next(splitmix64((value - GAMMA) % TWO64))


@given(st.integers(0, TWO64 - 1))
def test_signed64_keeps_the_bits(value: int) -> None:
    assert -(2**63) <= signed64(value) < 2**63
    assert signed64(value) % TWO64 == value


@pytest.mark.parametrize("key", [0, 1, 1234567, 2**63 - 1, 2**63, TWO64 - 1, 0xDEADBEEFCAFEF00D])
def test_uniform_is_the_generator_started_at_the_key(key: int) -> None:
    generator = splitmix64(key)
    expected = [next(generator) / TWO64 for _ in range(300)]
    found = uniform(keys(key), torch.arange(300))
    assert found.dtype == torch.float64
    assert found.shape == (1, 300)
    assert found[0].tolist() == pytest.approx(expected, rel=0, abs=2.0**-52)


def test_uniform_far_into_a_vocabulary() -> None:
    index = [32_768, 49_151, 65_536, 262_143, 2**31]
    expected = [mix64(77 + (i + 1) * GAMMA) / TWO64 for i in index]
    found = uniform(keys(77), torch.tensor(index))[0].tolist()
    assert found == pytest.approx(expected, rel=0, abs=2.0**-52)


def test_uniform_of_chosen_indices_and_many_keys() -> None:
    many = keys(5, TWO64 - 5, 2**63)
    index = torch.tensor([49151, 0, 131071, 7])
    assert uniform(many, index).shape == (3, 4)
    assert torch.equal(uniform(many, index), uniform(many, torch.arange(131072))[:, index])
    assert torch.equal(uniform(many, index)[1:2], uniform(many[1:2], index))


@pytest.mark.parametrize("value", [0, 1, 2**10, TWO64 - 1, TWO64 - 2**11, TWO64 - 2**12, 2**63, 2**63 - 1])
def test_uniform_lies_inside_the_open_interval(value: int) -> None:
    """Also for the smallest and largest 64-bit values, which no sample of ordinary size meets."""
    u = uniform(keys(key_with(value)), torch.arange(1)).item()
    assert 0.0 < u < 1.0
    assert u == pytest.approx(value / TWO64, rel=0, abs=2.0**-52)


@pytest.mark.parametrize("value", [0, TWO64 - 1])
def test_extreme_noise_is_finite_and_never_chooses_a_masked_token(value: int) -> None:
    key = keys(key_with(value))
    assert torch.isfinite(gumbel(key, 1)).all()
    assert gumbel_argmax(torch.tensor([[-torch.inf, 0.0]]), key).item() == 1


def base(seed: int, branch: tuple[int, ...], purpose: int) -> int:
    data = b"".join((word % TWO64).to_bytes(8, "little") for word in (seed, purpose, *branch))
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@pytest.mark.parametrize("seed", [0, 7, -1, -(2**63), 2**63, 2**64 - 1, 2**64 + 3])
@pytest.mark.parametrize("branch", [(), (0,), (3, 1, 2), (2**40,)])
def test_stream_key_is_the_documented_hash(seed: int, branch: tuple[int, ...]) -> None:
    for purpose in Purpose:
        generator = splitmix64(base(seed, branch, purpose))
        assert [Stream(seed, branch, purpose).key(position) for position in range(4)] == [
            next(generator) for _ in range(4)
        ]


def test_a_seeded_draw_stays_the_same_for_ever() -> None:
    """Users keep seeds: a change of these values is a breaking change."""
    assert [Stream(7, (0,)).key(p) for p in (0, 37, 4096)] == [
        0x1ECDD489607A5BF9,
        0xF8A1F34098AC30F1,
        0x2B444459BC2B2AFD,
    ]


def test_default_purpose_is_sampling() -> None:
    assert Stream(1, (0,)).key(5) == Stream(1, (0,), Purpose.SAMPLE).key(5)


def test_streams_differ_by_seed_branch_purpose_and_position() -> None:
    purposes = [Purpose[name] for name in Purpose.__members__]  # aliases included
    seeds = (0, 1, -1, 2**63, 2**32, 12345)
    branches = ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0))
    found = {
        Stream(seed, branch, purpose).key(position)
        for seed in seeds
        for branch in branches
        for purpose in purposes
        for position in range(50)
    }
    assert len(found) == len(seeds) * len(branches) * len(purposes) * 50


def test_seeds_beyond_64_bits_wrap_and_negative_ones_are_their_complement() -> None:
    assert Stream(2**64 + 5, (0,)).key(1) == Stream(5, (0,)).key(1)
    assert Stream(-1, (0,)).key(1) == Stream(2**64 - 1, (0,)).key(1)


def test_no_short_cycle_and_no_shift_between_positions_and_indices() -> None:
    """100,000 positions of one token, and a square of positions and neighbouring indices, hold no value twice."""
    stream = Stream(0, (0,))
    line = uniform(keys(*(stream.key(p) for p in range(100_000))), torch.tensor([0]))
    assert len(set(line.flatten().tolist())) == 100_000
    square = uniform(keys(*(stream.key(p) for p in range(300))), torch.arange(300))
    assert len(set(square.flatten().tolist())) == 90_000


def noise(rows: int, width: int, seed: int = 3) -> torch.Tensor:
    return uniform(keys(*(Stream(seed, (0,)).key(p) for p in range(rows))), torch.arange(width))


def test_uniform_moments_and_independence() -> None:
    """Each estimate within 6 standard errors: false alarm below 2e-9 each, 1e-7 in all. Fixed seed."""
    u = noise(500, 400) - 0.5
    n = u.numel()
    other = noise(500, 400, seed=4) - 0.5
    assert abs(u.mean().item()) < 6 * math.sqrt(1 / 12 / n)
    assert abs((u**2).mean().item() - 1 / 12) < 6 * math.sqrt(1 / 180 / n)
    products = {
        "next position": u[1:] * u[:-1],
        "next index": u[:, 1:] * u[:, :-1],
        "diagonal": u[1:, :-1] * u[:-1, 1:],
        "next seed": u * other,
    }
    for name, product in products.items():
        assert abs(product.mean().item()) < 6 / 12 / math.sqrt(product.numel()), name
    assert abs(u.mean(1)).max().item() < 6.5 * math.sqrt(1 / 12 / 400)  # 500 rows, 8e-11 each
    assert abs(u.mean(0)).max().item() < 6.5 * math.sqrt(1 / 12 / 500)


def test_every_bit_of_the_uniforms_is_fair() -> None:
    """52 bits, each set in half of 100,000 values: 6.5 standard errors, false alarm below 5e-9 in all."""
    whole = (noise(250, 400).flatten() * 2.0**52).floor().to(torch.int64)
    for bit in range(52):
        share = ((whole >> bit) & 1).to(torch.float64).mean().item()
        assert abs(share - 0.5) < 6.5 * 0.5 / math.sqrt(whole.numel()), bit


def test_gumbel_mean_variance_and_tail() -> None:
    """Mean Euler's constant, variance pi^2 / 6, P(g > x) = 1 - exp(-exp(-x)): 6 standard errors each, < 1e-8 in all."""
    g = gumbel(keys(*(Stream(11, (0,)).key(p) for p in range(500))), 400)
    assert g.dtype == torch.float64
    assert g.shape == (500, 400)
    n, variance = g.numel(), math.pi**2 / 6
    assert abs(g.mean().item() - 0.5772156649015329) < 6 * math.sqrt(variance / n)
    # Kurtosis of the Gumbel distribution is 3 + 12/5, so the variance of (g - mean)^2 is (4.4) * variance^2.
    assert abs(g.var().item() - variance) < 6 * math.sqrt(4.4 / n) * variance
    for x in (-1.0, 0.0, 1.0, 3.0, 6.0):
        p = 1 - math.exp(-math.exp(-x))
        assert abs((g > x).to(torch.float64).mean().item() - p) < 6 * math.sqrt(p * (1 - p) / n), x


def test_gumbel_is_the_double_log_of_the_uniform() -> None:
    key = Stream(5, (2,)).key(9)
    expected = [-math.log(-math.log(u)) for u in uniform(keys(key), torch.arange(50))[0].tolist()]
    assert gumbel(keys(key), 50)[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_tails_reach_beyond_what_24_bits_allow() -> None:
    top = key_with(TWO64 - 2**14)
    assert gumbel(keys(top), 1).item() > 30.0


def test_gumbel_argmax_adds_the_noise_and_takes_the_largest() -> None:
    logits = torch.linspace(-3, 3, 40).repeat(64, 1).to(torch.float32)
    logits[:, ::3] = -torch.inf
    many = keys(*(Stream(1, (0,)).key(p) for p in range(64)))
    found = gumbel_argmax(logits, many)
    assert found.dtype == torch.int64
    expected = [
        max(range(40), key=lambda v: row[v] + noise_row[v])
        for row, noise_row in zip(logits.tolist(), gumbel(many, 40).tolist(), strict=True)
    ]
    assert found.tolist() == expected
    assert all(token % 3 for token in found.tolist())


def test_gumbel_argmax_does_not_round_noise_to_the_logits_dtype() -> None:
    """bfloat16 logits of equal value: with bfloat16 noise, ties would go to low ids."""
    equal = torch.full((200, 512), 8.0, dtype=torch.bfloat16)
    many = keys(*(Stream(1, (0,)).key(p) for p in range(200)))
    assert torch.equal(gumbel_argmax(equal, many), gumbel(many, 512).argmax(-1))
