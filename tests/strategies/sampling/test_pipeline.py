"""The pipeline as a whole: its order, independence of rows, faulty rows, and which noise `sample` uses."""

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from sampling_reference import INF, bias, counts, kept, make_row, min_p, random_logits, repetition, top_k, top_p
from torch import Tensor

from strategies import registry
from strategies.errors import InvalidRequest
from strategies.randomness import Purpose, Stream, gumbel, signed64
from strategies.runtime import StopConditions
from strategies.sampling import pipeline
from strategies.sampling.pipeline import faulty_rows, sample
from strategies.sampling.row import GREEDY_TEMPERATURE, Row
from strategies.sampling.transform import Stage, Transform


def mixed_row(rng: random.Random, vocab: int) -> Row:
    return make_row(**mixed(rng, vocab))


def mixed(rng: random.Random, vocab: int) -> dict[str, Any]:
    """What `make_row` takes for a row that asks for a random subset of the transforms, with random history."""

    def maybe(value: Any, off: Any) -> Any:
        return value if rng.random() < 0.5 else off

    return {
        "prompt": [rng.randrange(vocab) for _ in range(rng.randrange(20))],
        "output": [rng.randrange(vocab) for _ in range(rng.randrange(20))],
        "seed": rng.randrange(2**64),
        "branch": (rng.randrange(4),),
        "eos": [rng.randrange(vocab)],
        "stopping": StopConditions(min_tokens=rng.choice([0, 10, 30])),
        "temperature": rng.choice([0.0, 1.0, 1.0, 0.5, 1.7]),
        "top_k": maybe(rng.choice([1, 5, vocab, 2 * vocab]), 0),
        "top_p": maybe(rng.uniform(0.05, 0.999), 1.0),
        "min_p": maybe(rng.uniform(0.001, 1.0), 0.0),
        "repetition_penalty": maybe(rng.uniform(0.5, 2.0), 1.0),
        "presence_penalty": maybe(rng.uniform(-2, 2), 0.0),
        "frequency_penalty": maybe(rng.uniform(-2, 2), 0.0),
        "logit_bias": maybe({rng.randrange(vocab): rng.uniform(-5, 5) for _ in range(3)}, {}),
    }


def expected_row(logits: Sequence[float], asked: dict[str, Any]) -> list[float]:
    """The whole pipeline in plain floats: penalties, bias, minimum length, temperature, top-k, top-p, min-p."""
    q = SimpleNamespace(**asked)
    found = repetition(logits, [*q.prompt, *q.output], q.repetition_penalty)
    found = counts(found, q.output, q.presence_penalty, q.frequency_penalty)
    found = bias(found, q.logit_bias)
    if len(q.output) < q.stopping.min_tokens:
        found = [-INF if v in q.eos else x for v, x in enumerate(found)]
    if q.temperature == 0.0:
        return found
    found = [x / q.temperature for x in found]
    stages: list[tuple[bool, Any, float]] = [
        (q.top_k > 0, top_k, q.top_k),
        (q.top_p < 1, top_p, q.top_p),
        (q.min_p > 0, min_p, q.min_p),
    ]
    for on, truncate, value in stages:
        if on:
            left = truncate(found, value)
            found = [x if v in left else -INF for v, x in enumerate(found)]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_mixed_batch_equals_the_definition_row_by_row(seed: int) -> None:
    rng = random.Random(seed)
    asked = [mixed(rng, 40) for _ in range(24)]
    logits = random_logits(24, 40, seed)
    found = pipeline.process(logits.clone(), [make_row(**one) for one in asked])
    for i, one in enumerate(asked):
        assert found[i].tolist() == pytest.approx(expected_row(logits[i].tolist(), one), rel=1e-5, abs=1e-5), i


@pytest.mark.parametrize("vocab", [2, 40, 3000])
@pytest.mark.parametrize("seed", range(3))
def test_mixed_batch_equals_each_row_alone(vocab: int, seed: int) -> None:
    """Bit for bit, in any order, and in any part of the batch."""
    rng = random.Random(100 + seed)
    rows = [mixed_row(rng, vocab) for _ in range(17)]
    logits = random_logits(17, vocab, seed)
    batch = pipeline.process(logits.clone(), rows)
    for i, row in enumerate(rows):
        assert torch.equal(pipeline.process(logits[i : i + 1].clone(), [row])[0], batch[i]), i
    order = rng.sample(range(17), 9)
    assert torch.equal(pipeline.process(logits[order].clone(), [rows[i] for i in order]), batch[order])


BUSY: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.7},
    {"frequency_penalty": 0.7},
    {"logit_bias": {3: 4.0}},
    {"temperature": 0.3},
    {"top_k": 2},
    {"top_p": 0.3},
    {"min_p": 0.8},
    {"stopping": StopConditions(min_tokens=50)},
]


@pytest.mark.parametrize("asked", BUSY, ids=lambda asked: next(iter(asked)))
def test_rows_that_do_not_ask_keep_every_bit_and_rows_that_ask_change(asked: dict[str, Any]) -> None:
    history: dict[str, Any] = {"prompt": [1, 2, 3], "output": [3, 4, 4], "eos": [5]}
    rows = [make_row(**history, **(asked if i % 3 == 1 else {})) for i in range(7)]
    logits = random_logits(7, 33, seed=1)
    found = pipeline.process(logits.clone(), rows)
    for i in range(7):
        assert torch.equal(found[i], logits[i]) == (i % 3 != 1)


def test_default_rows_change_nothing() -> None:
    logits = random_logits(5, 33, seed=2)
    rows = [make_row(prompt=[1], output=[2, 2]) for _ in range(5)]
    assert torch.equal(pipeline.process(logits.clone(), rows), logits)


def test_the_order_is_the_documented_one() -> None:
    names = ["repetition_penalty", "presence_frequency_penalty", "logit_bias", "min_tokens"]
    names += ["temperature", "top_k", "top_p", "min_p"]
    asked = dict.fromkeys(("repetition_penalty", "presence_penalty", "temperature", "top_p", "min_p"), 0.5)
    full = make_row(**asked, top_k=3, logit_bias={0: 1.0}, eos=[1], stopping=StopConditions(min_tokens=1))
    assert [stage.name for stage in full.stages] == names
    # Each value below differs if two neighbours swap: (2 / 2 - 1 + 4) / 2 = 2.
    row = make_row(
        output=[0], repetition_penalty=2.0, presence_penalty=1.0, logit_bias={0: 4.0}, temperature=0.5, top_k=1
    )
    assert pipeline.process(torch.tensor([[2.0, 3.9]]), [row]).tolist() == [[8.0, -INF]]


class Recorder(Transform):
    """A transform that adds one where its number is odd, and keeps what it was given."""

    name: ClassVar = "recorder"
    stage: ClassVar = Stage.TRUNCATION
    calls: ClassVar[list[tuple[int, list[int]]]] = []

    number: int

    def wants(self, row: Row) -> bool:
        return self.number % 2 == 1

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence[Row], stages: Sequence["Recorder"]) -> Tensor:
        assert len(rows) == len(logits)
        cls.calls.append((len(logits), [stage.number for stage in stages]))
        return logits + 1  # not in place: the pipeline must take the result, too


@pytest.mark.parametrize(
    ("values", "calls"),
    [([1, 2, 3, 4], [(2, [1, 3])]), ([1, 3], [(2, [1, 3])]), ([2, 4], []), ([5], [(1, [5])])],
)
def test_a_transform_sees_exactly_the_rows_that_want_it(values: list[int], calls: list[tuple[int, list[int]]]) -> None:
    Recorder.calls.clear()
    rows = [make_row(transforms=[Recorder(number=k)]) for k in values]
    found = pipeline.process(torch.zeros(len(values), 3), rows)
    assert found.tolist() == [[float(k % 2)] * 3 for k in values]
    assert Recorder.calls == calls


def test_defining_a_transform_is_all_it_takes() -> None:
    """One class in one file: it has a name, a schema, and runs in the pipeline."""
    assert registry.find("transform", "recorder", "decoding.sampler") is Recorder
    assert Recorder.model_json_schema()["properties"] == {"number": {"title": "Number", "type": "integer"}}
    with pytest.raises(InvalidRequest, match=r"'nonsense' is unknown; there are: .*recorder"):
        registry.find("transform", "nonsense", "decoding.sampler")


def test_two_transforms_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="are called 'top_p'"):

        class Other(Transform):
            name: ClassVar = "top_p"
            stage: ClassVar = Stage.TRUNCATION


class History(Transform):
    """Its state adds up the tokens it sees, and the logits show it."""

    name: ClassVar = "history"
    stage: ClassVar = Stage.BIAS

    class Sum:
        def __init__(self, total: int) -> None:
            self.total = total

        def advance(self, token: int) -> None:
            self.total += token

        def fork(self) -> "History.Sum":
            return History.Sum(self.total)

    def start(self, row: Row) -> "History.Sum":
        return History.Sum(sum(row.prompt_ids))

    @classmethod
    def apply(cls, logits: Tensor, rows: Sequence[Row], stages: Sequence["History"]) -> Tensor:
        sums = [row.states["history"].total for row in rows]  # type: ignore[attr-defined]
        return logits + torch.tensor(sums, dtype=logits.dtype)[:, None]


def test_forks_of_a_row_go_on_independently() -> None:
    row = make_row(prompt=[5], output=[2], transforms=[History()], presence_penalty=1.0)
    fork = row.fork()
    row.append(1)
    fork.append(0)
    fork.append(3)
    assert pipeline.process(torch.zeros(2, 4), [row, fork]).tolist() == [[8, 7, 7, 8], [9, 10, 9, 9]]
    assert (row.output, fork.output, row.prompt) == ([2, 1], [2, 0, 3], fork.prompt)


def test_order_lets_named_transforms_take_one_anothers_places() -> None:
    asked: dict[str, Any] = {"repetition_penalty": 2.0, "temperature": 0.5, "top_k": 3, "top_p": 0.9}
    names = [stage.name for stage in make_row(**asked).stages]
    assert names == ["repetition_penalty", "temperature", "top_k", "top_p"]
    names = [stage.name for stage in make_row(**asked, order=["top_p", "temperature", "min_p"]).stages]
    assert names == ["repetition_penalty", "top_p", "top_k", "temperature"]


def test_temperature_after_top_p_truncates_the_plain_distribution() -> None:
    """With p = (0.6, 0.3, 0.1): top-p 0.85 keeps two tokens before temperature 2, and three after it."""
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log().repeat(2, 1)
    asked: dict[str, Any] = {"temperature": 2.0, "top_p": 0.85}
    rows = [make_row(**asked), make_row(**asked, order=["top_p", "temperature"])]
    found = pipeline.process(logits.clone(), rows)
    assert [len(kept(row)) for row in found] == [3, 2]
    torch.testing.assert_close(found[1, :2], logits[1, :2] / 2)


def test_an_empty_batch_is_an_empty_batch() -> None:
    empty = torch.empty(0, 7)
    assert pipeline.process(empty, []).shape == (0, 7)
    assert sample(empty, [], []).shape == (0,)


FAULTS = {
    "nan": [0.0, float("nan"), 1.0, 2.0],
    "positive infinity": [0.0, INF, 1.0, 2.0],
    "both infinities": [INF, -INF, -INF, -INF],
    "only negative infinity": [-INF] * 4,
    "nan among negative infinity": [-INF, -INF, float("nan"), -INF],
}
SOUND = {
    "finite": [1.0, -2.0, 3.0, 4.0],
    "one token left": [-INF, -INF, 0.0, -INF],
    "large": [3e38, -3e38, 0.0, 0.0],
    "very negative": [-1e30] * 4,
}


def test_faulty_rows() -> None:
    found = faulty_rows(torch.tensor([*FAULTS.values(), *SOUND.values()]))
    assert found.dtype == torch.bool
    assert dict(zip([*FAULTS, *SOUND], found.tolist(), strict=True)) == dict.fromkeys(FAULTS, True) | dict.fromkeys(
        SOUND, False
    )


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0.0},
        {"temperature": 0.5},
        {"top_k": 2},
        {"top_p": 0.5},
        {"min_p": 0.1},
        {"repetition_penalty": 1.5, "presence_penalty": 1.0, "logit_bias": {0: 5.0}},
        {"temperature": 1.5, "top_k": 3, "top_p": 0.9, "min_p": 0.01},
    ],
    ids=lambda asked: "+".join(asked),
)
def test_a_faulty_row_is_still_faulty_after_the_pipeline_and_hurts_no_other(fault: str, asked: dict[str, Any]) -> None:
    rows = [make_row(prompt=[1], output=[0, 2], **asked) for _ in range(3)]
    sound = torch.tensor([[1.0, 0.5, -0.5, -INF], [0.1, 0.2, 0.3, 4.0]])
    logits = torch.stack([sound[0], torch.tensor(FAULTS[fault]), sound[1]])
    found = pipeline.process(logits, rows)
    assert faulty_rows(found).tolist() == [False, True, False]
    alone = pipeline.process(sound.clone(), [rows[0], rows[2]])
    assert torch.equal(found[[0, 2]], alone)
    assert sample(found, rows, [1, 2, 3])[[0, 2]].tolist() == sample(alone, [rows[0], rows[2]], [1, 3]).tolist()


def test_a_row_masked_to_nothing_is_faulty_but_a_ban_yields() -> None:
    rows = [make_row(logit_bias={0: -INF, 1: -INF}), make_row(eos=[0, 1], stopping=StopConditions(min_tokens=1))]
    found = pipeline.process(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), rows)
    assert faulty_rows(found).tolist() == [True, False]
    assert found[1].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("vocab", [2, 100, 49152])
def test_greedy_takes_the_lowest_id_among_equals(vocab: int) -> None:
    logits = torch.zeros(3, vocab)
    logits[1, vocab // 2 :] = 1.0
    logits[2, [0, vocab - 1]] = 2.0
    rows = [make_row(temperature=0.0)] * 3
    assert sample(logits, rows, [0, 0, 0]).tolist() == [0, vocab // 2, 0]


def test_greedy_border() -> None:
    assert make_row(temperature=0.0).greedy
    assert make_row(temperature=1e-6).greedy
    assert not make_row(temperature=GREEDY_TEMPERATURE).greedy
    assert not make_row(temperature=1e-3).greedy


@pytest.mark.parametrize("temperature", [1e-6, 1e-5, 1e-3])
def test_low_temperature_is_the_arg_max(temperature: float) -> None:
    logits = random_logits(50, 100, seed=3)
    rows = [make_row(temperature=temperature, seed=i) for i in range(50)]
    best = logits.argmax(-1)
    logits.scatter_add_(1, best[:, None], torch.full((50, 1), 0.1))
    processed = pipeline.process(logits, rows)
    assert not faulty_rows(processed).any()
    assert torch.equal(sample(processed, rows, range(50)), best)


def test_sample_uses_the_noise_of_seed_branch_and_position() -> None:
    logits = random_logits(6, 64, seed=4)
    rows = [make_row(seed=i * 2**61 - 1, branch=(i, 2)) for i in range(6)]
    expected = []
    for i in range(6):
        key = Stream(i * 2**61 - 1, (i, 2), Purpose.SAMPLE).key(10 + i)
        noisy = logits[i].to(torch.float64) + gumbel(torch.tensor([signed64(key)]), 64)[0]
        expected.append(int(noisy.argmax()))
    assert sample(logits, rows, range(10, 16)).tolist() == expected


def test_sample_mixes_greedy_and_sampled_rows() -> None:
    logits = random_logits(40, 64, seed=5)
    rows = [make_row(seed=i, temperature=0.0 if i % 3 == 0 else 1.0) for i in range(40)]
    found = sample(logits, rows, range(40)).tolist()
    for i, row in enumerate(rows):
        assert found[i] == sample(logits[i : i + 1], [row], [i]).item()
        if row.greedy:
            assert found[i] == logits[i].argmax().item()
    assert any(found[i] != logits[i].argmax().item() for i, row in enumerate(rows) if not row.greedy)


@pytest.mark.parametrize("greedy", [False, True])
def test_sample_calls_the_given_draw_with_the_sampled_rows_and_their_keys(greedy: bool) -> None:
    logits = random_logits(3, 8, seed=6)
    rows = [make_row(seed=-1), make_row(seed=5, temperature=0.0 if greedy else 1.0), make_row(seed=2**64 - 9)]
    calls: list[tuple[Tensor, list[int]]] = []

    def draw(given: Tensor, keys: Tensor) -> Tensor:
        calls.append((given.clone(), keys.tolist()))
        return torch.full((len(given),), 7)

    found = sample(logits, rows, [3, 4, 5], draw).tolist()
    sampled = [0, 2] if greedy else [0, 1, 2]
    assert found == [7, int(logits[1].argmax()) if greedy else 7, 7]
    assert len(calls) == 1
    assert torch.equal(calls[0][0], logits[sampled])
    assert [k % 2**64 for k in calls[0][1]] == [rows[i].stream.key(3 + i) for i in sampled]


def test_a_seed_means_the_same_in_any_batch_and_any_order() -> None:
    """peers.md 5, rows 15 and 16: processed and drawn alone, with others, and in other orders."""
    rng = random.Random(7)
    rows = [mixed_row(rng, 200) for _ in range(30)]
    logits = random_logits(30, 200, seed=7)
    positions = [rng.randrange(1000) for _ in rows]

    def draw(chosen: Sequence[int]) -> dict[int, int]:
        picked = [rows[i] for i in chosen]
        processed = pipeline.process(logits[list(chosen)].clone(), picked)
        tokens = sample(processed, picked, [positions[i] for i in chosen]).tolist()
        assert all(token in kept(processed[j]) for j, token in enumerate(tokens))
        return dict(zip(chosen, tokens, strict=True))

    whole = draw(range(30))
    assert draw(range(29, -1, -1)) == whole
    for size in (1, 2, 16):
        for _ in range(10):
            chosen = rng.sample(range(30), size)
            assert draw(chosen) == {i: whole[i] for i in chosen}


def tokens_of(rows: Sequence[Row], positions: Sequence[int]) -> list[int]:
    return sample(torch.zeros(len(rows), 10_000), rows, positions).tolist()


def test_seeds_branches_and_positions_give_different_draws() -> None:
    """200 draws from 10,000 equal tokens: two independent lists agree in more than 5 places with p < 2e-13."""
    base = tokens_of([make_row(seed=1)] * 200, range(200))
    assert base == tokens_of([make_row(seed=1)] * 200, range(200))
    assert len(set(base)) > 180
    others = {
        "seed": tokens_of([make_row(seed=2)] * 200, range(200)),
        "negative seed": tokens_of([make_row(seed=-1)] * 200, range(200)),
        "branch": tokens_of([make_row(seed=1, branch=(1,))] * 200, range(200)),
        "deeper branch": tokens_of([make_row(seed=1, branch=(0, 0))] * 200, range(200)),
        "position": tokens_of([make_row(seed=1)] * 200, range(1, 201)),
        "seeds as positions": tokens_of([make_row(seed=s) for s in range(200)], [0] * 200),
    }
    for name, other in others.items():
        assert sum(a == b for a, b in zip(base, other, strict=True)) <= 5, name


def test_row_counts_its_history() -> None:
    row = make_row(prompt=[4, 4, 1], output=[2, 2])
    assert row.prompt == {1, 4}
    assert (row.counts, row.num_outputs) == ({2: 2}, 2)
    row.append(4)
    assert (row.counts, row.output) == ({2: 2, 4: 1}, [2, 2, 4])
    assert row.prompt == {1, 4}
