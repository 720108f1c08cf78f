"""What holds for every baseline transform: rows are independent bit for bit, masks last, something is always left,
faulty rows stay faulty, forks don't touch each other, fields are described, the order is the documented one."""

import math
import random

import pytest
import torch
from baseline_reference import baseline_row
from sampling_reference import random_logits

from models.scripted import ByteTokenizer
from strategies import registry
from strategies.sampling import pipeline
from strategies.sampling.bans import AllowedTokenIds, BadWords
from strategies.sampling.cutoffs import EpsilonCutoff, EtaCutoff, TopNSigma
from strategies.sampling.distribution import entropy, log_normalizer, log_probabilities, row_sum
from strategies.sampling.dry import DRY
from strategies.sampling.mirostat import Mirostat
from strategies.sampling.ngram import NoRepeatNgram
from strategies.sampling.pipeline import faulty_rows
from strategies.sampling.row import Row
from strategies.sampling.transform import Transform
from strategies.sampling.truncation import MinP, TopK, TopP
from strategies.sampling.typical import TypicalP
from strategies.sampling.xtc import ExcludeTopChoices

NAMES = (
    "dry", "allowed_token_ids", "bad_words", "no_repeat_ngram", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p",
    "epsilon_cutoff", "eta_cutoff", "xtc", "mirostat",
)  # fmt: skip
"""In the documented order; temperature comes before the truncations."""
KINDS: list[type[Transform]] = [
    DRY, AllowedTokenIds, BadWords, NoRepeatNgram, TopNSigma, TypicalP, EpsilonCutoff, EtaCutoff, ExcludeTopChoices,
    Mirostat,
]  # fmt: skip


def some(kind: type[Transform], rng: random.Random, vocab: int) -> Transform:
    """A transform of this kind with random parameters."""

    def token() -> int:
        return rng.randrange(vocab)

    made: dict[str, Transform] = {
        "dry": DRY(multiplier=rng.uniform(0.1, 2), base=rng.uniform(1, 2), allowed_length=rng.randint(1, 3)),
        "allowed_token_ids": AllowedTokenIds(ids=tuple(token() for _ in range(rng.randint(1, vocab)))),
        "bad_words": BadWords(sequences=tuple((token(), token())[: rng.randint(1, 2)] for _ in range(40))),
        "no_repeat_ngram": NoRepeatNgram(size=rng.randint(1, 4)),
        "top_n_sigma": TopNSigma(n=rng.uniform(0.1, 3)),
        "typical_p": TypicalP(mass=rng.uniform(0.05, 0.99)),
        "epsilon_cutoff": EpsilonCutoff(epsilon=rng.uniform(1e-4, 0.3)),
        "eta_cutoff": EtaCutoff(epsilon=rng.uniform(1e-4, 0.9)),
        "xtc": ExcludeTopChoices(threshold=rng.uniform(0.001, 0.3), probability=rng.choice([0.5, 1.0])),
        "mirostat": Mirostat(tau=rng.uniform(0.5, 6), eta=rng.uniform(0.05, 1)),
    }
    return made[kind.name]


def mixed_row(rng: random.Random, vocab: int, kinds: list[type[Transform]]) -> Row:
    """A row with these transforms and a history of few different tokens, so that much repeats."""
    tokens = [rng.randrange(vocab) for _ in range(4)]
    return baseline_row(
        *(some(kind, rng, vocab) for kind in kinds),
        prompt=rng.choices(tokens, k=rng.randrange(30)),
        output=rng.choices(tokens, k=rng.randrange(30)),
        seed=rng.randrange(2**64),
        temperature=rng.choice([0.0, 0.7, 1.0, 1.0, 1.6]),
        tokenizer=ByteTokenizer(),
    )


def mixed_rows(seed: int, count: int, vocab: int) -> list[Row]:
    rng = random.Random(seed)
    return [mixed_row(rng, vocab, rng.sample(KINDS, rng.randrange(5))) for _ in range(count)]


@pytest.mark.parametrize(("vocab", "count"), [(2, 17), (40, 17), (3001, 17), (40_009, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_each_row_of_a_mixed_batch_is_what_it_is_alone(seed: int, vocab: int, count: int) -> None:
    """Bit for bit, also for a vocabulary that is wide enough for torch to split single rows among threads."""
    rows = mixed_rows(seed, count, vocab)
    logits = random_logits(count, vocab, seed)
    batch = pipeline.process(logits.clone(), rows)
    for i, row in enumerate(rows):
        assert torch.equal(pipeline.process(logits[i : i + 1].clone(), [row])[0], batch[i]), i
    order = random.Random(seed).sample(range(count), count // 2)
    assert torch.equal(pipeline.process(logits[order].clone(), [rows[i] for i in order]), batch[order])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_transform_is_the_same_alone_and_in_a_wide_batch(kind: type[Transform]) -> None:
    rng = random.Random(7)
    rows = [mixed_row(rng, 33_003, [kind]) for _ in range(5)]
    logits = random_logits(5, 33_003, seed=7)
    batch = pipeline.process(logits.clone(), rows)
    assert not torch.equal(batch, logits)
    for i, row in enumerate(rows):
        assert torch.equal(pipeline.process(logits[i : i + 1].clone(), [row])[0], batch[i]), i


@pytest.mark.parametrize("seed", range(6))
def test_masked_tokens_stay_masked_and_something_is_left(seed: int) -> None:
    rng = random.Random(seed)
    rows = mixed_rows(seed, 30, 12)
    logits = random_logits(30, 12, seed)
    for row in logits:
        row[rng.sample(range(12), rng.randrange(12))] = -math.inf
    found = pipeline.process(logits.clone(), rows)
    assert torch.isneginf(found[torch.isneginf(logits)]).all()
    assert torch.isfinite(found.amax(-1)).all()


FAULTS = {
    "all NaN": [math.nan] * 12,
    "one NaN": [1.0] * 11 + [math.nan],
    "infinite": [1.0] * 11 + [math.inf],
    "all masked": [-math.inf] * 12,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_row_stays_faulty_and_hurts_no_other(kind: type[Transform], fault: str) -> None:
    rng = random.Random(3)
    history = [mixed_row(rng, 11, [kind]) for _ in range(7)]  # token 11, the faulty one, is in no history or ban
    logits = random_logits(7, 12, seed=3)
    expected = pipeline.process(logits.clone(), [row.fork() for row in history])
    logits[2], logits[5] = torch.tensor(FAULTS[fault]), torch.tensor(FAULTS[fault])
    found = pipeline.process(logits, history)
    assert faulty_rows(found).tolist() == [i in (2, 5) for i in range(7)]
    others = [0, 1, 3, 4, 6]
    assert torch.equal(found[others], expected[others])
    for row in history:
        row.append(0)  # a state that has seen a fault goes on


@pytest.mark.parametrize("seed", range(4))
def test_forks_are_what_separate_rows_would_be(seed: int) -> None:
    """A fork that goes on with other tokens, its parent, and rows that were never forked: equal step by step."""
    rng = random.Random(seed)
    kinds: list[type[Transform]] = [DRY, NoRepeatNgram, BadWords, ExcludeTopChoices, Mirostat]
    transforms = [some(kind, rng, 8) for kind in kinds]

    def fresh() -> Row:
        return baseline_row(*transforms, prompt=[1, 2, 3, 1, 2], seed=seed, tokenizer=ByteTokenizer())

    def step(row: Row, number: int, token: int) -> torch.Tensor:
        found = pipeline.process(random_logits(1, 8, seed=number), [row])
        row.append(token)
        return found

    common, left, right = ([rng.randrange(4) for _ in range(12)] for _ in range(3))
    parent, twins = fresh(), (fresh(), fresh())
    for number, token in enumerate(common):
        for row in (parent, *twins):
            step(row, number, token)
    child = parent.fork()
    for number, (mine, other) in enumerate(zip(left, right, strict=True), start=100):
        assert torch.equal(step(parent, number, mine), step(twins[0], number, mine))
        assert torch.equal(step(child, number, other), step(twins[1], number, other))


def test_names_order_and_schemas() -> None:
    known = registry.registered("transform")
    assert [name for name in sorted(known, key=lambda name: known[name].order()) if name in NAMES] == list(NAMES)
    for kind in KINDS:
        for field in kind.model_json_schema()["properties"].values():
            assert field["description"].endswith(".")
    assert {kind.name for kind in KINDS if kind.slot == "penalty"} == {"dry", "no_repeat_ngram"}
    assert {kind.name for kind in KINDS if kind.slot is None} == {"allowed_token_ids", "bad_words"}
    assert {kind.name for kind in KINDS if kind.greedy} == {"dry", "allowed_token_ids", "bad_words", "no_repeat_ngram"}


def test_the_truncations_run_in_their_order() -> None:
    """Each sees what the one before it left: after top_k = 2 the typical set is chosen from two tokens."""
    stages: list[Transform] = [Mirostat(), ExcludeTopChoices(), TypicalP(mass=0.9), TopK(k=2), MinP(p=0.1), TopP(p=0.9)]
    row = baseline_row(*stages, EtaCutoff(epsilon=0.1), EpsilonCutoff(epsilon=0.1), TopNSigma(n=1.0))
    assert [stage.name for stage in row.stages] == list(NAMES[4:])
    logits = torch.tensor([[0.4, *[0.12] * 5]]).log()
    alone = pipeline.process(logits.clone(), [baseline_row(TypicalP(mass=0.5))])
    after = pipeline.process(logits.clone(), [baseline_row(TypicalP(mass=0.5), TopK(k=1))])
    assert torch.isneginf(alone[0, 0])
    assert torch.isfinite(after[0, 0])


@pytest.mark.parametrize("vocab", [1, 5, 256, 257, 3001])
def test_row_figures(vocab: int) -> None:
    logits = random_logits(4, vocab, seed=vocab)
    logits[1, ::2] = -math.inf if vocab > 1 else 0.0
    exact = logits.double()
    torch.testing.assert_close(log_normalizer(logits)[:, 0].double(), exact.logsumexp(-1), rtol=1e-6, atol=1e-6)
    logprobs = log_probabilities(logits)
    torch.testing.assert_close(logprobs.double(), exact.log_softmax(-1), rtol=1e-6, atol=1e-6)
    terms = exact.softmax(-1) * exact.log_softmax(-1)
    torch.testing.assert_close(entropy(logprobs)[:, 0].double(), -terms.nansum(-1), rtol=1e-5, atol=1e-5)
    assert row_sum(torch.ones(4, vocab)).tolist() == [[float(vocab)]] * 4
