"""`auto` through the engine: the output stays what it must be whatever is picked, and what is picked follows the costs.

A step's cost is scripted: the engine's clock advances by what the test says a forward of so many tokens takes.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from speculating_engine import SpeculatingEngine, again, auto, chain, rsd_c, shape_name
from stepped_engine import END, Answer, random_distribution
from test_speculation_law import DRAFT, SMALLEST_P, TARGET, TOKENIZER, A, B, C, _continue, chi_square, p_value
from test_speculation_output import DRAFTS, EXACT, EXPECTED, SAMPLERS, SETTINGS, near
from test_speculation_output import TARGET as NOISY

from models.scripted import Distribution
from models.torch_runtime.adaptive import DECIDING_SHARE, DECISIONS, PLAIN_EVERY, PROBE_SHARE, AdaptiveSpeculation
from models.torch_runtime.batch import PackedBatch
from models.torch_runtime.drafters import Drafter, ModelDrafter
from models.torch_runtime.kv_pool import SlotPool
from strategies.budget import Meter
from strategies.errors import InvalidRequest
from strategies.runtime import Generation, StopConditions
from strategies.sampling.row import Row
from strategies.sampling.standard import sampling
from strategies.speculative.speculation import AutoSpeculation, Speculation

ENDLESS = random_distribution(end=-100.0)
WRONG = random_distribution(end=-100.0, salt=4)
GREEDY = sampling(temperature=0.0)
Cost = Callable[[int], float]


def flat(tokens: int) -> float:
    """Bound by reading the weights, like a GPU at a small batch."""
    return 1.0 + 0.001 * tokens


def steep(tokens: int) -> float:
    """Bound by arithmetic: twice the tokens, nearly twice the time."""
    return 0.2 + 0.8 * tokens


class TimedEngine(SpeculatingEngine):
    """Its clock is what its models' forwards cost."""

    def __init__(
        self,
        distribution: Distribution,
        drafts: Mapping[str, Distribution] | None = None,
        target_cost: Cost = flat,
        draft_cost: Cost = lambda tokens: 0.05,
        **options: Any,
    ) -> None:
        self.now = 0.0
        super().__init__(distribution, drafts, clock=lambda: self.now, **options)
        for model in (self.model, *self.drafts.values()):
            self._timed(model, target_cost if model is self.model else draft_cost)

    def _drafters(self, pool: SlotPool) -> Sequence[Drafter]:
        """Small ones by their parameters, which is what is believed before they are timed."""
        info = replace(self.info, matmul_parameters=1, num_layers=0)
        return [ModelDrafter(name, draft, info, pool, info.vocab_size) for name, draft in self.drafts.items()]

    def _timed(self, model: Any, cost: Cost) -> None:
        forward = model.forward

        def timed(batch: PackedBatch, pool: SlotPool) -> Any:
            self.now += cost(batch.num_tokens)
            return forward(batch, pool)

        model.forward = timed


AUTO: tuple[AutoSpeculation, ...] = (
    auto(), auto(drafter="near"), auto(drafter="far", max_nodes=3), auto(drafter="ngram"), auto(coupled=True),
    auto(max_nodes=1), auto(max_nodes=64),
)  # fmt: skip


@pytest.mark.parametrize("options", SETTINGS, ids=["roomy", "no-cache", "small-chunks", "tiny-pool", "small-pool"])
@pytest.mark.parametrize("cost", [flat, steep])
def test_output_is_plain_output(options: dict[str, Any], cost: Cost) -> None:
    """Greedy, and seeded with whatever `coupled` isn't false; beside requests of every other method."""
    engine = TimedEngine(NOISY, DRAFTS, cost, lambda tokens: 0.001, max_model_len=100, **options)
    requests = [
        again(request, speculation=AUTO[i % len(AUTO)]) if i % 3 else again(request) for i, request in enumerate(EXACT)
    ]
    answers = engine.answers(requests, max_steps=20_000)
    for request, answer, expected in zip(requests, answers, EXPECTED, strict=True):
        assert answer.tokens == expected, shape_name(request.speculation)
    assert engine.leaked == 0
    if cost is steep or "prefix_cache" in options:
        return  # it hardly pays; and steps that always compute some prompt teach no costs
    adaptive = [request.meter.spend for request in requests if isinstance(request.speculation, AutoSpeculation)]
    assert sum(spend.accepted_tokens for spend in adaptive) > 5
    assert sum(spend.drafted_tokens - spend.accepted_tokens for spend in adaptive) > 5


def test_greedy_output_is_plain_also_uncoupled() -> None:
    requests = [
        Generation(
            [97 + i, 98, 97 + i], SAMPLERS[i % 2], StopConditions(max_tokens=40), speculation=auto(coupled=False)
        )
        for i in range(12)
    ]
    plain = SpeculatingEngine(NOISY).answers([again(request, speculation=None) for request in requests])
    answers = TimedEngine(NOISY, DRAFTS).answers(requests)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in plain]


@pytest.mark.parametrize("parameters", [sampling(), sampling(temperature=0.7, repetition_penalty=1.3)], ids=["T1", "p"])
def test_unseeded_draws_have_the_targets_law(parameters: Any) -> None:
    """Chi-square of 2500 continuations of 4 tokens; two tests at 1e-9. The draft is nearly free, so that most tokens
    come from rounds, of whatever shape the acceptance so far has made best."""
    prompt = [A, B, C, A, C, B, A]
    stopping = StopConditions(max_tokens=4)
    requests = [
        Generation(prompt, parameters, stopping, seed=seed, speculation=auto(coupled=False)) for seed in range(2500)
    ]
    engine = TimedEngine(TARGET, {"draft": DRAFT}, max_num_seqs=100, max_num_batched_tokens=1500, max_model_len=32)
    answers = [engine.submit(request) for request in requests]
    while engine.engine.step():
        pass
    law = dict(_continue(requests[0], Row(requests[0], frozenset({END}), TOKENIZER), (), 1.0))
    expected = {outcome: mass * len(requests) for outcome, mass in law.items()}
    assert p_value(*chi_square(Counter(tuple(answer.tokens) for answer in answers), expected)) > SMALLEST_P
    spends = [request.meter.spend for request in requests]
    picked: Counter[str] = Counter()
    for spend in spends:
        picked.update(spend.picked)
    assert sum(spend.rounds for spend in spends) > 1500
    assert len(picked) > 2


def run(
    distribution: Distribution, drafts: Mapping[str, Distribution], requests: Sequence[Generation], **options: Any
) -> float:
    """Seconds of the scripted clock until all are answered."""
    engine = TimedEngine(distribution, drafts, max_model_len=2048, num_slots=16384, **options)
    engine.answers(requests, max_steps=50_000)
    return engine.now


def asked(count: int, tokens: int, speculation: Speculation | None) -> list[Generation]:
    """Prompts of single letters, without anything to look up in them at first."""
    stopping = StopConditions(max_tokens=tokens)
    return [Generation([97 + i % 26, 97 + i // 26], GREEDY, stopping, speculation=speculation) for i in range(count)]


@pytest.mark.parametrize("sequences", [1, 4])
@pytest.mark.parametrize("target_cost", [flat, steep])
@pytest.mark.parametrize("drafter", ["draft", "ngram"])
def test_a_hopeless_draft_costs_next_to_nothing(sequences: int, drafter: str, target_cost: Cost) -> None:
    """From a cold start, with its first trials in it; `chain` loses a lot."""
    options = {"target_cost": target_cost, "draft_cost": lambda tokens: 0.2}
    plain = run(ENDLESS, {"draft": WRONG}, asked(sequences, 300, None), **options)
    adaptive = asked(sequences, 300, auto(drafter=drafter))
    assert run(ENDLESS, {"draft": WRONG}, adaptive, **options) < 1.05 * plain
    assert run(ENDLESS, {"draft": WRONG}, asked(sequences, 300, chain(4)), **options) > 1.15 * plain


def test_a_good_draft_pays() -> None:
    plain = run(ENDLESS, {"draft": ENDLESS}, asked(2, 300, None))
    requests = asked(2, 300, auto())
    assert run(ENDLESS, {"draft": ENDLESS}, requests) < plain / 4
    for request in requests:
        spend = request.meter.spend
        assert spend.accepted_tokens / spend.rounds > 6
        # every output but the first is a round's or a plain step's
        assert sum(spend.picked.values()) == spend.rounds + spend.picked.get("off", 0)
        assert spend.rounds + spend.accepted_tokens + spend.picked.get("off", 0) == 299


def test_a_draft_that_pays_alone_is_off_in_a_full_batch_and_back_on_after_it() -> None:
    draft = near(ENDLESS, 0.3)
    engine = TimedEngine(ENDLESS, {"draft": draft}, steep_after(12), max_model_len=2048, num_slots=16384)
    long = Generation([97, 98], GREEDY, StopConditions(max_tokens=900), speculation=auto(drafter="draft"))
    answer = engine.submit(long)
    picks = [dict[str, int]()]
    until(engine, answer, 200)
    picks.append(dict(long.meter.spend.picked))
    crowd = [engine.submit(request) for request in asked(40, 120, auto(drafter="draft"))]
    while not all(one.ended for one in crowd):
        engine.step()
    picks.append(dict(long.meter.spend.picked))
    until(engine, answer, 900)
    picks.append(dict(long.meter.spend.picked))
    shares = [
        (after.get("off", 0) - before.get("off", 0)) / (sum(after.values()) - sum(before.values()))
        for before, after in itertools.pairwise(picks)
    ]
    assert shares[0] < 0.1
    assert shares[1] > 0.85
    assert shares[2] < 0.3


def steep_after(free: int) -> Cost:
    """Tokens cost nothing up to a number, then as much as all before them."""
    return lambda tokens: 1.0 + max(0, tokens - free) / free


def until(engine: TimedEngine, answer: Answer, tokens: int) -> None:
    while len(answer.tokens) < tokens and not answer.ended:
        engine.step()


def test_probes_stay_within_their_share() -> None:
    """A draft as dear as the target is tried, and what its trials take is their share of the time, after the first."""
    options: dict[str, Any] = {"draft_cost": lambda tokens: 1.0}
    draft = TimedEngine(ENDLESS, {"draft": WRONG}, max_model_len=4096, num_slots=16384, **options)
    (request,) = asked(1, 3000, auto(drafter="draft"))
    draft.answers([request], max_steps=20_000)
    plain = run(ENDLESS, {}, asked(1, 1000, None)) * 3
    rounds = request.meter.spend.rounds
    assert rounds > 3
    assert draft.now < plain * (1 + PROBE_SHARE) + 30
    assert request.meter.spend.picked["off"] == 2999 - rounds - request.meter.spend.accepted_tokens


@pytest.mark.parametrize(("draft", "cost", "pays"), [(WRONG, steep, False), (ENDLESS, flat, True)])
def test_choosing_takes_little_where_nothing_pays(
    draft: Distribution, cost: Cost, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choosing takes a tenth of a plain step. Where no tree pays it is done so seldom that it takes its share; where
    trees pay, before every step of a new batch, and it is no part of what the target is believed to cost."""
    engine = TimedEngine(ENDLESS, {"draft": draft}, cost, max_model_len=4096, num_slots=16384)
    chosen: list[float] = []
    expected = AdaptiveSpeculation._expected

    def slow(self: AdaptiveSpeculation, ready: Any) -> Any:
        engine.now += 0.1
        chosen.append(engine.now)
        return expected(self, ready)

    monkeypatch.setattr(AdaptiveSpeculation, "_expected", slow)
    (request,) = asked(1, 1500, auto(drafter="draft"))
    engine.answers([request], max_steps=20_000)
    spent = 0.1 * len(chosen) / engine.now
    if pays:
        assert request.meter.spend.rounds > request.meter.spend.picked["off"]
    else:
        assert len(chosen) > 2 * DECISIONS
        assert spent < 1.2 * DECIDING_SHARE
    costs = engine.engine.speculator.adaptive.costs.target
    assert float(costs(np.array(1.0))) == pytest.approx(cost(1), abs=0.01)


def test_one_step_in_many_is_plain_where_speculation_pays() -> None:
    (request,) = asked(1, 1500, auto(drafter="draft"))
    run(ENDLESS, {"draft": ENDLESS}, [request])
    spend = request.meter.spend
    assert 1 <= spend.picked["off"] <= spend.rounds / PLAIN_EVERY + 12


def test_limits_of_the_request_hold() -> None:
    drafts = {"one": ENDLESS, "two": ENDLESS}
    requests = [
        Generation([97 + i, 98], GREEDY, StopConditions(max_tokens=60), speculation=speculation)
        for i, speculation in enumerate([auto(max_nodes=2), auto(drafter="two", max_nodes=5), auto(drafter="one")])
    ]
    TimedEngine(ENDLESS, drafts).answers(requests)
    two, five, named = (request.meter.spend for request in requests)
    assert two.drafted_tokens <= 2 * two.rounds
    assert five.drafted_tokens <= 5 * five.rounds
    assert {name.split()[0] for name in five.picked} <= {"two", "off"}
    assert {name.split()[0] for name in named.picked} <= {"one", "off"}
    assert len(named.picked) > 1


def test_choices_share_a_budget_and_one_report() -> None:
    meter = Meter()
    requests = [
        replace(request, branch=(i,), meter=meter) for i, request in enumerate(asked(2, 30, auto(drafter="draft")))
    ]
    TimedEngine(ENDLESS, {"draft": ENDLESS}).answers(requests)
    spend = meter.spend
    assert spend.output_tokens == 60
    assert sum(spend.picked.values()) == spend.rounds + spend.picked.get("off", 0)


def test_an_unknown_drafter_is_refused() -> None:
    engine = SpeculatingEngine(ENDLESS, {"draft": ENDLESS}).engine
    for name in (None, "draft", "ngram"):
        engine.speculator.check(auto(drafter=name))
    with pytest.raises(InvalidRequest, match="'nobody' is no drafter; there are: draft, ngram"):
        engine.speculator.check(auto(drafter="nobody"))


def test_seeds_decide_what_is_left_open() -> None:
    assert auto().resolved(seeded=True) == auto(coupled=True)
    assert auto().resolved(seeded=False) == auto(coupled=False)
    assert auto(coupled=False).resolved(seeded=True) == auto(coupled=False)
    assert rsd_c(2).resolved(seeded=True) == rsd_c(2)
    with pytest.raises(TypeError, match="picks one for each round"):
        auto().method(1)
