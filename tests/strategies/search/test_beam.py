"""Beam search over tokens on the real engine: against exhaustive enumeration, with stops, pipelines and streaming."""

import math
import zlib
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from tree_model import END, PROMPT, TOKENIZER, Found, find, found, serving, text_of

from strategies.budget import Budget
from strategies.errors import InvalidRequest
from strategies.runtime import Generation, SamplingParameters, StopConditions
from strategies.sampling.penalties import LogitBias
from strategies.sampling.standard import sampling
from strategies.search.beam import Beam
from strategies.speculative.speculation import NgramSpeculation

LETTERS = [*b"abc", END]


def lettered(context: Sequence[int]) -> Tensor:
    """Three letters and the end, with chances that depend on all that came before."""
    logits = torch.full((TOKENIZER.vocab_size,), -200.0)
    answer = bytes(token % 256 for token in context[len(PROMPT) :])
    for token in LETTERS:
        logits[token] = 3.0 * zlib.crc32(answer + bytes([token % 256])) / 2**32
    return logits


def logprob(tokens: Sequence[int], temperature: float = 1.0) -> float:
    """Of an answer, by the law above."""
    total = 0.0
    for i, token in enumerate(tokens):
        total += float(torch.log_softmax(lettered([*PROMPT, *tokens[:i]]) / temperature, 0)[token])
    return total


def best_of_all(length: int, penalty: float, temperature: float = 1.0) -> list[tuple[int, ...]]:
    """Every answer that ends, or has the full length: best first."""
    every = [t for n in range(1, length + 1) for t in product(LETTERS, repeat=n)]
    complete = [t for t in every if END not in t[:-1] and (t[-1] == END or len(t) == length)]
    return sorted(complete, key=lambda t: -logprob(t, temperature) / len(t) ** penalty)


def scores(got: Found) -> list[float]:
    """Of the answers, best first."""
    return [node.notes["score"] for node in got.context.nodes if "score" in node.notes]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("length", [1, 3, 4])
def test_a_beam_as_wide_as_the_tree_finds_what_enumeration_finds(penalty: float, length: int) -> None:
    """32 hypotheses hold all live ones of three tokens (27); of four, those that matter."""
    got = found(Beam(width=32, length_penalty=penalty), distribution=lettered, max_tokens=length, n=2)
    assert [tuple(tokens) for tokens in got.tokens] == best_of_all(length, penalty)[:2]
    expected = [logprob(t) / len(t) ** penalty for t in best_of_all(length, penalty)[:2]]
    assert scores(got) == pytest.approx(expected, abs=1e-4)


def test_width_one_without_an_end_is_greedy() -> None:
    stopping = StopConditions(max_tokens=12, ignore_eos=True)
    with serving(lettered) as runtime:
        got = found(Beam(width=1), runtime=runtime, stopping=stopping)
        greedy = found_plain(runtime, Generation(PROMPT, sampling=sampling(temperature=0), stopping=stopping))
    assert got.tokens == [greedy]
    assert got.reasons == [("length", None)]


def found_plain(runtime: Any, generation: Generation) -> list[int]:
    import asyncio

    async def collect() -> list[int]:
        (stream,) = runtime.submit([generation])
        return [token async for delta in stream for token in delta.tokens]

    return asyncio.run(collect())


def test_temperature_shapes_the_scores_and_zero_counts_as_one() -> None:
    for temperature in (0.3, 2.0):
        got = found(Beam(width=32), distribution=lettered, max_tokens=3, temperature=temperature)
        best = best_of_all(3, 1.0, temperature)[0]
        assert tuple(got.tokens[0]) == best
        assert scores(got) == pytest.approx([logprob(best, temperature) / len(best)], abs=1e-4)
    zero, one = (found(Beam(width=4), distribution=lettered, max_tokens=8, temperature=t) for t in (0.0, 1.0))
    assert zero.tokens == one.tokens


def test_raw_scores_know_nothing_of_the_pipeline() -> None:
    raw = found(Beam(width=32, scores="raw"), distribution=lettered, max_tokens=3, temperature=0.05)
    assert tuple(raw.tokens[0]) == best_of_all(3, 1.0)[0]


def test_a_bias_holds_in_every_hypothesis() -> None:
    async def banned() -> Found:
        with serving(lettered) as runtime:
            generation = Generation(
                PROMPT,
                sampling=SamplingParameters(transforms=(LogitBias(bias={ord("a"): -100.0}),)),
                stopping=StopConditions(max_tokens=6),
            )
            return await find(runtime, Beam(width=8), generation, n=4)

    import asyncio

    got = asyncio.run(banned())
    assert len(got.tokens) == 4
    assert not [text for text in got.texts if "a" in text]


def test_a_stop_string_ends_a_hypothesis_and_is_cut_off() -> None:
    stopping = StopConditions(max_tokens=6, stop=("ca", "b"))
    got = found(Beam(width=32, length_penalty=0.0), distribution=lettered, stopping=stopping, n=4)
    for tokens, text, (reason, stop) in zip(got.tokens, got.texts, got.reasons, strict=True):
        whole = text_of(tokens)
        if reason == "stop" and stop is not None:
            assert whole == text + str(stop)
        assert "ca" not in text
        assert "b" not in text
    ended = [t for n in range(1, 5) for t in product(LETTERS, repeat=n) if is_ended(t)]
    assert tuple(got.tokens[0]) == max(ended, key=logprob)
    assert scores(got) == pytest.approx([logprob(tokens) for tokens in got.tokens], abs=1e-4)


def is_ended(tokens: tuple[int, ...]) -> bool:
    """Whether an answer ends with its last token, and not before."""

    def ends(part: tuple[int, ...]) -> bool:
        text = text_of(part)
        return part[-1] == END or text.endswith(("ca", "b"))

    return ends(tokens) and not any(ends(tokens[:i]) for i in range(1, len(tokens)))


def test_minimum_length_keeps_the_end_out() -> None:
    stopping = StopConditions(max_tokens=6, min_tokens=4)
    for kind in ("processed", "raw"):
        got = found(Beam(width=8, length_penalty=-2.0, scores=kind), distribution=lettered, stopping=stopping, n=4)
        assert all(len(tokens) >= 4 for tokens in got.tokens)
        assert all(END not in tokens[:-1] for tokens in got.tokens)


def peaked(context: Sequence[int]) -> Tensor:
    """Twenty letters nearly without a choice, then one, then the end."""
    logits = torch.full((TOKENIZER.vocab_size,), -200.0)
    place = len(context) - len(PROMPT)
    if place < 20:
        logits[ord("x")], logits[ord("y")] = 8.0, 0.0
    elif place == 20:
        logits[[ord("p"), ord("q")]] = torch.tensor([0.2, 0.0])
    else:
        logits[END] = 1.0
    return logits


def test_what_all_hypotheses_share_is_sent_early_and_stays() -> None:
    got = found(Beam(width=2), distribution=peaked, max_tokens=40, logprobs=1)
    pieces = [delta.text for delta in got.deltas[0] if delta.text]
    assert len(pieces) > 1
    assert got.texts == ["x" * 20 + "p"]
    entries = [entry for delta in got.deltas[0] for entry in delta.logprobs or ()]
    assert [entry.token for entry in entries] == got.tokens[0]
    assert sum(entry.logprob for entry in entries) == pytest.approx(
        20 * -math.log1p(math.exp(-8)) - math.log1p(math.exp(-0.2)), abs=1e-4
    )
    assert all(len(entry.top) == 1 for entry in entries)


@pytest.mark.parametrize("early_stopping", ["first", "heuristic", "never"])
def test_early_stopping_changes_how_long_it_looks(early_stopping: Any) -> None:
    got = found(Beam(width=3, early_stopping=early_stopping), distribution=lettered, max_tokens=12)
    reads = got.run.trace.calls["reads"]
    exact = found(Beam(width=3), distribution=lettered, max_tokens=12)
    assert reads <= exact.run.trace.calls["reads"]
    if early_stopping == "never":
        assert got.tokens == exact.tokens


@pytest.mark.parametrize("limit", [1, 5, 13, 30])
def test_a_budget_ends_it_with_the_best_so_far(limit: int) -> None:
    got = found(Beam(width=3), distribution=peaked, max_tokens=40, budget=Budget(output_tokens=limit))
    spend = got.run.generation.meter.spend
    assert spend.output_tokens <= limit
    assert got.reasons == [("length", "budget:output_tokens")]
    assert got.texts == ["x" * ((limit + 2) // 3)] if limit > 1 else ["x"]


def test_what_it_cannot_follow_is_refused() -> None:
    plain = SamplingParameters()
    biased = SamplingParameters(transforms=(LogitBias(bias={5: 1.0}),))
    with pytest.raises(InvalidRequest) as caught:
        Beam().check_sampling(plain, NgramSpeculation(), logprobs=False)
    assert caught.value.param == "decoding.speculation"
    with pytest.raises(InvalidRequest) as caught:
        Beam(scores="raw").check_sampling(biased, None, logprobs=False)
    assert caught.value.param == "decoding.search.scores"
    with pytest.raises(InvalidRequest) as caught:
        Beam().check_sampling(biased, None, logprobs=True)
    assert caught.value.param == "logprobs"
    Beam().check_sampling(plain, None, logprobs=True)
    Beam(scores="raw").check_sampling(SamplingParameters(temperature=0.3), None, logprobs=True)
