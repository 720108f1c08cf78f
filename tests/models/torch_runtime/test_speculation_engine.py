"""Rounds in the engine: how they end, what they report, what they cost, and how they fail."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from speculating_engine import METHODS, SpeculatingEngine, again, chain, ngram, rsd_c, rsd_s, shape_name, spectr
from stepped_engine import END, Answer, SteppedEngine, random_distribution
from torch import Tensor

from models.scripted import ByteTokenizer, Distribution, play
from models.torch_runtime.batch import PackedBatch, Segment
from models.torch_runtime.kv_pool import SlotPool
from strategies import budget
from strategies.budget import Budget, BudgetUnit, Meter, Spend
from strategies.errors import RequestFailed
from strategies.runtime import Generation, ModelInfo, StopConditions
from strategies.sampling.pipeline import process
from strategies.sampling.row import Row
from strategies.sampling.standard import sampling
from strategies.speculative.speculation import Speculation

TARGET = random_distribution(end=1.0)
ENDLESS = random_distribution(end=-100.0)
GREEDY = sampling(temperature=0.0)
MODEL_METHODS = tuple(method for method in METHODS if method.uses_draft)


def near(target: Distribution, weight: float = 0.4) -> Distribution:
    other = random_distribution(salt=9)
    return lambda context: target(context) + weight * other(context)


def said(script: bytes | Sequence[int], speculation: Speculation | None, pieces: Sequence[bytes] = (), **stopping: Any):
    """The answer of a model that says the script, and its spend. The draft knows the script, and the prompt holds it
    too, so that whole trees are accepted."""
    tokenizer, tokens = ByteTokenizer(pieces), list(script)
    prompt = [*tokens, END, 1, 2, *tokens[:1]]
    target = play(tokens[1:], tokenizer.vocab_size, prompt_length=len(prompt))
    limit = stopping.pop("max_model_len", 512)
    engine = SpeculatingEngine(target, {"draft": target}, tokenizer=tokenizer, max_model_len=limit)
    generation = Generation(prompt, GREEDY, StopConditions(**stopping), logprobs=2, speculation=speculation)
    answer = engine.answers([generation])[0]
    assert engine.leaked == 0
    return answer, generation.meter.spend


def content(answer: Answer) -> tuple[object, ...]:
    entries = [(entry.token, round(entry.logprob, 4), len(entry.top)) for entry in answer.logprobs]
    return answer.tokens, answer.text, answer.finish, answer.deltas[-1].stop_token, entries


HEART = 260
ENDINGS: list[tuple[bytes | Sequence[int], dict[str, Any]]] = [
    (b"hello world", {}),
    (b"hello world", {"max_tokens": 1}),
    (b"hello world", {"max_tokens": 2}),
    (b"hello world", {"max_tokens": 6}),
    (b"hello world", {"max_tokens": 11}),
    (b"hello world", {"max_tokens": 12}),
    (b"hello world", {"stop": ("o w",)}),
    (b"hello world", {"stop": ("o w",), "include_stop": True}),
    (b"hello world", {"stop": ("lo", "o"), "min_tokens": 6}),
    (b"hello world", {"stop": ("rldx",)}),
    (b"hello world", {"stop_token_ids": frozenset(b"w")}),
    (b"hello world", {"stop_token_ids": frozenset(b"w"), "include_stop": True}),
    (b"hello world", {"stop_token_ids": frozenset(b"l"), "min_tokens": 3}),
    (b"hello world", {"ignore_eos": True, "max_tokens": 20}),
    (b"hello world", {"min_tokens": 15, "max_tokens": 18}),
    (b"hello world", {"max_model_len": 33}),
    ([*b"hey", 259, *b"you"], {"stop": ("<|assistant|>",)}),
    ([*b"hey", 259, *b"you"], {"stop": ("<|assistant|>",), "min_tokens": 9, "max_tokens": 9}),
    ([*b"a", HEART, *b"b", *"\u2665".encode(), *b"c"], {}),
    ([*b"a", HEART, *b"bc"], {"stop": ("veb",)}),
]


@pytest.mark.parametrize("case", range(len(ENDINGS)))
def test_every_way_to_end_is_that_of_plain_decoding(case: int) -> None:
    """Tokens, text, reasons and log-probabilities; most ends lie inside a tree here."""
    script, stopping = ENDINGS[case]
    plain, spend = said(script, None, [b"love"], **stopping)
    for speculation in (*METHODS, chain(16), ngram(16), rsd_s(2, 12), rsd_c(1)):
        answer, cost = said(script, speculation, [b"love"], **stopping)
        assert content(answer) == content(plain), shape_name(speculation)
        assert cost.output_tokens == spend.output_tokens == len(plain.tokens)
        assert cost.accepted_tokens == sum(cost.accepted_by_level) <= min(cost.drafted_tokens, len(plain.tokens))


def test_an_end_inside_the_tree_has_nothing_after_it() -> None:
    answer, spend = said(b"hello", chain(16))
    assert answer.tokens == [*b"ello", END]
    assert (answer.text, answer.finish) == ("ello", ("stop", None))
    # the prompt's pass gives the first token, one round the rest: the end is accepted, and no bonus follows
    assert (spend.rounds, spend.accepted_tokens, spend.drafted_tokens) == (1, 4, 4)
    assert spend.accepted_by_level == [1, 1, 1, 1]


@pytest.mark.parametrize("speculation", METHODS, ids=shape_name)
@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_logprobs_along_the_output_are_those_of_plain_decoding(speculation: Speculation, mode: Any) -> None:
    sampler = sampling(temperature=0.7, top_k=8, frequency_penalty=0.9)
    prompt = [97, 98, 99, 97, 98]
    requests = [
        Generation(
            prompt, sampler, StopConditions(max_tokens=9), seed=seed, branch=(seed,), logprobs=count,
            logprobs_mode=mode, speculation=speculation,
        )
        for seed, count in enumerate([0, 1, 5, 3])
    ]  # fmt: skip
    engine = SpeculatingEngine(TARGET, {"draft": near(TARGET)})
    for request, answer in zip(requests, engine.answers(requests), strict=True):
        assert [entry.token for entry in answer.logprobs] == answer.tokens
        row = Row(request, frozenset({END}))
        for i, entry in enumerate(answer.logprobs):
            logits = TARGET([*prompt, *answer.tokens[:i]])[None]
            if mode == "processed":
                logits = process(logits.clone(), [row])
            values = logits[0].log_softmax(-1)
            assert entry.logprob == pytest.approx(float(values[entry.token]), abs=1e-4)
            best = values.topk(max(1, request.logprobs or 0))
            assert [token for token, _ in entry.top] == best.indices.tolist()[: request.logprobs]
            assert [value for _, value in entry.top] == pytest.approx(
                best.values.tolist()[: request.logprobs], abs=1e-4
            )
            row.append(entry.token)


@pytest.mark.parametrize("speculation", METHODS, ids=shape_name)
def test_prompt_logprobs_and_pooling_go_together_with_speculation(speculation: Speculation) -> None:
    def ask(speculation: Speculation | None) -> list[Answer]:
        engine = SpeculatingEngine(TARGET, {"draft": near(TARGET)}, max_num_batched_tokens=66)
        stopping = StopConditions(max_tokens=6)
        return engine.answers(
            Generation(prompt, GREEDY, stopping, prompt_logprobs=1, speculation=speculation)
            for prompt in ([97], [97, 98], [97] * 70)
        )

    for answer, plain in zip(ask(speculation), ask(None), strict=True):
        assert (answer.tokens, answer.finish) == (plain.tokens, plain.finish)
        assert answer.prompt_logprobs == plain.prompt_logprobs


class Recount:
    """What a model computed, by its own count: tokens, and operations by the formula."""

    def __init__(self, model: Any, info: ModelInfo) -> None:
        self.tokens, self.flops, self.info = 0, 0.0, info
        self._forward: Callable[[PackedBatch, SlotPool], Tensor] = model.forward
        model.forward = self.forward

    def forward(self, batch: PackedBatch, pool: SlotPool) -> Tensor:
        self.tokens += batch.num_tokens
        self.flops += sum(map(self._flops, batch.segments))
        return self._forward(batch, pool)

    def _flops(self, segment: Segment) -> float:
        return self.info.flops(len(segment.tokens), len(segment.context))


@pytest.mark.parametrize("speculation", METHODS, ids=shape_name)
def test_spend_is_what_both_models_computed(speculation: Speculation) -> None:
    engine = SpeculatingEngine(TARGET, {"draft": near(TARGET)}, max_num_batched_tokens=70)
    target, draft = Recount(engine.model, engine.info), Recount(engine.draft, engine.info)
    meters = [Meter() for _ in range(3)]
    requests = [
        Generation(
            [97 + i % 3] * (i % 3 * 30 + 1) + [100 + i], sampling(), StopConditions(max_tokens=12), seed=i,
            branch=(i,), meter=meters[i % 3], speculation=speculation if i % 4 else None,
        )
        for i in range(9)
    ]  # fmt: skip
    answers = engine.answers(requests)
    spends = [meter.spend for meter in meters]
    assert sum(spend.target_tokens for spend in spends) == target.tokens == engine.model.forward_tokens
    assert sum(spend.draft_tokens for spend in spends) == draft.tokens == engine.draft.forward_tokens
    assert sum(spend.flops for spend in spends) == pytest.approx(target.flops + draft.flops)
    assert sum(spend.output_tokens for spend in spends) == sum(len(answer.tokens) for answer in answers)
    assert engine.scheduler.totals.generation_tokens == sum(len(answer.tokens) for answer in answers)
    assert (draft.tokens > 0) is speculation.uses_draft


def spent(spend: Spend, unit: BudgetUnit) -> float:
    if unit == "forward_tokens":
        return spend.target_tokens + spend.draft_tokens
    return spend.output_tokens if unit == "output_tokens" else spend.flops


@pytest.mark.parametrize("speculation", METHODS, ids=shape_name)
@pytest.mark.parametrize("unit", ["forward_tokens", "output_tokens", "flops"])
def test_no_budget_is_exceeded_at_any_step(unit: BudgetUnit, speculation: Speculation) -> None:
    """Three choices share each meter."""
    top = {"forward_tokens": 160, "output_tokens": 30, "flops": 4e4}[unit]
    outputs = []
    for fraction in (0.05, 0.13, 0.3, 0.47, 0.75, 1.0):
        limit = max(1, int(top * fraction))
        meter = Meter(Budget(**{unit: limit}))  # type: ignore[arg-type]
        engine = SpeculatingEngine(ENDLESS, {"draft": near(ENDLESS)}, max_num_batched_tokens=70)
        answers = [
            engine.submit(
                Generation(
                    [97, 98, 97, 98], sampling(temperature=t), StopConditions(max_tokens=40), seed=3, branch=(i,),
                    meter=meter, speculation=speculation,
                )
            )
            for i, t in enumerate([0.0, 1.0, 1.0])
        ]  # fmt: skip
        while engine.scheduler.waiting or engine.scheduler.running:
            engine.step()
            assert spent(meter.spend, unit) <= limit
        assert {answer.finish for answer in answers} == {("length", f"budget:{unit}")}
        outputs.append(sum(len(answer.tokens) for answer in answers))
        assert meter.spend.output_tokens == outputs[-1]
        assert engine.leaked == 0
        if unit == "output_tokens":
            assert outputs[-1] == limit
    assert outputs[-1] > outputs[0]


def test_a_choice_does_not_end_for_what_another_only_reserves() -> None:
    """Every draft is refused, so both choices could go on one token at a time, to the limit."""
    meter = Meter(Budget(output_tokens=11))
    engine = SpeculatingEngine(ENDLESS, {"draft": lambda context: ENDLESS(context).roll(1)})
    answers = engine.answers(
        Generation([97, 98], GREEDY, StopConditions(max_tokens=20), branch=(i,), meter=meter, speculation=chain(8))
        for i in range(2)
    )
    assert sorted(len(answer.tokens) for answer in answers) == [5, 6]


def test_trees_preempt_nobody() -> None:
    """What fits without speculation fits with it: trees take what is left."""

    def preemptions(speculation: Speculation | None) -> int:
        engine = SpeculatingEngine(
            ENDLESS, {"draft": near(ENDLESS)}, num_slots=410, max_model_len=110, prefix_cache=False
        )
        engine.answers(
            Generation([97 + i] * 60, GREEDY, StopConditions(max_tokens=40), speculation=speculation) for i in range(4)
        )
        return engine.scheduler.totals.preemptions

    assert preemptions(None) == 0
    assert preemptions(rsd_s(8, 8)) == 0


def test_a_budget_for_plain_decoding_is_not_wasted_on_drafts() -> None:
    """Where a tree would not fit, single tokens go on to the limit."""
    for limit in range(5, 20):
        request = Generation([97, 98], GREEDY, meter=Meter(Budget(forward_tokens=limit)), speculation=rsd_c(4, 4))
        engine = SpeculatingEngine(ENDLESS, {"draft": near(ENDLESS)})
        engine.answers([request])
        spend = request.meter.spend
        assert limit - 1 <= spend.target_tokens + spend.draft_tokens <= limit


def test_seconds_end_a_speculating_request(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock.now))
    meter = Meter(Budget(seconds=2.0), started=100.0)
    engine = SpeculatingEngine(ENDLESS, {"draft": near(ENDLESS)})
    answer = engine.submit(Generation([97, 98], meter=meter, speculation=chain(3)))
    for _ in range(4):
        engine.step()
        clock.now += 0.45
    assert not answer.ended
    clock.now = 102.0
    engine.step()
    assert answer.finish == ("length", "budget:seconds")
    assert engine.leaked == 0


@pytest.mark.parametrize("speculation", METHODS, ids=shape_name)
@pytest.mark.parametrize("place", [2, 3, 4, 6, 9])
def test_a_fault_on_the_way_fails_its_request_as_in_plain_decoding(speculation: Speculation, place: int) -> None:
    """The tokens before it come out, at the root or inside the tree; the neighbours go on."""
    prompt = [97, 98, 97, 98]

    def broken(context: Sequence[int]) -> Tensor:
        logits = ENDLESS(context)
        return logits * float("nan") if len(context) >= 4 + place and context[0] == 97 else logits

    def run(speculation: Speculation | None) -> tuple[Answer, Answer, SpeculatingEngine]:
        engine = SpeculatingEngine(broken, {"draft": ENDLESS})
        stopping = StopConditions(max_tokens=14)
        both = [Generation(p, GREEDY, stopping, speculation=speculation) for p in (prompt, [98, 97, 98, 97])]
        answers = engine.answers(both)
        return answers[0], answers[1], engine

    (bad, good, engine), (plain_bad, plain_good, _) = run(speculation), run(None)
    assert isinstance(bad.error, RequestFailed)
    assert bad.tokens == plain_bad.tokens
    assert len(bad.tokens) == place
    assert good.error is None
    assert good.tokens == plain_good.tokens
    assert engine.leaked == 0


@pytest.mark.parametrize("speculation", MODEL_METHODS, ids=shape_name)
def test_a_fault_off_the_accepted_path_harms_nobody(speculation: Speculation) -> None:
    engine = SteppedEngine(ENDLESS)
    request = Generation([97, 98], GREEDY, StopConditions(max_tokens=12))
    expected = engine.answers([request])[0].tokens
    whole = [97, 98, *expected]

    def broken(context: Sequence[int]) -> Tensor:
        logits = ENDLESS(context)
        return logits if list(context) == whole[: len(context)] else torch.full_like(logits, float("nan"))

    speculating = SpeculatingEngine(broken, {"draft": random_distribution(salt=5, end=-100.0)})
    answer = speculating.answers([again(request, speculation=speculation)])[0]
    assert (answer.error, answer.tokens) == (None, expected)


@pytest.mark.parametrize("speculation", MODEL_METHODS, ids=shape_name)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_draft_without_a_distribution_proposes_nothing(speculation: Speculation, value: float) -> None:
    def broken(context: Sequence[int]) -> Tensor:
        logits = near(ENDLESS)(context)
        return torch.full_like(logits, value) if len(context) % 3 else logits

    requests = [
        Generation([97, 98], sampling(temperature=t), StopConditions(max_tokens=12), seed=1, speculation=speculation)
        for t in (0.0, 1.0)
    ]
    engine = SpeculatingEngine(ENDLESS, {"draft": broken})
    answers = engine.answers(requests)
    plain = SteppedEngine(ENDLESS).answers([again(requests[0], speculation=None)])[0]
    assert answers[0].tokens == plain.tokens
    assert [len(answer.tokens) for answer in answers] == [12, 12]
    assert engine.leaked == 0


def test_a_bug_met_while_drafting_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in plain decoding: a state that raises on a draft token is one request's fault."""
    append = Row.append

    def raising(self: Row, token: int) -> None:
        if self.prompt_ids[0] == 98 and self.num_outputs == 2:
            raise ZeroDivisionError
        append(self, token)

    monkeypatch.setattr(Row, "append", raising)
    engine = SpeculatingEngine(ENDLESS, {"draft": ENDLESS})
    stopping = StopConditions(max_tokens=9)
    answers = [engine.submit(Generation([97 + i, 97], GREEDY, stopping, speculation=chain(3))) for i in range(3)]
    engine.run(50)
    assert isinstance(answers[1].error, RequestFailed)
    assert [len(answers[i].tokens) for i in (0, 2)] == [9, 9]
    assert engine.leaked == 0


@pytest.mark.parametrize("moment", range(1, 6))
def test_cancelling_frees_everything(moment: int) -> None:
    engine = SpeculatingEngine(ENDLESS, {"draft": near(ENDLESS)}, prefix_cache=False)
    answers = [
        engine.submit(Generation([97 + i, 98], sampling(), seed=i, speculation=method))
        for i, method in enumerate((*METHODS, None))
    ]
    for _ in range(moment):
        engine.step()
    for sequence in engine.sequences:
        sequence.cancelled = True
    engine.step()
    assert not engine.scheduler.running
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_slots
    counts = [len(answer.tokens) for answer in answers]
    assert not engine.step()
    assert counts == [len(answer.tokens) for answer in answers]


def test_one_draft_forward_per_level_and_one_target_forward_for_all() -> None:
    """Rounds, plain tokens and a prefill chunk share the pass."""
    engine = SpeculatingEngine(ENDLESS, {"draft": ENDLESS}, max_num_batched_tokens=20)
    for i in range(3):
        engine.submit(Generation([97 + i, 98], GREEDY, speculation=chain(3)))
    engine.submit(Generation([101, 98], GREEDY))
    engine.step()
    engine.submit(Generation([102] * 90, GREEDY, speculation=spectr(2, 2)))
    before = engine.draft.passes
    engine.step()
    assert engine.draft.passes - before == 3
    assert engine.model.batches[-1] == [4, 4, 4, 1, 16]
    assert engine.model.passes == 2


@pytest.mark.parametrize("count", [1, 3])
def test_reports_count_over_all_choices(count: int) -> None:
    meter = Meter()
    requests = [
        Generation([97, 98], GREEDY, StopConditions(max_tokens=13), branch=(i,), meter=meter, speculation=chain(3))
        for i in range(count)
    ]
    SpeculatingEngine(ENDLESS, {"draft": ENDLESS}, prefix_cache=False).answers(requests)
    spend = meter.spend
    assert (spend.rounds, spend.drafted_tokens, spend.accepted_tokens) == (3 * count, 9 * count, 9 * count)
    assert spend.accepted_by_level == [3 * count] * 3
    assert spend.output_tokens == 13 * count
    # The draft computes the prompt, the root and two of three levels; later also what it has not seen of a round.
    assert spend.draft_tokens == (2 + 3 + (1 + 3) + (1 + 3)) * count
    assert spend.target_tokens == (2 + 3 * 4) * count


def test_the_trees_of_one_step_are_bounded_and_everybody_gets_a_turn() -> None:
    """8 trees of 64 nodes where 4 x 32 fit: two a step, in turn; nobody waits for another to end."""
    engine = SpeculatingEngine(ENDLESS, {"draft": near(ENDLESS)}, max_num_batched_tokens=32, max_num_seqs=8)
    requests = [
        Generation([97 + i, 98], GREEDY, StopConditions(max_tokens=30), speculation=rsd_s(8, 8)) for i in range(8)
    ]
    answers = [engine.submit(request) for request in requests]
    while not all(answer.ended for answer in answers):
        before = engine.scheduler.totals.iteration_tokens
        engine.step()
        assert engine.scheduler.totals.iteration_tokens - before <= 2 * (4 * 32) + 8 * 2 * 9
        progress = [len(answer.tokens) for answer in answers if not answer.ended]
        assert not progress or max(progress) - min(progress) <= 2 * 9
    assert [len(answer.tokens) for answer in answers] == [30] * 8
